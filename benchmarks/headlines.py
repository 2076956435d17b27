"""The first lines of the page: what a layer of experts costs beside what one would use in its place.

Data: each line names rows of the tables by case and by how their contender begins, so that no line can say another
number than the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.rows import Row

__all__ = ["LINES", "Figure", "Line", "headlines"]


@dataclass(frozen=True)
class Figure:
    """One number of a line.

    Attributes:
        said: What it is of.
        case: The case of its row.
        contender: How the row's contender begins; the first such row of the case is taken.
        training: Whether it is the time of training, in place of a forward pass.
    """

    said: str
    case: str
    contender: str
    training: bool = False


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        said: What is set beside what.
        section: The section that measured it.
        figures: Its numbers.
    """

    said: str
    section: str
    figures: tuple[Figure, ...]


_MANY, _MOST = "layer with gate, 1,024 tokens", "CP, rank 256, 1,048,576 experts"

LINES = (
    Line(
        "A block of 256 experts, beside a dense MLP of as many parameters, 1,024 tokens",
        "block",
        (
            Figure("forward", "256 experts, 1,024 tokens", "CP"),
            Figure("training", "256 experts, 1,024 tokens", "CP", training=True),
            Figure("compiled", "256 experts, 1,024 tokens, compiled", "CP"),
        ),
    ),
    Line(
        "The same of 1,024 experts",
        "block",
        (
            Figure("forward", "1,024 experts, 1,024 tokens", "CP"),
            Figure("training", "1,024 experts, 1,024 tokens", "CP", training=True),
        ),
    ),
    Line(
        "The block of 256 experts for one token",
        "block",
        (
            Figure("eager", "256 experts, 1 token", "CP"),
            Figure("compiled", "256 experts, 1 token, compiled", "CP"),
        ),
    ),
    Line(
        "A single layer of 128 experts for one token, beside `nn.Linear` run in the same way",
        "single_token",
        (
            Figure("eager", "1 token, eager", "CP"),
            Figure("compiled", "1 token, compiled", "CP"),
            Figure("packaged by AOTInductor", "1 token, packaged", "CP"),
        ),
    ),
    Line(
        "What one could take in place of that layer, 1,024 tokens, beside `nn.Linear`",
        "layer",
        (
            Figure("ours", "1,024 tokens", "CP"),
            Figure("the released uMoE code", "1,024 tokens", "released code, CP"),
            Figure(
                "a sparse MoE of transformers, top 2", "1,024 tokens", "sparse MoE, top 2 (transformers, grouped_mm)"
            ),
            Figure("a dense MoE", "1,024 tokens", "dense MoE"),
        ),
    ),
    Line(
        "Generated contractions beside hand-written einsum code, 64 experts, 1,024 samples",
        "contraction",
        tuple(Figure(name, f"{name}, 64 experts, 1,024 samples", "generated") for name in ("CP", "Tucker", "TT", "TR")),
    ),
    Line(
        "A gated layer of 1,048,576 experts beside one of 64, 1,024 tokens",
        "scaling",
        (
            Figure("full gate", _MANY, _MOST),
            Figure("gate of rank 32", _MANY, f"{_MOST}, gate_rank=32"),
            Figure("that in the sparse form", _MANY, f"{_MOST}, sparse_coefficients=True, gate_rank=32"),
            Figure("four modes of 32, full gate", _MANY, f"{_MOST} in 4 modes"),
        ),
    ),
    Line(
        "Entmax over 1,024 rows of 1,024 experts, beside softmax",
        "activation",
        (
            Figure("ours", "1,024 x 1,024", "entmax15"),
            Figure("the entmax package", "1,024 x 1,024", "entmax15 of the entmax package"),
            Figure("ours in training", "1,024 x 1,024", "entmax15", training=True),
        ),
    ),
)


def headlines(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """The lines, as Markdown; figures and lines that were not measured are left out.

    Args:
        rows: The rows of each section.
    """
    told = []
    for line in LINES:
        found = [(figure.said, _ratio(figure, rows.get(line.section, ()))) for figure in line.figures]
        known = [f"{said} {value}" for said, value in found if value is not None]
        if known:
            told.append(f"- {line.said}: {', '.join(known)}.")
    return told


def _ratio(figure: Figure, rows: Sequence[Row]) -> str | None:
    for row in rows:
        if row.case == figure.case and row.contender.startswith(figure.contender) and not row.baseline:
            ratio = row.training if figure.training else row.forward
            return None if ratio is None else f"**{ratio.median:.2f}**"
    return None
