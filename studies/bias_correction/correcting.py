"""One run: a classifier trained, corrected in every way for the people it wrongs, and measured.

Legend: `m` people, `N` experts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from factorized_moe import CPMuMoE
from factorized_moe.demo.training import Schedule, predict, reproducible, train
from factorized_moe.interpret import ExpertThreshold, balancing_weights, choose_strength, measure_groups
from studies.bias_correction.adult import People

__all__ = ["TRAININGS", "Case", "Parts", "Settings", "correct", "resampled"]

TRAININGS = ("as it is", "oversampled")
OURS = "expert threshold"

Parts = tuple[People, People, People]
"""The people to train on, to choose corrections on, and to test on."""

Share = Callable[[People], Tensor]
"""From people to each one's part of a correction, `(m,)`."""


@dataclass(frozen=True)
class Case:
    """A prediction and the people that it is corrected for.

    Attributes:
        name: What the page calls it.
        attribute: The attribute that is predicted.
        granted: Its value that counts as the positive label.
        group: The group that is corrected for; `None` for the one whose positives are recognised least often.
        positives: Whether the correction is learned from the group's positives alone, or from the whole group.
        words: What people without and with the positive label are called.
    """

    name: str
    attribute: str
    granted: int
    group: int | None
    positives: bool
    words: tuple[str, str]


@dataclass(frozen=True)
class Settings:
    """What is trained, and how a correction is chosen.

    Attributes:
        experts: The experts of the CP head.
        rank: Its rank.
        width: The hidden features of a two-layer linear classifier.
        epochs: Passes over the training people.
        batch_size: People of one step.
        learning_rate: AdamW's largest, of every classifier.
        most_accuracy_lost: The most validation accuracy that a correction may cost.
        largest_shift: The largest mean shift of a logit that is tried.
        steps: How many sizes of shift are tried.
        draws: How often the test people are drawn anew.
    """

    experts: int = 64
    rank: int = 64
    width: int = 223
    epochs: int = 4
    batch_size: int = 1024
    learning_rate: float = 1e-2
    most_accuracy_lost: float = 0.01
    largest_shift: float = 3.0
    steps: int = 30
    draws: int = 2000


@dataclass(frozen=True, eq=False)
class _Scored:
    """Some people with how far each is above the threshold, `(m,)`, and each one's part of a correction, `(m,)`."""

    labels: Tensor
    groups: Tensor
    margin: Tensor
    share: Tensor

    def granted(self, strength: float) -> Tensor:
        return (self.margin + strength * self.share > 0).long()

    @property
    def cells(self) -> Tensor:
        """The number of each one's cell: group by group, first without the positive label."""
        return 2 * self.groups + self.labels

    def measures(self, granted: Tensor) -> dict[str, Any]:
        found = measure_groups(self.labels, granted, self.groups)
        right = torch.bincount(self.cells[granted == self.labels], minlength=4)
        accuracies = right / torch.bincount(self.cells, minlength=4)
        values = {name: value for name, value in asdict(found).items() if isinstance(value, float)}
        return values | {
            "std_of_cells": float(accuracies.std(correction=0)),
            "worst_cell": float(accuracies.min()),
            "cells": accuracies.tolist(),
            "recognised": [found.true_positive_rates[group] for group in sorted(found.true_positive_rates)],
        }


def correct(settings: Mapping[str, Any], parts: Parts, cases: Sequence[Case], how: Settings) -> dict[str, Any]:
    """Train one classifier, and measure it in every case of its attribute before and after each correction.

    Args:
        settings: ``attribute``, ``model``, ``training`` and ``seed``.
        parts: The people.
        cases: The cases; those of other attributes are left out.
        how: The sizes.

    Returns:
        ``cases``: by the case's name the group, how many people are in each cell, the mean shift chosen for each
        correction, its measures on the test people, and of the experts' correction how the difference of opportunity
        less that of others varies over people. ``cpu_seconds``: how long it took.
    """
    begun = time.process_time()
    training, validation, test = parts
    with reproducible(settings["seed"]):
        model = _model(settings["model"], training.features.shape[1], how)
        mine = training
        if settings["training"] == "oversampled":
            weights = balancing_weights(training.labels, training.groups)
            mine = training[torch.multinomial(weights, len(training), replacement=True)]
        schedule = Schedule(how.epochs, how.batch_size, how.learning_rate)
        train(model, mine.features, mine.labels, schedule, settings["seed"], lambda: None)
    logits = {part: predict(model, part.features, 8192) for part in (validation, test)}
    found = {
        case.name: _measure(case, model, training, logits, settings, how)
        for case in cases
        if case.attribute == settings["attribute"]
    }
    return {"cases": found, "cpu_seconds": round(time.process_time() - begun, 2)}


def _model(name: str, features: int, how: Settings) -> nn.Module:
    if name == "CP":
        return CPMuMoE(features, 2, expert_dims=[how.experts], rank=how.rank)
    if name == "linear":
        return nn.Linear(features, 2)
    return nn.Sequential(nn.Linear(features, how.width), nn.Linear(how.width, 2))


def _measure(
    case: Case,
    model: nn.Module,
    training: People,
    logits: Mapping[People, Tensor],
    settings: Mapping[str, Any],
    how: Settings,
) -> dict[str, Any]:
    validation, test = logits
    plain = {part: _scored(case, part, logits[part], torch.ones(len(part))) for part in (validation, test)}
    group = case.group
    if group is None:
        rates = measure_groups(plain[validation].labels, plain[validation].granted(0.0), validation.groups)
        group = min(rates.true_positive_rates, key=rates.true_positive_rates.__getitem__)
    shifts: dict[str, float] = {}
    granted = {"none": plain[test].granted(0.0)}
    corrections = _corrections(case, model, training, group, settings["seed"])
    for name, share in corrections.items() if settings["training"] == "as it is" else ():
        tried = _scored(case, validation, logits[validation], share(validation))
        mean = float(tried.share.mean())
        candidates = torch.linspace(0, how.largest_shift, how.steps + 1) / max(mean, 1e-9)
        strength = choose_strength(
            candidates.tolist(),
            lambda strength, tried=tried: measure_groups(tried.labels, tried.granted(strength), tried.groups),
            how.most_accuracy_lost,
        )
        shifts[name] = strength * mean
        granted[name] = _scored(case, test, logits[test], share(test)).granted(strength)
    return {
        "group": group,
        "people": torch.bincount(plain[test].cells, minlength=4).tolist(),
        "shifts": shifts,
        "measures": {name: plain[test].measures(each) for name, each in granted.items()},
        "over_people": {
            name: resampled(plain[test].labels, plain[test].groups, granted[OURS], each, how.draws, settings["seed"])
            for name, each in granted.items()
            if OURS in granted and name != OURS
        },
    }


def resampled(labels: Tensor, groups: Tensor, one: Tensor, other: Tensor, draws: int, seed: int) -> tuple[float, float]:
    """Where the difference of opportunity of one rule less another's lies in 95% of drawings of the same people anew.

    The positives of each group are drawn with replacement, as many as there are; both rules judge the same ones.

    Args:
        labels: 1 for the positive label, `(m,)`.
        groups: 0 or 1, `(m,)`.
        one: Whom the one rule recognises, `(m,)`.
        other: Whom the other one does, `(m,)`.
        draws: How often.
        seed: Of the drawings.

    Examples:
        >>> labels, groups = torch.ones(40).long(), torch.arange(40) % 2
        >>> resampled(labels, groups, labels, 1 - groups, 100, 0)
        (-1.0, -1.0)
    """
    generator = np.random.default_rng(seed)
    rates = []  # by group, (draws, 2): the shares that the two rules recognise
    for group in (0, 1):
        mine = (labels == 1) & (groups == group)
        together = torch.bincount(2 * one[mine] + other[mine], minlength=4).numpy()
        size = together.sum()
        counts = generator.multinomial(size, together / size, size=draws)
        rates.append(np.stack([counts[:, 2] + counts[:, 3], counts[:, 1] + counts[:, 3]], axis=1) / size)
    apart = np.abs(rates[0] - rates[1])
    low, high = np.quantile(apart[:, 0] - apart[:, 1], [0.025, 0.975]).tolist()
    return low, high


def _scored(case: Case, part: People, logits: Tensor, share: Tensor) -> _Scored:
    margin = logits[:, case.granted] - logits[:, 1 - case.granted]
    return _Scored((part.labels == case.granted).long(), part.groups, margin, share)


def _corrections(case: Case, model: nn.Module, training: People, group: int, seed: int) -> dict[str, Share]:
    """From people to each one's part of a correction, by name."""
    found: dict[str, Share] = {"blind threshold": lambda part: torch.ones(len(part))}
    if not isinstance(model, CPMuMoE):
        return found

    @torch.no_grad()
    def coefficients(part: People) -> Tensor:
        return torch.cat([model.gate(some)[0] for some in part.features.split(8192)])

    everyone = coefficients(training)
    mine = training.groups == group
    if case.positives:
        mine = mine & (training.labels == case.granted)
    ours = ExpertThreshold.of(everyone[mine], case.granted)
    excess = ExpertThreshold.of(everyone[mine], case.granted, everyone=everyone)

    def shuffled(part: People) -> Tensor:
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
        return ours.affinity(coefficients(part))[order]

    found["shuffled threshold"] = shuffled
    found[OURS] = lambda part: ours.affinity(coefficients(part))
    found["excess rule"] = lambda part: excess.affinity(coefficients(part))
    return found
