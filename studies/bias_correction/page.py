"""The study's page: verdicts made from the figures, the tables, and how it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studies.bias_correction.correcting import Case, Settings
from studies.bias_correction.judging import first_seeds, minutes, rows_of, rule, section, verdicts, wronged

__all__ = ["CASE", "MODELS", "page"]

CASE = Case("Income by sex", "income", 1, None, False, ("on a lower income", "on a higher income"))
MODELS = ("linear", "CP")

BEGAN = 5
"""The seeds with which the study began; they left its question open, so it went on to more."""

TEMPLATE = """\
# Bias correction

A classifier may *wrong* a group of people: recognise fewer of those in it who have the label. Can it be corrected by an
*expert threshold*, which raises each person's logit by how much the person shares the experts of the wronged group, and
better than by a *blind threshold*, which raises everybody's alike? Oldfield et al. 2024 (arXiv 2402.12550) say so, of
faces; here it is tried on a table of incomes.

{rule}

{verdicts}

{section}

Values are means over {seeds} seeds and, in brackets, the smallest and the largest. *Difference of opportunity*: the
larger less the smaller share of a sex's positives that are recognised; 0 is equal. *Spread* is a standard deviation.
*Cells* are the four pairs of a sex and a label; the worst is named. *Shift* is how far the chosen correction moves a
logit, on average over the validation people; 0 is no correction. Differences: mean ± standard error. The measures of
the sexes are as [fairlearn](https://fairlearn.org) defines them. With the paper's cells, and faces in place of incomes:
[Bias correction on faces](bias-correction-celeba.md).

## How it was measured

Written by `python -m studies bias_correction` from [bias-correction.jsonl](bias-correction.jsonl): do not edit. It
takes about {minutes} on one core, and goes on where it was stopped. The code is in `studies/bias_correction`.

The data: Adult, a table of the census of 1994 with {trained:,} people to train on and {tested:,} to test on. A
classifier predicts who earned more than 50,000 dollars in the year, a higher income. Each seed keeps another {kept:.0%}
of the training people to choose corrections on. Found to be wronged by the layer of experts on
them: {wronged}.

- *Linear*: one linear map. *CP*: a layer of {experts} experts whose weights are a CP decomposition of rank {rank} ([The
  layer](../concepts/layer.md)), by the library's defaults. Both: AdamW at {learning_rate:g}, {epochs} passes, batches
  of {batch_size:,}.
- *Oversampled*: trained on as many people, drawn such that the four cells are equally frequent (`balancing_weights`).
- The expert threshold adds `strength * abar^T a` to the logit of the higher income, with `a` a person's expert
  coefficients and `abar` their mean over the wronged sex's training people: the rule of `ExpertThreshold`. The *excess
  rule* takes from `abar` the mean over everybody, and what is then below 0 counts as 0. *Shuffled*: the expert
  threshold's shifts, dealt out to the people in another order, its strength chosen anew. No rule is told a person's sex
  when it is applied; but the sex is a column of the table, so the gate sees it and experts may stand for it.
- Each strength, a number, is chosen on the validation people: the smallest difference of opportunity that costs an
  accuracy of at most {most_accuracy_lost:g} there, and may cost more on the test people, among no correction and
  {steps} sizes of the mean shift up to {largest_shift:g}. Two corrections may so be compared at unequal accuracy, which
  is a measure of its own above.
- *Over people*: the positives of each sex drawn anew with replacement, {draws:,} times; 95% of the differences, the
  ends' means over seeds.

## What it does not show

One table, one pair of groups and one way to choose the strength are no evidence about other data. From images, experts
would have to learn the groups that they are told of here. Equal
opportunity is one notion of fairness among several that exclude each other. Nothing here reproduces the figures of the
paper, which are on photographs of faces.
"""


def page(runs: Sequence[Mapping[str, Any]], how: Settings, kept: float, sizes: Sequence[int] = (32_561, 16_281)) -> str:
    """The page in Markdown.

    Args:
        runs: The finished runs.
        how: What was trained.
        kept: The share of the training people that corrections are chosen on.
        sizes: The numbers of people to train on and to test on.
    """
    found = rows_of(runs, CASE, MODELS)
    seeds = len({run["settings"]["seed"] for run in runs})
    more = [first_seeds(found, BEGAN)] if seeds > BEGAN else []
    return TEMPLATE.format(
        **vars(how),
        kept=kept,
        rule=rule(seeds),
        verdicts="\n".join(f"- {sentence}" for sentence in [*verdicts({CASE.name: found}), *more]),
        section=section(CASE, found),
        seeds=seeds,
        minutes=minutes(runs),
        trained=sizes[0],
        tested=sizes[1],
        wronged=wronged(runs, CASE),
    )
