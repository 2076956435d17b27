"""The file of results and the page that is made from it; what is poor is called poor by thresholds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from factorized_moe._writing import write_files
from studies.real_models.language import CROSS_ENTROPY
from studies.real_models.sentences import AGREEMENT, COSINE
from studies.real_models.study import VARIANTS, Row, Variant

__all__ = ["GOOD", "POOR", "Study", "load", "markdown", "save", "verdict"]

GOOD, POOR = 0.95, 0.8
"""Shares of what leaving the MLP out does that a form must undo to be called good, and not to be called poor."""

EXACT = 1e-5
"""The largest relative change of the logits that rounding may make at full rank."""

NAMES = {"cp": "CP", "tr": "tensor ring", "tucker": "Tucker"}


INTRODUCTION = """\
# Real models

One MLP in the middle of a pretrained model becomes a block of experts; everything else stays as it is. Read it as a
test of where these methods stand, not as a recommendation: no training of the whole model follows.

"""

RULES = f"""\
## How to read it

Written by `make models` from [real-models.json](real-models.json): do not edit.

- *Upcycled* is before any training: the mean of the experts is the best approximation of the dense weights that the
  rank allows. *Error* is its relative error, of the worst of the MLP's weights. *Share* is the parameters in all, gate
  included, as a share of the MLP's.
- *Fitted* is started from the same weights with the covariance of the inputs on the training text
  (`input_covariance`), so that a low rank loses what matters least to the outputs; still no training.
- *Distilled* goes on from *fitted* with `distill`, on what the MLP is given and gives on the training text.
- *Made good* is the share of what leaving the MLP out costs that the distilled form undoes: {GOOD:.0%} or more is good,
  below {POOR:.0%} is poor, below 0 is worse than no MLP at all.
- What is held out was not distilled on, but both models may have seen it in their own training. It is short, and there
  is one seed: take small differences between forms for noise.
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
        text: What the text is.
        train: How much of it was distilled on.
        held_out: How much was measured on.
        distillation: How, in words.
        original: What was measured of the unchanged model.
        ablated: What was measured with the MLP giving zeros.
        rows: The forms.
        planned: How many forms there are.
        seed: Of everything random.
        commands: What was run.
        machine: What the machine is.
        full_rank_change: The relative change of a language model's logits at full rank.
    """

    name: str
    package: str
    licence: str
    module: str
    parameters: int
    text: str
    train: str
    held_out: str
    distillation: str
    original: Mapping[str, float]
    ablated: Mapping[str, float]
    rows: Sequence[Row]
    planned: int
    seed: int
    commands: tuple[str, ...]
    machine: Mapping[str, str]
    full_rank_change: float | None = None

    def merged(self, earlier: Study | None) -> Study:
        """With the forms of an earlier run that it lacks, if that was the same study; else as it is."""
        if earlier is None or replace(earlier, rows=(), commands=()) != replace(self, rows=(), commands=()):
            return self
        rows = {row.variant: row for row in (*earlier.rows, *self.rows)}
        ordered = sorted(rows.values(), key=lambda row: VARIANTS.index(row.variant))
        return replace(self, rows=tuple(ordered), commands=tuple(dict.fromkeys((*earlier.commands, *self.commands))))


def save(path: Path, studies: Mapping[str, Study]) -> None:
    """Write the studies as JSON, whole or not at all."""
    stored = {name: asdict(study) for name, study in studies.items()}
    write_files(path.parent, {path.name: (json.dumps(stored, indent=1) + "\n").encode()})


def load(path: Path) -> dict[str, Study]:
    """Read what `save` wrote; nothing, if there is no file."""
    if not path.exists():
        return {}
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: Study(**{**study, "rows": tuple(map(_row, study["rows"])), "commands": tuple(study["commands"])})
        for name, study in stored.items()
    }


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


def markdown(studies: Mapping[str, Study]) -> str:
    """The page."""
    sections = [line for study in studies.values() for line in _section(study)]
    details = [line for study in studies.values() for line in _details(study)]
    return INTRODUCTION + "\n".join([*sections, RULES, *details])


def _section(study: Study) -> list[str]:
    measures = tuple(study.original)

    def cells(measured: Mapping[str, float]) -> str:
        return " | ".join(f"{measured[name]:.4f}" for name in measures)

    heads = [f"{name}, {when}" for when in ("upcycled", "fitted", "distilled") for name in measures]
    blank = " | ".join([" "] * 2 * len(measures))
    lines = [
        f"## {study.name}",
        "",
        *_conclusions(study),
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
    return [*lines, "", f"Measured: {_described(measures)}.", ""]


def _details(study: Study) -> list[str]:
    """What was measured, on what and how."""
    machine = ", ".join(f"{key} {value}" for key, value in study.machine.items())
    seconds = sum(row.seconds for row in study.rows)
    commands = ", ".join(f"`{command}`" for command in study.commands)
    return [
        f"### How {study.name} was measured",
        "",
        f"From the package `{study.package}`, {study.licence}. The MLP, `{study.module}`, has {study.parameters:,} "
        "parameters.",
        "",
        f"- Text: {study.text}. Distilled on {study.train}, measured on {study.held_out}.",
        f"- Distillation: {study.distillation}",
        f"- Machine: {machine}. Seed {study.seed}. {seconds:.0f} s for the forms. Run by {commands}.",
        *_at_full_rank(study),
        "",
    ]


def _described(measures: tuple[str, ...]) -> str:
    words = {
        CROSS_ENTROPY: "cross-entropy, in nats a token (lower is better)",
        COSINE: "*cosine*, the mean similarity of an embedding to the unchanged model's (higher is better)",
        AGREEMENT: "*nearest*, the share of sentences whose nearest other sentence is the same as there",
    }
    return "; ".join(words[name] for name in measures)


def _at_full_rank(study: Study) -> list[str]:
    if study.full_rank_change is None:
        return []
    within = "within" if study.full_rank_change < EXACT else "**more than**"
    return [
        "- At full rank: 16 different CP experts in the MLP's place change the logits by "
        f"{study.full_rank_change:.1e} (relative), {within} the {EXACT:.0e} that rounding may make."
    ]


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
    if len(study.rows) < study.planned:
        lines.append(
            f"- **Not all forms were run**: {study.planned - len(study.rows)} of {study.planned} forms are missing."
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
    count = row.variant.experts
    return f"{name}, {count} expert{'s' if count > 1 else ''}, {row.share:.0%}"
