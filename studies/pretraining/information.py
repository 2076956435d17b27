"""How much an expert says about a label, in bits, and two things to hold it against.

Legend: ``S`` sequences or images, ``T`` tokens or patches of each, ``N`` experts, ``C`` classes, ``D`` features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from factorized_moe.interpret import LabelInformation

__all__ = ["mutual_information", "permuted", "perplexity", "random_gates", "shares"]


def shares(coefficients: Tensor, labels: Tensor) -> Tensor:
    """What each expert and label add to their mutual information, in bits, ``(N, C)``.

    Args:
        coefficients: ``(S, T, N)``, each row adds up to 1.
        labels: ``(S, T)``, ints from 0.

    Examples:
        >>> shares(torch.eye(2).view(1, 2, 2), torch.tensor([[0, 1]])).tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    together = LabelInformation.of(coefficients, labels, draws=1).joint
    apart = together.sum(dim=1, keepdim=True) * together.sum(dim=0, keepdim=True)
    return torch.where(together > 0, together * (together / apart).log2(), 0.0)


def mutual_information(coefficients: Tensor, labels: Tensor) -> float:
    """The mutual information of label and expert, in bits: 0 if no expert says anything about the label.

    Args:
        coefficients: ``(S, T, N)``.
        labels: ``(S, T)``.

    Examples:
        >>> labels = torch.tensor([[0, 1], [2, 3]])
        >>> round(mutual_information(torch.eye(4).view(2, 2, 4), labels), 6)
        2.0
    """
    return LabelInformation.of(coefficients, labels, draws=1).mutual_information.value


def perplexity(coefficients: Tensor) -> float:
    """How many equal experts a token is shared by: exp of the mean entropy of its coefficients.

    Args:
        coefficients: ``(S, T, N)``.

    Examples:
        >>> perplexity(torch.full((2, 2, 4), 0.25))
        4.0
    """
    entropies = torch.special.entr(coefficients.double()).sum(dim=-1)
    return float(entropies.mean().exp())


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
