"""One contraction of tensors whose axes have names, for code that plans its own steps or has a single one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Named", "contract_named"]

Named = tuple[Sequence[str], Tensor]
"""A tensor with the labels of its axes."""


def contract_named(operands: Sequence[Named], output: Sequence[str]) -> Tensor:
    """The product of tensors, summed over all labels that the output lacks.

    Args:
        operands: Labels and tensor of each operand; a label has one size in all.
        output: The labels of the result, in order; each is one of some operand's.

    Examples:
        >>> a, b = torch.ones(2, 3), torch.ones(3, 4)
        >>> contract_named([(("in", "bond"), a), (("bond", "out"), b)], ("out", "in"))[0]
        tensor([3., 3.])
    """
    number = {label: k for k, label in enumerate(dict.fromkeys(x for labels, _ in operands for x in labels))}
    arguments: list[object] = []
    for labels, tensor in operands:
        arguments += [tensor, [number[label] for label in labels]]
    result: Tensor = torch.einsum(*arguments, [number[label] for label in output])
    return result
