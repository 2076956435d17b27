"""Reading linear layers, however they store their weight.

Legend: ``I`` in_features, ``O`` out_features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe.surgery.distillation.capturing import in_evaluation_mode

__all__ = ["LinearWeights", "computes_weights", "is_linear", "read_linear", "read_linears"]


@dataclass(frozen=True)
class LinearWeights:
    """What a linear layer computes: ``x @ weight + bias``.

    Attributes:
        weight: ``(I, O)``.
        bias: ``(O,)`` or `None`.
    """

    weight: Tensor
    bias: Tensor | None

    def matrix(self, bias: bool) -> Tensor:
        """The weight, ``(I, O)``, with the bias, or zeros for none, as a last row ``(I + 1, O)`` if so wanted."""
        if not bias:
            return self.weight
        row = self.weight.new_zeros(self.weight.shape[1]) if self.bias is None else self.bias
        return torch.cat([self.weight, row[None]])


def read_linear(module: Any) -> LinearWeights | None:
    """The weights of an `nn.Linear`, or of the transposed ``Conv1D`` of GPT-2 in transformers; `None` for any other.

    Examples:
        >>> read_linear(nn.Linear(3, 5)).weight.shape
        torch.Size([3, 5])
        >>> read_linear(nn.ReLU()) is None
        True
    """
    if not isinstance(module, nn.Module):
        return None
    inputs, outputs = getattr(module, "nx", None), getattr(module, "nf", None)
    transposed = isinstance(inputs, int) and isinstance(outputs, int)
    if isinstance(module, nn.Linear):
        shape: tuple[Any, Any] = (module.out_features, module.in_features)
    elif transposed:
        shape = (inputs, outputs)
    else:
        return None
    with in_evaluation_mode(module):  # to read a weight under spectral_norm in training changes the module
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(weight, nn.UninitializedParameter):  # a lazy layer has no sizes yet
        return None
    # A quantised layer keeps its weight in another form.
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or tuple(weight.shape) != shape:
        return None
    weight = weight.detach()
    return LinearWeights(weight if transposed else weight.t(), None if bias is None else bias.detach())


def is_linear(module: Any) -> bool:
    """Whether `read_linear` can read a module."""
    return read_linear(module) is not None


def read_linears(modules: Iterable[nn.Module]) -> list[LinearWeights]:
    """The weights of linear layers.

    Raises:
        TypeError: If a module is none.
    """
    found = []
    for module in modules:
        read = read_linear(module)
        if read is None:
            raise TypeError(f"expected a linear layer, got {type(module).__name__}")
        found.append(read)
    return found


@torch.no_grad()
def computes_weights(module: nn.Module, tolerance: float = 0.02) -> bool:
    """Whether a linear layer computes what its weight and its bias say, on a random input.

    It may not because of hooks, a forward of its own as in LoRA, or a weight that is made anew at each call.

    Args:
        module: The linear layer.
        tolerance: The largest relative difference; half precision rounds to 1/128.

    Examples:
        >>> computes_weights(nn.Linear(3, 5))
        True
    """
    (read,) = read_linears([module])
    x = torch.randn(4, read.weight.shape[0], generator=torch.Generator().manual_seed(0)).to(read.weight)
    expected = x @ read.weight if read.bias is None else x @ read.weight + read.bias
    with in_evaluation_mode(module):
        found = module(x)
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    return bool((found - expected).norm() <= tolerance * expected.norm())
