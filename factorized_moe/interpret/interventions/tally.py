"""The results of taking experts out: counts and means over predictions, gathered pair by pair.

Legend: ``r`` predictions, ``p`` pairs of a prediction and an expert, ``N`` experts, ``C`` classes: the size of the
output's last axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factorized_moe.interpret.measures.measurement import Measurement
from factorized_moe.interpret.measures.polysemanticity import Polysemanticity

__all__ = ["Counterfactuals", "Tally"]

NO_LABELS = "the batches came without labels, so there is no accuracy; give (inputs, labels) pairs"


@dataclass(frozen=True, eq=False)
class Counterfactuals(Measurement):
    """How a model's predictions change when each expert of a mode is taken out, one at a time.

    Attributes:
        num_predictions: The number of predictions, one for each sample (and position). Those whose label is the
            ``ignore_index`` count neither here nor below.
        remade: For each expert the number of predictions that were made again without it, ``(N,)``: all others are of
            samples that give it a coefficient of 0.
        changed: For each expert the number of predictions that are others without it, ``(N,)``.
        mean_effect: The output minus the output without the expert, mean over all predictions, ``(N, C)``, float64.
        class_sizes: The number of predictions whose label is each class, ``(C,)``; ``None`` without labels.
        correct: Those of them that are correct, ``(C,)``; ``None`` without labels.
        correct_without: The same without each expert, ``(N, C)``; ``None`` without labels.
        experts: The numbers of the experts that were taken out, ``(N,)``; ``None`` for all of the mode.
    """

    num_predictions: int
    remade: Tensor
    changed: Tensor
    mean_effect: Tensor
    class_sizes: Tensor | None = None
    correct: Tensor | None = None
    correct_without: Tensor | None = None
    experts: Tensor | None = None

    def columns(self) -> dict[str, list[Any]]:
        """One row for each expert; with labels, how many correct predictions are lost without it."""
        found = {
            "expert": list(range(len(self.remade))) if self.experts is None else self.experts.tolist(),
            "remade": self.remade.tolist(),
            "changed": self.changed.tolist(),
        }
        if self.correct is not None and self.correct_without is not None:
            found["lost"] = (self.correct - self.correct_without).sum(dim=-1).tolist()
        return found

    @property
    def accuracy(self) -> Tensor:
        """The accuracy on each class, ``(C,)``, float64; NaN for a class without predictions.

        Raises:
            ValueError: If there were no labels.
        """
        return self._share(self.correct)

    @property
    def accuracy_without(self) -> Tensor:
        """The accuracy on each class without each expert, ``(N, C)``, float64.

        Raises:
            ValueError: If there were no labels.
        """
        return self._share(self.correct_without)

    def polysemanticity(self) -> Polysemanticity:
        """How far each expert is from serving exactly one class: `Polysemanticity`, whose ``summary`` has a null.

        Raises:
            ValueError: If there were no labels.
        """
        if self.correct is None or self.correct_without is None:
            raise ValueError(NO_LABELS)
        return Polysemanticity.of_counts(self.correct, self.correct_without)

    def _share(self, correct: Tensor | None) -> Tensor:
        if correct is None or self.class_sizes is None:
            raise ValueError(NO_LABELS)
        return correct.double() / self.class_sizes


class Tally:
    """Counts in the making.

    Args:
        experts: The numbers of the experts that are taken out, ``(N,)``, on the device where the counts are to be.
        num_classes: ``C``.
        labelled: Whether predictions come with labels; it stays to be read.
    """

    def __init__(self, experts: Tensor, num_classes: int, labelled: bool) -> None:
        num_experts, device = len(experts), experts.device
        self.labelled = labelled
        self._experts = experts
        self._predictions = 0
        self._remade = torch.zeros(num_experts, dtype=torch.int64, device=device)
        self._changed = self._remade.clone()
        self._effect = torch.zeros(num_experts, num_classes, dtype=torch.float64, device=device)
        self._sizes = torch.zeros(num_classes, dtype=torch.int64, device=device) if labelled else None
        self._correct = None if self._sizes is None else self._sizes.clone()
        self._gained = None if self._sizes is None else self._effect.to(torch.int64)  # correct without, less correct

    def add_predictions(self, outputs: Tensor, labels: Tensor | None) -> None:
        """Count predictions with all experts.

        Args:
            outputs: ``(r, C)``.
            labels: ``(r,)``, or ``None`` if the tally is not labelled.
        """
        self._predictions += len(outputs)
        if labels is not None and self._sizes is not None and self._correct is not None:
            self._sizes += labels.bincount(minlength=len(self._sizes))
            self._correct += labels[outputs.argmax(dim=-1) == labels].bincount(minlength=len(self._sizes))

    def add_expert(
        self, expert: int, outputs: Tensor, predicted: Tensor, without: Tensor, labels: Tensor | None
    ) -> None:
        """Count predictions made again without one expert.

        Args:
            expert: Its place among the experts.
            outputs: The output with all experts, ``(p, C)``.
            predicted: The class that it predicts, ``(p,)``.
            without: The output without the expert, ``(p, C)``.
            labels: ``(p,)``, or ``None`` if the tally is not labelled.
        """
        self._remade[expert] += len(outputs)
        self._effect[expert] += (outputs - without).double().sum(dim=0)
        after = without.argmax(dim=-1)
        other = (after != predicted).nonzero().squeeze(1)
        self._changed[expert] += len(other)
        if labels is not None and self._gained is not None:
            self._gained[expert] += _gains(predicted[other], after[other], labels[other], self._gained.shape[1])

    def add_pairs(
        self, experts: Tensor, outputs: Tensor, predicted: Tensor, without: Tensor, labels: Tensor | None
    ) -> None:
        """Count predictions made again without an expert.

        Args:
            experts: The place of each pair's expert among the experts, ``(p,)``.
            outputs: The output with all experts, ``(p, C)``.
            predicted: The class that it predicts, ``(p,)``.
            without: The output without the expert, ``(p, C)``.
            labels: ``(p,)``, or ``None`` if the tally is not labelled.
        """
        self._remade += experts.bincount(minlength=len(self._remade))
        self._effect.index_add_(0, experts, (outputs - without).double())
        after = without.argmax(dim=-1)
        other = (after != predicted).nonzero().squeeze(1)
        self._changed += experts[other].bincount(minlength=len(self._changed))
        if labels is not None and self._gained is not None:
            mine = labels[other]
            gain = (after[other] == mine).to(torch.int64) - (predicted[other] == mine).to(torch.int64)
            self._gained.view(-1).index_add_(0, experts[other] * self._gained.shape[1] + mine, gain)

    def result(self) -> Counterfactuals:
        """The counts and means so far."""
        effect = self._effect / max(1, self._predictions)
        counts = (self._predictions, self._remade, self._changed, effect)
        if self._sizes is None or self._correct is None or self._gained is None:
            return Counterfactuals(*counts, experts=self._experts)
        return Counterfactuals(*counts, self._sizes, self._correct, self._correct + self._gained, self._experts)


def _gains(before: Tensor, after: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How many more predictions of each class are correct, ``(C,)``, among those that changed."""
    return labels[after == labels].bincount(minlength=classes) - labels[before == labels].bincount(minlength=classes)
