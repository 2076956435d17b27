"""Which sentences of which pages answer each claim of the paper."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ROWS", "Row"]


@dataclass(frozen=True)
class Row:
    """A claim and where its answer stands.

    Attributes:
        claim: What the paper says, in our words.
        page: The study's page in ``docs/studies``.
        leads: How the lines of that page begin that answer it, as regular expressions; each has at least one line.
        figure: A picture of the page; empty if it has none.
        command: What makes the page.
        tables: What of the paper it is about.
        room: Characters of an answer, unless its first sentence has more; the page has the rest.
    """

    claim: str
    page: str
    leads: tuple[str, ...]
    figure: str
    command: str
    tables: str
    room: int = 330


ROWS = (
    Row(
        "The more experts, the fewer classes each of them serves",
        "specialisation.md",
        (r"- \*\*More experts are less polysemantic", r"- \*\*With as many", r"- \*\*More special"),
        "specialisation/polysemanticity.svg",
        "python -m studies specialisation",
        "figures of polysemanticity",
    ),
    Row(
        "Entmax gives experts of fewer classes than softmax",
        "specialisation.md",
        (r"- \*\*Entmax against softmax",),
        "specialisation/gates.svg",
        "python -m studies specialisation",
        "table of activations",
    ),
    Row(
        "A head of experts is at least as accurate as a linear one of as many parameters",
        "specialisation.md",
        (r"- \*\*As accurate as a linear head",),
        "specialisation/accuracy.svg",
        "python -m studies specialisation",
        "table of CLIP heads",
    ),
    Row(
        "Blocks of experts in place of MLPs are as accurate at equal parameters; early ones of a Mixer divide patches "
        "by look, late ones by class",
        "pretraining.md",
        (
            r"- \*\*GPT, as good at equal",
            r"- \*\*Mixer, as good at equal",
            r"- \*\*Early layers divide patches by look beyond",
            r"- \*\*Late layers",
        ),
        "pretraining.svg",
        "python -m studies pretraining",
        "main table, figures of patches by expert",
    ),
    Row(
        "One to four expert modes are as accurate as one, and all are used",
        "hierarchy.md",
        ("- More modes cost no accuracy", "- Grids are as accurate as", "- Every mode is used"),
        "hierarchy.svg",
        "python -m studies hierarchy",
        "hierarchical tables",
    ),
    Row(
        "Thresholds by experts correct a bias better than blind ones",
        "bias-correction-celeba.md",
        (r"- \*\*Thresholds by experts", r"- Of \d+ measures, beside"),
        "",
        "python -m studies bias_correction_celeba",
        "fairness table",
    ),
    Row(
        "Many experts cost no more than the layer they replace: parameters, operations, time, memory",
        "costs.md",
        (
            r"- \*\*Parameters",
            r"- \*\*FLOPs",
            r"- \*\*Time",
            r"- \*\*Memory",
            r"- \*\*Fast contraction, counted",
            r"- \*\*Rank against N",
        ),
        "costs.svg",
        "python -m studies costs",
        "tables of parameters, FLOPs and latency; ranks against N",
        room=200,
    ),
    Row(
        "Half of the singular vectors of a trained Mixer barely matter",
        "low-rank.md",
        (r"\*\*(Reproduced|Not reproduced|Cannot tell) on a small Mixer",),
        "low-rank.svg",
        "python -m studies low_rank",
        "SVD truncation study",
    ),
)
