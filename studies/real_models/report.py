"""The page, from the file of results; every sentence that judges is made in `verdicts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from factorized_moe._writing import write_files
from studies.real_models.curves import FAIR, STILL, Curve, Reference, curves, harm, references
from studies.real_models.forms import NAMES
from studies.real_models.plan import (
    EXPERTS,
    FRACTION,
    FULL,
    LANGUAGE,
    MIDDLE,
    RATE_SEED,
    RATE_STEPS,
    RATES,
    TEXT,
    Cell,
    cells,
    chosen_rates,
)
from studies.real_models.verdicts import COMPARED, SHORT, between, difference, half, name_of, points, verdicts

__all__ = ["FIGURE", "page", "write"]

FIGURE = "real-models.svg"

INTRODUCTION = f"""\
# Real models

In a sentence *encoder* (all-MiniLM-L6-v2) and a *language model* (SmolLM2-135M-Instruct), the MLP of the middle layer,
or those of the *encoder's last three layers* at once, become blocks of {EXPERTS} experts (uMoE layers, Oldfield et al.
2024, arXiv 2402.12550) or *controls* without experts, of as many parameters. How much is lost, and how much does
distillation give back?

- *Harm*: how far the changed model is from the unchanged one on held-out text, in the encoder the mean of `1 - cosine`
  of a sentence's two embeddings, in the language model the Kullback-Leibler divergence in nats a token.
- *Made good*: `1 - harm / harm(ablation)`; the *ablation* puts zeros or the MLPs' mean output in their place,
  whichever does less harm. *Fair*: at least {FAIR:.0%}, in every seed, there and at every greater length run.
- *Forms with experts*: all experts' weights are one tensor, kept as [CP](../decompositions/cp.md) (a sum of outer
  products), [Tucker](../decompositions/tucker.md) (a core with a matrix for each mode) or
  [tensor ring](../decompositions/tensor_ring.md) (a ring of small tensors). A [gate](../concepts/layer.md#the-gate),
  whose parameters count, mixes the experts for each token.
- *Start*: [upcycling](../how-to/pretrained-models.md#how-the-layers-start): a uniform gate, and experts that differ by
  noise alone; their mean is the MLP with each matrix brought to a rank that the form can hold. *Whitened*, the rule
  here: so that the MLP's outputs change least; *from the weights alone*: so that the matrix does, as `upcycle` does.
- *Controls*: *low rank*, every matrix a product of two; *narrower MLP*, the hidden features that contribute most, the
  last matrix fitted anew (both whitened too); *dense MLP from random weights*: what training alone does.
- *[Distillation](../how-to/distil.md)*: each block learns to give what its own MLP gives; *through the whole model*:
  the blocks learn to give the model's embeddings. A curve *rises* if the last four times as many tokens leave at most
  {STILL:.0%} of what is missing to 100%, *falls* if the same holds backwards, else it is *slow*.
- `±`: the standard error of a difference that is paired by seed, *n* the seeds. *Ahead* and *behind* ask for two seeds
  and two standard errors (a t-test at 5% would for 12.7 of two seeds, 4.3 of three), else it is *cannot tell*. Seeds
  change the order of the text, noise and random weights; what other held-out texts would give is not in `±`.

## What was found

"""


def write(entries: Sequence[Mapping[str, Any]], out: Path, command: str) -> None:
    """Write the page and the picture.

    Args:
        entries: The finished runs.
        out: The folder to write to.
        command: What made the runs.
    """
    from studies.real_models.picture import draw

    write_files(out, {"real-models.md": page(entries, command).encode()})
    draw(curves(entries), out / FIGURE)


def page(entries: Sequence[Mapping[str, Any]], command: str) -> str:
    """The page.

    Args:
        entries: The finished runs.
        command: What made the runs.
    """
    found, known = curves(entries), references(entries)
    places = [place for place in known if any(curve.place == place for curve in found)]
    return INTRODUCTION + "\n".join(
        [
            *[f"- {sentence}" for sentence in verdicts(entries, found)],
            "",
            f"![What is made good, and what forms with experts make good beyond low rank, against tokens]({FIGURE})",
            "",
            f"*{FRACTION:.0%} of the parameters. Above the mean of the seeds, bars from the least to the largest; what",
            "lies below the axis is in the tables. Below differences from low rank, bars are ± one standard error.*",
            "",
            "Tables have the mean of the seeds; in brackets the least and the largest, where they differ; in",
            "parentheses the seeds run of those planned. *Not run*: planned and missing; -: not planned. *Fair from*:",
            "the shortest length run; a shorter one may be fair too.",
            "",
            *[line for place in places for line in _section(place, known[place], found)],
            *_differences(places, found),
            *_budgets(found),
            *_how(entries, found, command),
        ]
    )


def _section(place: str, reference: Reference, found: Sequence[Curve]) -> list[str]:
    planned = {cell: lengths for cell, lengths in cells().items() if cell[0] == place and cell[1].fraction == FRACTION}
    mine = {curve.cell: curve for curve in half(found, place)}
    rows = list(dict.fromkeys([*mine, *planned]))
    run = {point.steps for curve in mine.values() for point in curve.points}
    lengths = sorted(run.union(*planned.values()))
    passes = [f"{steps * FULL.batch_size / TEXT[place]:.1f}" for steps in lengths]
    lines = [
        f"## {place[0].upper()}{place[1:]}",
        "",
        "| made good, %, after tokens | parameters | "
        + " | ".join(f"{steps * FULL.batch_size:,}" for steps in lengths)
        + " | fair from | last fourfold |",
        "|---|---:|" + "---:|" * len(lengths) + "---:|---|",
        f"| passes over the text |  | {' | '.join(passes)} |  |  |",
    ]
    for cell in rows:
        curve = mine.get(cell)
        values = " | ".join(_cell(curve, steps, len(planned.get(cell, {}).get(steps, ()))) for steps in lengths)
        lines.append(f"| {_row(cell)} | {'' if curve is None else f'{curve.share:.1%}'} | {values} | {_ends(curve)} |")
    costs = {kind: f"{harm(measured):.4f}" for kind, measured in reference.measured.items()}
    return [
        *lines,
        "",
        f"Harm of the mean output {costs['mean']}, of zeros {costs['zeros']}; the ablation is "
        f"{'zeros' if reference.ablation == 'zeros' else 'the mean output'}.",
        "",
    ]


def _row(cell: Cell) -> str:
    return name_of(cell[1].kind, cell[1].start, cell[2])


def _ends(curve: Curve | None) -> str:
    if curve is None:
        return " | "
    fair = "not yet" if curve.fair_from is None else f"{curve.fair_from:,.0f}"
    gain = "" if curve.gain is None else f" {points(curve.gain)}"
    return f"{fair} | {curve.change}{gain}"


def _cell(curve: Curve | None, steps: int, planned: int) -> str:
    """The mean, the ends where they differ, and how many seeds of those planned."""
    point = None if curve is None else curve.at(steps)
    if point is None:
        return "not run" if planned else "-"
    values = point.made_good.values()
    mean, low, high = (f"{100 * value:.1f}" for value in (point.mean, min(values), max(values)))
    spread = "" if low == high else f" [{low}, {high}]"
    tokens = "" if point.tokens in (0, steps * FULL.batch_size) else f", {point.tokens:,.0f} tokens"
    return f"{mean}{spread} ({len(values)}/{max(planned, len(values))}{tokens})"


def _differences(places: Sequence[str], found: Sequence[Curve]) -> list[str]:
    rows = []
    for place in places:
        for one, other in COMPARED:
            if differences := between(found, place, one, other):
                rows.append((place, f"{name_of(*one)} minus {name_of(*other)}", differences))
    if not rows:
        return []
    lengths = sorted({steps for *_, differences in rows for steps in differences})
    lines = [
        "## Differences",
        "",
        "| points, after tokens | | " + " | ".join(f"{steps * FULL.batch_size:,}" for steps in lengths) + " |",
        "|---|---|" + "---:|" * len(lengths),
    ]
    for place, name, differences in rows:
        values = []
        for steps in lengths:
            one = differences.get(steps)
            if one is None:
                values.append("-")
            elif not steps:
                values.append(f"{100 * one.mean:+.2f}")
            else:
                bold = "" if one.is_tie else "**"
                values.append(f"{bold}{difference(one)}{bold} ({one.pairs})")
        lines.append(f"| {SHORT[place]} | {name} | {' | '.join(values)} |")
    return [
        *lines,
        "",
        "In parentheses *n*; bold is beyond two standard errors. At 0 tokens nothing is judged: all but the random "
        "weights are alike in all seeds.",
        "",
    ]


def _budgets(found: Sequence[Curve]) -> list[str]:
    """What is made good before any training, for each share of the parameters."""
    starts = {
        (curve.form.kind, curve.form.fraction): curve.points[0]
        for curve in found
        if (curve.place, curve.form.start, curve.loss) == (MIDDLE, "whitened", "layers")
        and curve.form.kind != "dense"
        and not curve.points[0].steps
    }
    fractions = sorted({fraction for _, fraction in starts}, reverse=True)
    kinds = [kind for kind in NAMES if any(one == kind for one, _ in starts)]
    if len(fractions) < 2:
        return []
    lines = [
        "## Before any training, by parameters",
        "",
        f"| made good, %, {SHORT[MIDDLE]} | {' | '.join(f'{fraction:.0%}' for fraction in fractions)} |",
        "|---|" + "---:|" * len(fractions),
    ]
    for kind in kinds:
        points = [starts.get((kind, fraction)) for fraction in fractions]
        values = " | ".join("-" if point is None else f"{100 * point.mean:.1f}" for point in points)
        lines.append(f"| {name_of(kind)} | {values} |")
    return [*lines, "", "A narrower MLP of 100% is the MLP itself. Seed 0 where there are no others.", ""]


def _rates(entries: Sequence[Mapping[str, Any]], found: Sequence[Curve]) -> str:
    """The learning rates, which of them may be too small, and which too large."""
    rates = chosen_rates(entries)
    said = ", ".join(f"{name_of(*which)} {rate:g}" for which, rate in rates.items())
    parts = [f"Chosen: {said}." if said else ""]
    edge = [name_of(*which) for which, rate in rates.items() if rate == max(RATES)]
    if edge:
        parts.append(f"For {', '.join(edge)} that is the largest tried: a larger one may do better.")
    fallen = []
    for curve in half(found):
        if len(curve.points) > 1 and not curve.points[0].steps and curve.points[1].mean < curve.points[0].mean:
            change = points(curve.points[1].mean - curve.points[0].mean)
            fallen.append(f"{name_of(*(curve.form.kind, curve.form.start))} ({SHORT[curve.place]}, {change} points)")
    if fallen:
        parts.append(f"After the shortest training worse than before, the rate perhaps too large: {', '.join(fallen)}.")
    return " ".join(filter(None, parts))


def _how(entries: Sequence[Mapping[str, Any]], found: Sequence[Curve], command: str) -> list[str]:
    machines = {", ".join(f"{k} {v}" for k, v in entry["result"]["machine"].items()) for entry in entries}
    minutes = sum(entry["seconds"] for entry in entries) / 60
    seeds = sorted({seed for curve in found for point in curve.points for seed in point.made_good})
    return [
        "## How it was measured",
        "",
        f"Written by `{command}` from [real-models.jsonl](real-models.jsonl): do not edit. {len(entries)} runs, "
        f"{minutes:.0f} minutes of one thread on a machine that did other work beside. The command downloads the "
        "models by digest, asks for Debian's `wordnet-base`, and makes the runs that the file lacks; `--page` makes "
        "none.",
        "",
        f"- Each length is a run of its own, whose learning rate falls to zero at its end: AdamW, {FULL.batch_size} "
        "tokens a step, through the whole model 32 sentences. Seeds in the figures: "
        f"{', '.join(map(str, seeds))}.",
        f"- Learning rates: the best of {', '.join(f'{r:g}' for r in RATES)} after {RATE_STEPS} steps, by the error on "
        f"validation texts, which are neither distilled nor measured on, in the encoder's middle layer; seed "
        f"{RATE_SEED} was for this alone and is in no figure. {_rates(entries, found)} "
        "Tensor ring, Tucker and training through the whole model take CP's, other places and lengths the same: they "
        "may be too fast or slow there.",
        f"- Encoder: all-MiniLM-L6-v2 (Apache-2.0), the fourth of its six layers, or its last three at once, 1.18 "
        f"million parameters an MLP. Distilled on {FULL.train_sentences:,} noun glosses of WordNet (WordNet 3.0 "
        f"licence, {TEXT[MIDDLE]:,} tokens), rates chosen on {FULL.validation_sentences}, harm measured on "
        f"{FULL.held_out_sentences} others.",
        f"- Language model: SmolLM2-135M-Instruct, 4-bit weights dequantised (Apache-2.0), the 16th of its 30 layers, "
        f"2.65 million parameters. Distilled on {TEXT[LANGUAGE]:,} tokens of Python's `help()` topics (PSF Licence), "
        f"measured on {FULL.window * FULL.held_out_windows:,} of other topics.",
        f"- Not measured: larger models, tasks, speed, training at other shares than {FRACTION:.0%}.",
        f"- Machine: {'; '.join(sorted(machines))}.",
        "",
    ]
