"""Measures of how a classifier treats groups of people, by fairlearn; needs the extra `fairness`.

Legend: ``m`` people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from factorized_moe._validation import check_values
from factorized_moe.interpret.measures.measurement import Measurement

__all__ = ["GroupMeasures", "measure_groups"]


@dataclass(frozen=True)
class GroupMeasures(Measurement):
    """Fairness measures of a binary classifier over groups of people.

    Attributes:
        accuracy: Over everybody.
        equality_of_opportunity: The largest less the smallest true-positive rate of a group: 0 is equal (Hardt, Price
            and Srebro 2016).
        std_of_accuracies: The standard deviation of the groups' accuracies, each group counting once (Wang and Deng
            2020).
        worst_accuracy: The smallest accuracy of a group, max-min fairness (Lahoti et al. 2020).
        accuracies: The accuracy of each group, by its number.
        true_positive_rates: The true-positive rate of each group, by its number.
    """

    accuracy: float
    equality_of_opportunity: float
    std_of_accuracies: float
    worst_accuracy: float
    accuracies: dict[int, float]
    true_positive_rates: dict[int, float]

    def columns(self) -> dict[str, list[Any]]:
        """One row for each group."""
        groups = sorted(self.accuracies)
        return {
            "group": groups,
            "accuracy": [self.accuracies[group] for group in groups],
            "true_positive_rate": [self.true_positive_rates[group] for group in groups],
        }


def measure_groups(labels: Tensor, predictions: Tensor, groups: Tensor) -> GroupMeasures:
    """Measure a binary classifier over groups.

    Args:
        labels: 1 for what is to be granted, 0 for the rest, ``(m,)``.
        predictions: The same as predicted, ``(m,)``.
        groups: The number of each person's group, ``(m,)``.

    Raises:
        ModuleNotFoundError: If fairlearn is not installed.
        ValueError: If the shapes differ, a value is neither 0 nor 1, there are fewer than two groups, or a group has
            nobody with label 1.

    Examples:
        >>> import torch
        >>> labels, predictions = torch.tensor([1, 1, 0, 1, 1, 0]), torch.tensor([1, 1, 0, 1, 0, 0])
        >>> found = measure_groups(labels, predictions, torch.tensor([0, 0, 0, 1, 1, 1]))
        >>> found.equality_of_opportunity, round(found.accuracy, 3), round(found.worst_accuracy, 3)
        (0.5, 0.833, 0.667)
    """
    try:
        from fairlearn import metrics
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "measure_groups needs fairlearn; install it with pip install 'factorized-moe[fairness]'"
        ) from error
    given = {"labels": labels, "predictions": predictions, "groups": groups}
    for name, values in given.items():
        check_values(name, values)
    truth, predicted, group = (np.asarray(tensor.numpy(force=True)) for tensor in given.values())
    if truth.ndim != 1 or not truth.shape == predicted.shape == group.shape:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in given.items())
        raise ValueError(f"measure_groups: {shapes}; expected one entry for each person, (m,)")
    for name, array in (("labels", truth), ("predictions", predicted)):
        if not np.isin(array, (0, 1)).all():
            raise ValueError(f"measure_groups: {name} are 0 or 1, got {sorted(set(array.tolist()))[:5]}")
    numbers = np.unique(group)
    if len(numbers) < 2:
        raise ValueError(f"measure_groups: {len(numbers)} groups, expected two or more to compare")
    lacking = [int(number) for number in numbers if not truth[group == number].any()]
    if lacking:
        raise ValueError(f"measure_groups: nobody of group {lacking[0]} has label 1, so it has no true-positive rate")
    rates = {"accuracy": _accuracy, "true positives": metrics.true_positive_rate}
    frame = metrics.MetricFrame(metrics=rates, y_true=truth, y_pred=predicted, sensitive_features=group)
    accuracies = frame.by_group["accuracy"]
    return GroupMeasures(
        accuracy=float(frame.overall["accuracy"]),
        equality_of_opportunity=float(frame.difference()["true positives"]),
        std_of_accuracies=float(accuracies.std(ddof=0)),
        worst_accuracy=float(frame.group_min()["accuracy"]),
        accuracies={int(number): float(value) for number, value in accuracies.items()},
        true_positive_rates={int(number): float(value) for number, value in frame.by_group["true positives"].items()},
    )


def _accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean(truth == predicted))
