"""What is measured of a trained head, each figure beside what chance gives."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from factorized_moe.interpret import BesideNull, LabelInformation, Polysemanticity
from studies.specialisation.heads import Outcome

__all__ = ["DRAWS", "measures"]

DRAWS = 10
SHUFFLES = 3


def measures(found: Outcome, labels: Tensor) -> dict[str, Any]:
    """The figures of one head; one that has a null is a list of its value, and the mean and spread of the null.

    Args:
        found: What is kept of the head.
        labels: The classes of the test samples, ``(m,)``.
    """
    result: dict[str, Any] = {
        "accuracy": round(found.accuracy, 5),
        "train_accuracy": round(found.train_accuracy, 5),
        "parameters": found.parameters,
    }
    if not found.coefficients.shape[1]:
        return result
    lost = Polysemanticity.of_counts(found.correct, found.correct_without)
    coefficients = found.coefficients.float()
    told = LabelInformation.of(coefficients, labels, len(found.correct), draws=SHUFFLES)
    drops = lost.accuracy_drop.amax(dim=-1)
    return {
        **result,
        "with_effect": int(lost.has_effect.sum()),
        "lost": round(float(lost.num_lost.double().mean()), 2),
        "largest_drop": round(float(drops[lost.has_effect].mean()), 5),
        **{name: _beside(value) for name, value in lost.summary(draws=DRAWS).measures.items()},
        "mutual_information": _beside(told.mutual_information),
        "use_concentration": _beside(told.concentration),
        "use_classes": _beside(told.effective_classes),
        "in_use": told.num_in_use,
        "experts_per_input": round(float((coefficients > 0).sum(dim=1).double().mean()), 3),
        "half": round(float((coefficients >= 0.5).any(dim=1).double().mean()), 4),
    }


def _beside(found: BesideNull) -> list[float]:
    return [round(value, 5) for value in (found.value, found.null_mean, found.null_spread)]
