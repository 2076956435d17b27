"""The page of the example: a table of all seeds and what the figures say, in sentences made from them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from factorized_moe.interpret import GroupMeasures

__all__ = ["page"]

MEASURES = {
    "accuracy": "accuracy",
    "equality_of_opportunity": "difference of opportunity",
    "std_of_accuracies": "standard deviation of group accuracies",
    "worst_accuracy": "worst group's accuracy",
}
OURS = "experts, expert threshold"

Measured = Sequence[Mapping[str, GroupMeasures]]
"""For each seed the measures of each classifier."""


TEMPLATE = """\
# Bias correction

{findings}

{table}

On the test people; mean over {seeds} seeds and, in brackets, the smallest and the largest. The *difference of
opportunity* is the larger less the smaller true-positive rate of the groups: 0 is equal. All measures are as
[fairlearn](https://fairlearn.org) defines them. With oversampling, the paper's cells and faces in place of incomes:
[Bias correction on faces](bias-correction-celeba.md).

## How it was measured

Written by `{command}` from [bias-correction.json](bias-correction.json): do not edit. The code is in
`studies/bias_correction`.

The table: {data}. A classifier predicts who earned more than 50,000 dollars; the groups are {groups}. The *wronged*
group is the one whose members who did earn more are recognised least often. Two classifiers are compared: a linear one,
and a CP layer of {experts} experts of rank {rank}.

- A *blind threshold* adds the same to everybody's logit of the higher income.
- An *expert threshold* adds `strength * abar^T a`, with `abar` the mean of the expert coefficients over the wronged
  group's training members and `a` the person's own: the rule of `ExpertThreshold`. It does not look at the person's
  group; only learning it and choosing its strength do.
- Either strength is chosen on the same validation people, kept from the training people: the smallest difference of
  opportunity that costs an accuracy of at most {most_accuracy_lost} there, out of {steps} sizes of the mean shift.

## What it does not show

One table, one pair of groups and one way to choose the strength are no evidence about other data. The table has the sex
among its columns, so experts can tell the groups apart directly; from images they would have to learn that. Equal
opportunity is one notion of fairness among several that exclude each other; the standard deviation and the worst
group's accuracy are shown because they may move the other way. Nothing here reproduces the figures of the paper that
the layer comes from, which are on photographs of faces.

Measured with: {versions}.
"""


def page(measured: Measured, facts: Mapping[str, str]) -> str:
    """The page in Markdown."""
    table = [
        "| classifier | accuracy | difference of opportunity | standard deviation of accuracies | worst accuracy |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in measured[0]:
        cells = [_spread([getattr(run[name], measure) for run in measured]) for measure in MEASURES]
        table.append(f"| {name} | {' | '.join(cells)} |")
    told = "\n".join(f"- {sentence}" for sentence in findings(measured))
    return TEMPLATE.format(**facts, table="\n".join(table), seeds=len(measured), findings=told)


def findings(measured: Measured) -> list[str]:
    """What the figures say."""
    base, blind = OURS.split(",")[0], f"{OURS.split(',')[0]}, blind threshold"
    sentences = [_change(measured, base, OURS, measure, words) for measure, words in MEASURES.items()]
    better = sum(run[OURS].equality_of_opportunity < run[blind].equality_of_opportunity for run in measured)
    ours, theirs = (_mean(measured, name, "equality_of_opportunity") for name in (OURS, blind))
    lost, lost_blind = (_mean(measured, base, "accuracy") - _mean(measured, name, "accuracy") for name in (OURS, blind))
    sentences.append(
        "Beside the blind threshold on the same layer, the expert threshold leaves a smaller difference of opportunity "
        f"in {better} of {len(measured)} seeds: {ours:.3f} against {theirs:.3f} on average, for {100 * lost:.2f} "
        f"against {100 * lost_blind:.2f} points of accuracy."
    )
    linear = _mean(measured, "linear", "equality_of_opportunity")
    sentences.append(
        f"Before any correction the difference of opportunity is {linear:.3f} for the linear classifier and "
        f"{_mean(measured, base, 'equality_of_opportunity'):.3f} for the layer of experts."
    )
    return sentences


def _change(measured: Measured, before: str, after: str, measure: str, words: str) -> str:
    values = [(getattr(run[before], measure), getattr(run[after], measure)) for run in measured]
    first, second = (_mean(measured, name, measure) for name in (before, after))
    way = "lowers" if second < first else "raises" if second > first else "leaves"
    agree = sum((b < a) if way == "lowers" else (b > a) if way == "raises" else b == a for a, b in values)
    return (
        f"The expert threshold {way} the {words} from {first:.3f} to {second:.3f} on average; it {way} it in "
        f"{agree} of {len(values)} seeds."
    )


def _mean(measured: Measured, name: str, measure: str) -> float:
    return statistics.fmean(getattr(run[name], measure) for run in measured)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"
