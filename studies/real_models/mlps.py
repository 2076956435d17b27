"""A pretrained MLP by its parts, and what its linear layers are given and what their errors count for.

Legend: ``n`` rows (tokens), ``I`` in_features, ``F`` hidden features, ``O`` out_features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from factorized_moe.fitting.whitening import moment_roots

__all__ = ["MLP", "MeanOutput", "Moments", "Parts", "Plain", "bert_parts", "known_moments", "llama_parts", "low_rank"]


@dataclass(frozen=True)
class Parts:
    """The parts of an MLP: ``last(activation(first(x)))``, or ``last(activation(gate(x)) * up(x))``.

    Attributes:
        firsts: The one or two linear layers that read the input, a gate before its equal.
        activation: What is applied to the first of them.
        last: The linear layer that gives the output.
    """

    firsts: tuple[nn.Linear, ...]
    activation: nn.Module
    last: nn.Linear

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """All linear layers, in the order of application."""
        return (*self.firsts, self.last)

    def between(self, outputs: Sequence[Tensor]) -> Tensor:
        """What the last layer is given, ``(n, F)``, from what the first ones give."""
        hidden: Tensor = self.activation(outputs[0])
        return hidden if len(outputs) == 1 else hidden * outputs[1]


@dataclass(frozen=True)
class MLP:
    """An MLP of a model.

    Attributes:
        module: What computes it and `factorized_moe.surgery.upcycle` reads.
        parts: Finds the parts of the module, or of a copy.
    """

    module: nn.Module
    parts: Callable[[nn.Module], Parts]

    @property
    def parameters(self) -> int:
        """How many parameters it has."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def copied(self) -> tuple[nn.Module, Parts]:
        """A copy, and its parts."""
        module = copy.deepcopy(self.module)
        return module, self.parts(module)


class Plain(nn.Module):
    """An MLP of other parts in the same order; each may be any module."""

    def __init__(self, firsts: Sequence[nn.Module], activation: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.firsts = nn.ModuleList(firsts)
        self.activation = activation
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, I)`` to ``(*batch, O)``."""
        hidden = self.activation(self.firsts[0](x))
        if len(self.firsts) == 2:
            hidden = hidden * self.firsts[1](x)
        y: Tensor = self.last(hidden)
        return y


class MeanOutput(nn.Module):
    """The same output for every input: an ablated MLP. Zeros if no mean is given."""

    def __init__(self, mean: Tensor | None = None) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        """The mean, as often as there are inputs."""
        return torch.zeros_like(x) if self.mean is None else self.mean.expand_as(x)


def bert_parts(module: nn.Module) -> Parts:
    """The parts of ``nn.Sequential(first, activation, last)``."""
    first, activation, last = module.children()
    return Parts((first,), activation, last)  # type: ignore[arg-type]


def llama_parts(module: nn.Module) -> Parts:
    """The parts of transformers' gated MLP of the Llama kind."""
    gate, up, down = (module.get_submodule(name) for name in ("gate_proj", "up_proj", "down_proj"))
    return Parts((gate, up), module.get_submodule("act_fn"), down)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments at one linear layer, float64.

    Attributes:
        mean: Of the inputs, ``(I,)``.
        inputs: ``mean(x x^T)``, ``(I, I)``.
        outputs: What an error of the output counts for in the output of the MLP, ``(O, O)``: to first order
            ``mean(e^T M e)`` is its squared error for errors ``e`` that do not depend on the input. None for the MLP's
            own output, whose errors count alike.
    """

    mean: Tensor
    inputs: Tensor
    outputs: Tensor | None


def moments(parts: Parts, rows: Tensor) -> list[Moments]:
    """The moments of every linear layer, in the order of application.

    Args:
        parts: The MLP.
        rows: Its inputs, ``(n, I)``.
    """
    with torch.no_grad():
        outputs = [first(rows) for first in parts.firsts]
    outputs = [output.requires_grad_() for output in outputs]
    with torch.enable_grad():
        hidden = parts.between(outputs)
        slopes = torch.autograd.grad(hidden.sum(), outputs)  # every hidden feature depends on its own sums alone
    wide, inner = rows.double(), hidden.detach().double()
    below = wide.mT @ wide / len(wide)
    last = parts.last.weight.detach().double()
    found = []
    for slope in slopes:
        steep = slope.double()
        found.append(Moments(wide.mean(0), below, (last.mT @ last) * (steep.mT @ steep / len(steep))))
    return [*found, Moments(inner.mean(0), inner.mT @ inner / len(inner), None)]


@cache
def known_moments(mlp: MLP, rows: Tensor) -> list[Moments]:
    """The moments of an MLP, found once for the same rows."""
    return moments(mlp.parts(mlp.module), rows)


def low_rank(matrix: Tensor, inputs: Tensor, outputs: Tensor | None, rank: int) -> tuple[Tensor, Tensor]:
    """The two factors of the matrix of a rank that is nearest to a matrix, where errors count by second moments.

    Args:
        matrix: ``(I, O)``.
        inputs: Of what it is given, ``(I, I)``.
        outputs: Of what an error of its output counts for, ``(O, O)``; all alike by default.
        rank: The rank ``r``.

    Returns:
        ``(I, r)`` and ``(r, O)``, float64.

    Examples:
        >>> one, other = low_rank(torch.diag(torch.tensor([3.0, 2.0])), torch.diag(torch.tensor([0.1, 9.0])), None, 1)
        >>> (one @ other).round(decimals=6).tolist()
        [[0.0, 0.0], [0.0, 2.0]]
    """
    left = moment_roots(inputs.double())
    right = None if outputs is None else moment_roots(outputs.double())
    weighed = left.regular @ matrix.double()
    weighed = weighed if right is None else weighed @ right.regular
    vectors, values, others = torch.linalg.svd(weighed, full_matrices=False)
    root = values[:rank].sqrt()
    one, other = left.inverse @ (vectors[:, :rank] * root), root[:, None] * others[:rank]
    return one, other if right is None else other @ right.inverse


def uniform_(linear: nn.Linear, generator: torch.Generator) -> None:
    """PyTorch's own start of a linear layer, from a generator."""
    bound = 1.0 / math.sqrt(linear.in_features)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_((2.0 * torch.rand(parameter.shape, generator=generator) - 1.0) * bound)
