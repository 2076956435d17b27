"""The file of results and the page that is made from it; what is poor is called poor by thresholds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.language import CROSS_ENTROPY
from models.sentences import AGREEMENT, COSINE
from models.study import Row, Variant

__all__ = ["GOOD", "POOR", "Results", "Study", "load", "markdown", "save", "verdict"]

GOOD, POOR = 0.95, 0.8
"""Shares of what leaving the MLP out does that a form must undo to be called good, and not to be called poor."""

EXACT = 1e-5
"""The largest relative change of the logits that rounding may make at full rank."""

NAMES = {"cp": "CP", "tr": "tensor ring", "tucker": "Tucker"}


INTRODUCTION = """\
# Real models

Written by `make models` from [real-models.json](real-models.json): do not edit. One MLP in the middle of a pretrained
model becomes a block of experts; everything else stays as it is. Read it as a test of where these methods stand, not
as a recommendation: no training of the whole model follows.

- Text: {text}. What is held out was not distilled on, but both models may have seen it in their own training.
- *Upcycled* is before any training: the mean of the experts is the best approximation of the dense weights that the
  rank allows. *Error* is its relative error, of the worst of the MLP's weights. *Share* is the parameters in all, gate
  included, as a share of the MLP's.
- *Fitted* is started from the same weights with the covariance of the inputs on the training text
  (`input_covariance`), so that a low rank loses what matters least to the outputs; still no training.
- *Distilled* goes on from *fitted*: {distillation}
- *Made good* is the share of what leaving the MLP out costs that the distilled form undoes: {good} or more is good,
  below {poor} is poor, below 0 is worse than no MLP at all.
- Measured on: {machine}. Seed {seed}. Command: `{command}`, {seconds} s.

## At full rank

16 CP experts of full rank, with noise between them, in place of the language model's MLP change its logits by {change}
(relative), {within} the {exact} that rounding may make.

"""


@dataclass(frozen=True)
class Study:
    """What was found for one model.

    Attributes:
        name: The model.
        package: The package it comes from.
        licence: Its weights' licence.
        module: Which MLP.
        parameters: Its parameters.
        train: How much text was distilled on.
        held_out: How much text was measured on.
        original: What was measured of the unchanged model.
        ablated: What was measured with the MLP giving zeros.
        rows: The forms.
        seconds: What it took.
    """

    name: str
    package: str
    licence: str
    module: str
    parameters: int
    train: str
    held_out: str
    original: Mapping[str, float]
    ablated: Mapping[str, float]
    rows: Sequence[Row]
    seconds: float


@dataclass(frozen=True)
class Results:
    """Everything that the page says.

    Attributes:
        command: What was run.
        seed: Of everything random.
        text: What the text is.
        machine: What the machine is.
        distillation: How the forms were distilled, in words.
        full_rank_change: The relative change of the language model's logits at full rank.
        language: The language model.
        sentences: The sentence encoder.
        seconds: What it all took.
    """

    command: str
    seed: int
    text: str
    machine: Mapping[str, str]
    distillation: str
    full_rank_change: float
    language: Study
    sentences: Study
    seconds: float


def save(path: Path, results: Results) -> None:
    """Write the results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Results:
    """Read what `save` wrote."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Results(**{**stored, "language": _study(stored["language"]), "sentences": _study(stored["sentences"])})


def _study(stored: dict[str, Any]) -> Study:
    return Study(**{**stored, "rows": [_row(row) for row in stored["rows"]]})


def _row(stored: dict[str, Any]) -> Row:
    rank = tuple(stored["rank"]) if isinstance(stored["rank"], list) else stored["rank"]
    return Row(**{**stored, "variant": Variant(**stored["variant"]), "rank": rank, "losses": tuple(stored["losses"])})


def harm(measured: Mapping[str, float], original: Mapping[str, float]) -> float:
    """How far a model is from the original: nats a token, or what is missing to a cosine of 1; below 0 is better."""
    if CROSS_ENTROPY in measured:
        return measured[CROSS_ENTROPY] - original[CROSS_ENTROPY]
    return original[COSINE] - measured[COSINE]


def recovered(measured: Mapping[str, float], study: Study) -> float:
    """The share of the harm of leaving the MLP out that is undone: 1 as the original, below 0 worse than no MLP."""
    whole = harm(study.ablated, study.original)
    return 1.0 - harm(measured, study.original) / whole if whole > 0 else float("nan")


def verdict(share: float) -> str:
    """What a recovered share is called."""
    if not share >= 0:
        return "worse than no MLP"
    return "good" if share >= GOOD else "fair" if share >= POOR else "poor"


def markdown(results: Results) -> str:
    """The page."""
    introduction = INTRODUCTION.format(
        text=results.text,
        distillation=results.distillation,
        good=f"{GOOD:.0%}",
        poor=f"{POOR:.0%}",
        machine=", ".join(f"{key} {value}" for key, value in results.machine.items()),
        seed=results.seed,
        command=results.command,
        seconds=f"{results.seconds:.0f}",
        change=f"{results.full_rank_change:.1e}",
        within="within" if results.full_rank_change < EXACT else "**more than**",
        exact=f"{EXACT:.0e}",
    )
    sections = (
        *_section(results.language, (CROSS_ENTROPY,), "nats a token; lower is better"),
        *_section(results.sentences, (COSINE, AGREEMENT), "similarity to the unchanged model; higher is better"),
    )
    return introduction + "\n".join(sections)


def _section(study: Study, measures: tuple[str, ...], unit: str) -> list[str]:
    def cells(measured: Mapping[str, float]) -> str:
        return " | ".join(f"{measured[name]:.4f}" for name in measures)

    heads = [f"{name}, {when}" for when in ("upcycled", "fitted", "distilled") for name in measures]
    blank = " | ".join([" "] * 2 * len(measures))
    lines = [
        f"## {study.name}",
        "",
        f"From the package `{study.package}`, {study.licence}. The MLP is `{study.module}`, {study.parameters:,} "
        f"parameters. Distilled on {study.train}, measured on {study.held_out}: {_described(measures)}, {unit}. "
        f"{study.seconds:.0f} s.",
        "",
        f"| form | experts | share | rank | error | {' | '.join(heads)} | made good | verdict |",
        "|---|" + "---:|" * (5 + len(heads)) + "---|",
        f"| the original MLP | | 100.0% | | | {cells(study.original)} | {blank} | | |",
        f"| no MLP: zeros | | 0.0% | | | {cells(study.ablated)} | {blank} | 0% | |",
    ]
    for row in study.rows:
        share = recovered(row.distilled, study)
        name = NAMES.get(row.variant.decomposition, row.variant.decomposition)
        lines.append(
            f"| {name} | {row.variant.experts} | {row.share:.1%} | {row.rank} | {row.weight_error:.3f} | "
            f"{cells(row.upcycled)} | {cells(row.fitted)} | {cells(row.distilled)} | {share:.0%} | {verdict(share)} |"
        )
    return [*lines, "", *_conclusions(study), ""]


def _described(measures: tuple[str, ...]) -> str:
    words = {
        CROSS_ENTROPY: "cross-entropy",
        COSINE: "mean cosine of an embedding and the unchanged model's",
        AGREEMENT: "share of sentences whose nearest other sentence is the same",
    }
    return " and ".join(words[name] for name in measures)


def _conclusions(study: Study) -> list[str]:
    """What the table says, counted."""
    after = [verdict(recovered(row.distilled, study)) for row in study.rows]
    stages = {
        "Upcycled": [verdict(recovered(row.upcycled, study)) for row in study.rows],
        "Fitted": [verdict(recovered(row.fitted, study)) for row in study.rows],
        "Distilled": after,
    }
    lines = [f"- {stage}: {_counts(verdicts)}." for stage, verdicts in stages.items()]
    alone = {
        row.variant.fraction: harm(row.distilled, study.original) for row in study.rows if row.variant.experts == 1
    }
    several = [row for row in study.rows if row.variant.experts > 1 and row.variant.fraction in alone]
    if several:
        better = [row for row in several if harm(row.distilled, study.original) < alone[row.variant.fraction]]
        lines.append(
            "- Closer to the original than one low-rank product (CP with 1 expert) of as many parameters, both "
            f"distilled: {len(better)} of {len(several)} forms with several experts{_listed(better)}."
        )
    worse = [row for row in study.rows if harm(row.distilled, study.original) > harm(row.fitted, study.original)]
    if worse:
        lines.append(f"- Distillation made things worse for: {'; '.join(_label(row) for row in worse)}.")
    bad = [row for row, word in zip(study.rows, after, strict=True) if word in ("poor", "worse than no MLP")]
    if bad:
        lines.append(f"- **Poor even when distilled**: {'; '.join(_label(row) for row in bad)}.")
    if not harm(study.ablated, study.original) > 0:
        lines.append("- **Leaving this MLP out costs nothing here, so the shares made good mean nothing.**")
    return lines


def _listed(rows: Sequence[Row]) -> str:
    return f" ({'; '.join(_label(row) for row in rows)})" if rows else ""


def _counts(verdicts: Sequence[str]) -> str:
    words = ("good", "fair", "poor", "worse than no MLP")
    counts = [f"{verdicts.count(word)} {word}" for word in words if word in verdicts]
    return f"of {len(verdicts)} forms {', '.join(counts)}"


def _label(row: Row) -> str:
    name = NAMES.get(row.variant.decomposition, row.variant.decomposition)
    return f"{name}, {row.variant.experts} experts, {row.share:.0%}"
