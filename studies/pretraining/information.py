"""How much an expert says about a label, in bits, and two things to hold it against.

Legend: ``S`` sequences or images, ``T`` tokens or patches of each, ``N`` experts, ``C`` classes, ``D`` features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

__all__ = ["entropy", "joint", "mutual_information", "permuted", "perplexity", "random_gates", "shares"]


def joint(coefficients: Tensor, labels: Tensor) -> Tensor:
    """The joint distribution of label and expert, if an expert is drawn for each token by its coefficients.

    Args:
        coefficients: ``(S, T, N)``, each row adds up to 1.
        labels: ``(S, T)``, ints from 0.

    Returns:
        ``(C, N)``, float64.

    Examples:
        >>> joint(torch.tensor([[[1.0, 0.0], [0.5, 0.5]]]), torch.tensor([[0, 1]])).tolist()
        [[0.5, 0.0], [0.25, 0.25]]
    """
    rows, classes = coefficients.flatten(0, 1).double(), labels.flatten()
    sums = rows.new_zeros(int(classes.max()) + 1, rows.shape[1]).index_add_(0, classes, rows)
    return sums / sums.sum()


def shares(together: Tensor) -> Tensor:
    """What each label and expert add to their mutual information, in bits, ``(C, N)``.

    Args:
        together: From `joint`.
    """
    apart = together.sum(dim=1, keepdim=True) * together.sum(dim=0, keepdim=True)
    return torch.where(together > 0, together * (together / apart).log2(), 0.0)


def mutual_information(coefficients: Tensor, labels: Tensor) -> float:
    """The mutual information of label and expert, in bits: 0 if no expert says anything about the label.

    Args:
        coefficients: ``(S, T, N)``.
        labels: ``(S, T)``.

    Examples:
        >>> labels = torch.tensor([[0, 1], [2, 3]])
        >>> mutual_information(torch.eye(4).view(2, 2, 4), labels)
        2.0
        >>> mutual_information(torch.full((2, 2, 4), 0.25), labels)
        0.0
    """
    return float(shares(joint(coefficients, labels)).sum())


def entropy(labels: Tensor) -> float:
    """The entropy of the labels, in bits: the most that anything can say about them.

    Examples:
        >>> entropy(torch.tensor([[0, 1], [2, 3]]))
        2.0
    """
    counts = labels.flatten().bincount().double()
    chances = counts[counts > 0] / counts.sum()
    return float(-(chances * chances.log2()).sum())


def perplexity(coefficients: Tensor) -> float:
    """How many equal experts a token is shared by: 2 to the mean entropy of its coefficients.

    Examples:
        >>> perplexity(torch.full((2, 2, 4), 0.25))
        4.0
    """
    logs = coefficients.double().clamp_min(1e-30).log2()
    return float(2.0 ** -(coefficients * logs).sum(dim=-1).mean())


def permuted(labels: Tensor, within: bool, number: int, seed: int = 0) -> Iterator[Tensor]:
    """Labels that the coefficients know nothing of.

    Args:
        labels: ``(S, T)``.
        within: Whether each sequence's labels are drawn anew among its own places. If not, whole sequences of labels
            are exchanged, so that what comes of a place, or of neighbours being alike, stays in the null.
        number: How many.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        if within:
            yield labels.gather(1, torch.rand(labels.shape, generator=generator).argsort(dim=1))
        else:
            yield labels[torch.randperm(len(labels), generator=generator)]


def random_gates(
    inputs: Tensor, experts: int, activation: Callable[[Tensor], Tensor], temperature: float, number: int, seed: int = 0
) -> Iterator[Tensor]:
    """Coefficients of gates that were drawn and not trained, on what a trained gate sees.

    Args:
        inputs: ``(S, T, D)``.
        experts: ``N``.
        activation: The gate's.
        temperature: What its normalised logits are divided by.
        number: How many.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        logits = inputs @ torch.randn(inputs.shape[-1], experts, generator=generator)
        rows = logits.flatten(0, 1)
        yield activation((logits - rows.mean(dim=0)) / rows.std(dim=0) / temperature)
