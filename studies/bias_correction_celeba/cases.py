"""What is predicted, for whom it is corrected, and one run: a classifier trained, corrected in every way, measured.

Legend: `m` people, `N` experts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe import CPMuMoE
from factorized_moe.demo.training import Schedule, predict, reproducible, train
from factorized_moe.interpret import ExpertThreshold, balancing_weights, choose_strength, measure_groups
from studies.bias_correction.adult import People
from studies.bias_correction_celeba.faces import Parts

__all__ = ["CASES", "MODELS", "TRAININGS", "Case", "Settings", "correct"]


@dataclass(frozen=True)
class Case:
    """A prediction and the people that it is corrected for.

    Attributes:
        name: What the page calls it.
        attribute: The attribute that is predicted.
        granted: Its value that counts as the positive label.
        group: The group that is corrected for; `None` for the one whose positives are recognised least often.
        positives: Whether the correction is learned from the group's positives alone, or from the whole group.
    """

    name: str
    attribute: str
    granted: int
    group: int | None
    positives: bool


CASES = (
    Case("Young by sex", "Young", 1, None, False),
    Case("Blond hair by sex", "Blond_Hair", 1, None, False),
    Case("Old women", "Young", 0, 0, True),
    Case("Blond men", "Blond_Hair", 1, 1, True),
)
MODELS = ("linear", "two-layer linear", "CP")
TRAININGS = ("as it is", "oversampled")


@dataclass(frozen=True)
class Settings:
    """What is trained, and how a correction is chosen.

    Attributes:
        experts: The experts of the CP head.
        rank: Its rank.
        width: The hidden features of the two-layer linear classifier: with 223 it has the CP head's parameters.
        epochs: Passes over the training people.
        batch_size: People of one step.
        learning_rate: AdamW's largest, of every classifier.
        most_accuracy_lost: The most validation accuracy that a correction may cost.
        largest_shift: The largest mean shift of a logit that is tried.
        steps: How many sizes of shift are tried.
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


@dataclass(frozen=True, eq=False)
class _Scored:
    """Some people with how far each is above the threshold, `(m,)`, and each one's part of a correction, `(m,)`."""

    labels: Tensor
    groups: Tensor
    margin: Tensor
    share: Tensor

    def granted(self, strength: float) -> Tensor:
        return (self.margin + strength * self.share > 0).long()

    def measures(self, strength: float, group: int) -> dict[str, float]:
        granted = self.granted(strength)
        found = measure_groups(self.labels, granted, self.groups)
        cells = 2 * self.groups + self.labels
        accuracies = torch.bincount(cells[granted == self.labels], minlength=4) / torch.bincount(cells, minlength=4)
        values = {name: value for name, value in asdict(found).items() if isinstance(value, float)}
        return values | {
            "std_of_cells": float(accuracies.std(correction=0)),
            "worst_cell": float(accuracies.min()),
            "recognised": found.true_positive_rates[group],
        }


def correct(settings: Mapping[str, Any], parts: Parts, how: Settings) -> dict[str, Any]:
    """Train one classifier, and measure it in every case of its attribute before and after each correction.

    Args:
        settings: ``attribute``, ``model``, ``training`` and ``seed``.
        parts: The people.
        how: The sizes.

    Returns:
        ``cases``: by the case's name the group, the mean shift chosen for each correction, and its measures on the test
        people. ``cpu_seconds``: how long it took.
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
    found = {}
    for case in CASES:
        if case.attribute == settings["attribute"]:
            corrected = settings["training"] == "as it is"
            found[case.name] = _measure(case, model, training, logits, corrected, how)
    return {"cases": found, "cpu_seconds": round(time.process_time() - begun, 2)}


def _model(name: str, features: int, how: Settings) -> nn.Module:
    if name == "CP":
        return CPMuMoE(features, 2, expert_dims=[how.experts], rank=how.rank)
    if name == "linear":
        return nn.Linear(features, 2)
    return nn.Sequential(nn.Linear(features, how.width), nn.Linear(how.width, 2))


def _measure(
    case: Case, model: nn.Module, training: People, logits: Mapping[People, Tensor], corrected: bool, how: Settings
) -> dict[str, Any]:
    validation, test = logits
    plain = {part: _scored(case, part, logits[part], torch.ones(len(part))) for part in (validation, test)}
    group = case.group
    if group is None:
        rates = measure_groups(plain[validation].labels, plain[validation].granted(0.0), validation.groups)
        group = min(rates.true_positive_rates, key=rates.true_positive_rates.__getitem__)
    shifts, measures = {}, {"none": plain[test].measures(0.0, group)}
    for name, share in _corrections(case, model, training, group).items() if corrected else ():
        tried = _scored(case, validation, logits[validation], share(validation))
        mean = float(tried.share.mean())
        candidates = torch.linspace(0, how.largest_shift, how.steps + 1) / max(mean, 1e-9)
        strength = choose_strength(
            candidates.tolist(),
            lambda strength, tried=tried: measure_groups(tried.labels, tried.granted(strength), tried.groups),
            how.most_accuracy_lost,
        )
        shifts[name] = strength * mean
        measures[name] = _scored(case, test, logits[test], share(test)).measures(strength, group)
    return {"group": group, "shifts": shifts, "measures": measures}


def _scored(case: Case, part: People, logits: Tensor, share: Tensor) -> _Scored:
    margin = logits[:, case.granted] - logits[:, 1 - case.granted]
    return _Scored((part.labels == case.granted).long(), part.groups, margin, share)


def _corrections(case: Case, model: nn.Module, training: People, group: int) -> dict[str, Callable[[People], Tensor]]:
    """From people to each one's part of a correction, by name."""
    found: dict[str, Callable[[People], Tensor]] = {"blind threshold": lambda part: torch.ones(len(part))}
    if not isinstance(model, CPMuMoE):
        return found

    @torch.no_grad()
    def coefficients(part: People) -> Tensor:
        return torch.cat([model.gate(some)[0] for some in part.features.split(8192)])

    everyone = coefficients(training)
    mine = training.groups == group
    if case.positives:
        mine = mine & (training.labels == case.granted)
    rules = {
        "expert threshold": ExpertThreshold.of(everyone[mine], case.granted),
        "excess rule": ExpertThreshold.of(everyone[mine], case.granted, everyone=everyone),
    }
    for name, rule in rules.items():
        found[name] = lambda part, rule=rule: rule.affinity(coefficients(part))
    return found
