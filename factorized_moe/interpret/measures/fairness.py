"""Measures of how a classifier treats groups of people, and weights that make its training data even.

Legend: ``m`` people, ``G`` groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from factorized_moe._validation import check_values
from factorized_moe.interpret.measures.measurement import Measurement

__all__ = ["GroupMeasures", "balancing_weights", "measure_groups"]

WIDEST = 2**16
"""Numbers of groups within this range are counted as they are; others are sorted first."""


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
        ValueError: If the shapes differ, a value is neither 0 nor 1, there are fewer than two groups, or a group has
            nobody with label 1.

    Examples:
        >>> import torch
        >>> labels, predictions = torch.tensor([1, 1, 0, 1, 1, 0]), torch.tensor([1, 1, 0, 1, 0, 0])
        >>> found = measure_groups(labels, predictions, torch.tensor([0, 0, 0, 1, 1, 1]))
        >>> found.equality_of_opportunity, round(found.accuracy, 3), round(found.worst_accuracy, 3)
        (0.5, 0.833, 0.667)
    """
    given = {"labels": labels, "predictions": predictions, "groups": groups}
    binary = _binary("measure_groups", given)
    place, numbers = _numbered(groups)
    counts = _cells("measure_groups", place, numbers, binary["labels"], binary["predictions"])  # (G, label, prediction)
    positives = counts[:, 1].sum(dim=1)
    if not bool((positives > 0).all()):
        lacking = numbers[int((positives == 0).nonzero()[0])]
        raise ValueError(f"measure_groups: nobody of group {lacking} has label 1, so it has no true-positive rate")
    correct, sizes = counts[:, 0, 0] + counts[:, 1, 1], counts.sum(dim=(1, 2))
    accuracies = correct / sizes
    rates = counts[:, 1, 1] / positives
    return GroupMeasures(
        accuracy=float(correct.sum() / sizes.sum()),
        equality_of_opportunity=float(rates.max() - rates.min()),
        std_of_accuracies=float(accuracies.std(correction=0)),
        worst_accuracy=float(accuracies.min()),
        accuracies=dict(zip(numbers, accuracies.tolist(), strict=True)),
        true_positive_rates=dict(zip(numbers, rates.tolist(), strict=True)),
    )


def balancing_weights(labels: Tensor, groups: Tensor) -> Tensor:
    """Weights with which every group has the same share of both labels: for oversampling, the simplest correction.

    Given to ``torch.utils.data.WeightedRandomSampler``, people of each pair of a group and a label are drawn equally
    often; times a loss, they count as much.

    Args:
        labels: 1 or 0, ``(m,)``.
        groups: The number of each person's group, ``(m,)``.

    Returns:
        ``(m,)``, float64, of mean 1: the same for people of one group and label.

    Raises:
        ValueError: If the shapes differ, a label is neither 0 nor 1, there are fewer than two groups, or a group lacks
            a label.

    Examples:
        >>> import torch
        >>> labels, groups = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
        >>> weights = balancing_weights(labels, groups)
        >>> [round(weight, 3) for weight in weights.tolist()]
        [0.667, 0.667, 0.667, 2.0, 2.0, 0.667, 0.667, 0.667]
        >>> drawn = torch.utils.data.WeightedRandomSampler(weights, len(weights))
    """
    binary = _binary("balancing_weights", {"labels": labels, "groups": groups})
    place, numbers = _numbered(groups)
    sizes = _cells("balancing_weights", place, numbers, binary["labels"]).double()  # (G, label)
    if not bool((sizes > 0).all()):
        group, label = (sizes == 0).nonzero()[0].tolist()
        raise ValueError(f"balancing_weights: nobody of group {numbers[group]} has label {label}, so nobody to draw")
    return (len(labels) / (sizes.numel() * sizes))[place, binary["labels"]]


def _binary(where: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """All but the groups as int64, after a look at shapes and values."""
    for name, values in given.items():
        check_values(name, values)
    if len({values.shape for values in given.values()}) > 1 or given["groups"].ndim != 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in given.items())
        raise ValueError(f"{where}: {shapes}; expected one entry for each person, (m,)")
    for name, values in given.items():
        if name != "groups" and not bool(((values == 0) | (values == 1)).all()):
            raise ValueError(f"{where}: {name} are 0 or 1, got {sorted(set(values.tolist()))[:5]}")
    return {name: values.long() for name, values in given.items() if name != "groups"}


def _numbered(groups: Tensor) -> tuple[Tensor, list[int]]:
    """Each person's place among the groups that there are, ``(m,)``, and their numbers, in order."""
    if groups.numel() and not groups.is_floating_point():
        groups = groups.long()
        least, most = (int(end) for end in groups.aminmax())
        if most - least < WIDEST:
            there = (groups - least).bincount() > 0
            numbers = (there.nonzero().squeeze(1) + least).tolist()
            return (there.cumsum(dim=0) - 1)[groups - least], numbers
    found, place = groups.unique(return_inverse=True)
    return place, [int(number) for number in found.tolist()]


def _cells(where: str, place: Tensor, numbers: list[int], *binary: Tensor) -> Tensor:
    """How many people there are of each group and each value of the others, ``(G, 2, ...)``."""
    if len(numbers) < 2:
        raise ValueError(f"{where}: {len(numbers)} groups, expected two or more to compare")
    for values in binary:
        place = 2 * place + values
    shape = (len(numbers), *(2 for _ in binary))
    return place.bincount(minlength=len(numbers) * 2 ** len(binary)).reshape(shape)
