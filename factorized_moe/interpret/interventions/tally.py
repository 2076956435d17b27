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
from factorized_moe.interpret.measures.specialisation import Polysemanticity

__all__ = ["Counterfactuals", "Tally"]


@dataclass(frozen=True, eq=False)
class Counterfactuals(Measurement):
    """How a model's predictions change when each expert of a mode is taken out, one at a time.

    Attributes:
        num_predictions: The number of predictions, one for each sample (and position).
        remade: For each expert the number of predictions that were made again without it, ``(N,)``: all others are of
            samples that give it a coefficient of 0.
        changed: For each expert the number of predictions that are others without it, ``(N,)``.
        mean_effect: The output minus the output without the expert, mean over all predictions, ``(N, C)``, float64.
        class_sizes: The number of predictions whose label is each class, ``(C,)``; ``None`` without labels.
        correct: Those of them that are correct, ``(C,)``; ``None`` without labels.
        correct_without: The same without each expert, ``(N, C)``; ``None`` without labels.
    """

    num_predictions: int
    remade: Tensor
    changed: Tensor
    mean_effect: Tensor
    class_sizes: Tensor | None = None
    correct: Tensor | None = None
    correct_without: Tensor | None = None

    def columns(self) -> dict[str, list[Any]]:
        """One row for each expert; with labels, how many correct predictions are lost without it."""
        found = {
            "expert": list(range(len(self.remade))),
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
        """How far each expert is from serving exactly one class: `Polysemanticity`.

        Raises:
            ValueError: If there were no labels.
        """
        return Polysemanticity.of_accuracies(self.accuracy, self.accuracy_without)

    def _share(self, correct: Tensor | None) -> Tensor:
        if correct is None or self.class_sizes is None:
            raise ValueError("the batches came without labels, so there is no accuracy; give (inputs, labels) pairs")
        return correct.double() / self.class_sizes


class Tally:
    """Counts in the making.

    Args:
        num_experts: ``N``.
        num_classes: ``C``.
        labelled: Whether predictions come with labels; it stays to be read.
        device: Where the counts are.
    """

    def __init__(self, num_experts: int, num_classes: int, labelled: bool, device: torch.device) -> None:
        self.labelled = labelled
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

    def add_pairs(self, experts: Tensor, outputs: Tensor, without: Tensor, labels: Tensor | None) -> None:
        """Count predictions made again without an expert.

        Args:
            experts: The expert of each pair, ``(p,)``.
            outputs: The output with all experts, ``(p, C)``.
            without: The output without the expert, ``(p, C)``.
            labels: ``(p,)``, or ``None`` if the tally is not labelled.
        """
        self._remade += experts.bincount(minlength=len(self._remade))
        self._effect.index_add_(0, experts, (outputs - without).double())
        before, after = outputs.argmax(dim=-1), without.argmax(dim=-1)
        self._changed += experts[before != after].bincount(minlength=len(self._changed))
        if labels is not None and self._gained is not None:
            gain = (after == labels).to(torch.int64) - (before == labels).to(torch.int64)
            self._gained.view(-1).index_add_(0, experts * self._gained.shape[1] + labels, gain)

    def result(self) -> Counterfactuals:
        """The counts and means so far."""
        effect = self._effect / max(1, self._predictions)
        counts = (self._predictions, self._remade, self._changed, effect)
        if self._sizes is None or self._correct is None or self._gained is None:
            return Counterfactuals(*counts)
        return Counterfactuals(*counts, self._sizes, self._correct, self._correct + self._gained)
