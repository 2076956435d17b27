"""Train, find the wronged group, correct for it, measure: everything for one seed.

Legend: `m` people, `N` experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from factorized_moe import CPMuMoE
from factorized_moe.demo.training import Schedule, predict, reproducible, train
from factorized_moe.interpret import ExpertThreshold, GroupMeasures, choose_strength, intervene, measure_groups
from studies.bias_correction.adult import People

__all__ = ["Settings", "correct_for_seed"]

GRANTED = 1
"""The output of the class that people want: an income above 50,000 dollars."""


@dataclass(frozen=True)
class Settings:
    """What is trained, and how a correction is chosen.

    Attributes:
        experts: The experts of the head.
        rank: Its CP rank.
        epochs: Passes over the training people.
        most_accuracy_lost: The most validation accuracy that a correction may cost.
        largest_shift: The largest mean shift of a logit that is tried.
        steps: How many sizes of shift are tried.
        validation_share: The share of the training people that is kept to choose corrections on.
    """

    experts: int = 32
    rank: int = 16
    epochs: int = 5
    most_accuracy_lost: float = 0.01
    largest_shift: float = 3.0
    steps: int = 15
    validation_share: float = 0.15


@dataclass(frozen=True, eq=False)
class _Scored:
    """What a classifier makes of some people: logits `(m, 2)`, and how much of a correction each one gets, `(m,)`."""

    people: People
    logits: Tensor
    share: Tensor

    def measure(self, strength: float) -> GroupMeasures:
        logits = self.logits.clone()
        logits[:, GRANTED] += strength * self.share
        return measure_groups(self.people.labels, logits.argmax(dim=-1), self.people.groups)


def correct_for_seed(
    people: People, test: People, seed: int, settings: Settings
) -> tuple[dict[str, GroupMeasures], dict[str, float]]:
    """The measures on the test people of each classifier, before and after a correction, and the strengths chosen."""
    with reproducible(seed):
        order = torch.randperm(len(people))
        kept = round(settings.validation_share * len(people))
        validation, training = people[order[:kept]], people[order[kept:]]
        linear = _trained(nn.Linear(people.features.shape[1], 2), training, seed, settings)
        experts = CPMuMoE(people.features.shape[1], 2, expert_dims=[settings.experts], rank=settings.rank)
        _trained(experts, training, seed, settings)

    wronged = _wronged_group(experts, validation)
    (coefficients,) = experts.gate(training.features[training.groups == wronged])
    rule = ExpertThreshold.of(coefficients, GRANTED)

    def equally(part: People) -> Tensor:
        return torch.ones(len(part))

    def by_experts(part: People) -> Tensor:
        with torch.no_grad():
            return rule.affinity(experts.gate(part.features)[0])

    measures, strengths = {}, {}
    for name, model, correction, share in (
        ("linear", linear, "blind threshold", equally),
        ("experts", experts, "blind threshold", equally),
        ("experts", experts, "expert threshold", by_experts),
    ):
        chosen = _choose(model, validation, share, settings)
        scored = _Scored(test, predict(model, test.features), share(test))
        measures[name] = scored.measure(0.0)
        measures[f"{name}, {correction}"] = scored.measure(chosen)
        strengths[f"{name}, {correction}"] = chosen
    corrected = strengths["experts, expert threshold"]
    with intervene(experts, rule.intervention(corrected)):  # the same correction, inside the model
        predictions = predict(experts, test.features).argmax(dim=-1)
    measures["experts, expert threshold"] = measure_groups(test.labels, predictions, test.groups)
    return measures, strengths


def _trained(model: nn.Module, people: People, seed: int, settings: Settings) -> nn.Module:
    schedule = Schedule(epochs=settings.epochs, batch_size=512, learning_rate=1e-2)
    train(model, people.features, people.labels, schedule, seed, lambda: None)
    return model.eval()


def _wronged_group(model: nn.Module, people: People) -> int:
    """The group whose deserving members are granted least often."""
    rates = _Scored(people, predict(model, people.features), torch.zeros(len(people))).measure(0.0).true_positive_rates
    return min(rates, key=rates.__getitem__)


def _choose(model: nn.Module, people: People, share: Callable[[People], Tensor], settings: Settings) -> float:
    """The strength for the validation people. Candidates shift them by the same on average, whatever the correction."""
    scored = _Scored(people, predict(model, people.features), share(people))
    shifts = torch.linspace(0, settings.largest_shift, settings.steps + 1)
    candidates = (shifts / scored.share.mean()).tolist()
    return choose_strength(candidates, scored.measure, settings.most_accuracy_lost)
