"""Linear layers with a share of their rank: by singular vectors, by what inputs need of them, or at random.

All three replace ``W`` by ``L_k R_k``, the first ``k`` columns and rows of two factors, so that one factorisation gives
every rank.

Legend: ``I`` in_features, ``O`` out_features, ``r`` the smaller of them, ``k`` the rank that is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe.fitting.whitening import moment_roots
from factorized_moe.surgery.replacing.linears import read_linear

__all__ = ["METHODS", "Factors", "kept", "linears", "measure_moments", "truncated"]


@dataclass(frozen=True, eq=False)
class Factors:
    """Two factors of a weight, in the order in which they are kept.

    Attributes:
        left: ``(I, r)``.
        right: ``(r, O)``.
    """

    left: Tensor
    right: Tensor

    def at(self, rank: int) -> Tensor:
        """The weight of a rank, ``(I, O)``."""
        return self.left[:, :rank] @ self.right[:rank]


Method = Callable[[Tensor, Tensor, torch.Generator], Factors]
"""From a weight ``(I, O)``, the second moment of its inputs ``(I, I)`` and a generator."""


def by_singular_values(weight: Tensor, moment: Tensor, generator: torch.Generator) -> Factors:
    """The singular vectors of the weight, the largest first: the least error of the weight at every rank."""
    return _leading(weight, torch.eye(len(weight), dtype=torch.float64))


def by_activations(weight: Tensor, moment: Tensor, generator: torch.Generator) -> Factors:
    """The least error of the outputs at every rank, on inputs of this second moment: the library's whitening."""
    return _leading(weight, moment)


def _leading(weight: Tensor, moment: Tensor) -> Factors:
    """With ``S S = C``, the singular vectors of ``S W`` and what they are of ``W``: by the smaller Gram matrix."""
    wide = weight.double()
    if weight.shape[1] <= weight.shape[0]:
        vectors = torch.linalg.eigh(wide.T @ moment @ wide).eigenvectors.flip(-1)  # (O, O), the largest first
        return Factors((wide @ vectors).to(weight.dtype), vectors.T.to(weight.dtype))
    root = moment_roots(moment)
    white = root.regular @ wide
    vectors = torch.linalg.eigh(white @ white.T).eigenvectors.flip(-1)  # (I, I)
    return Factors((root.inverse @ vectors).to(weight.dtype), (vectors.T @ white).to(weight.dtype))


def at_random(weight: Tensor, moment: Tensor, generator: torch.Generator) -> Factors:
    """A random subspace of the smaller side, orthonormal: what a rank is worth if it is not chosen."""
    size = min(weight.shape)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=weight.dtype)).Q  # (r, r)
    narrow = weight.shape[0] <= weight.shape[1]
    return Factors(basis, basis.T @ weight) if narrow else Factors(weight @ basis, basis.T)


METHODS: dict[str, Method] = {"singular": by_singular_values, "activations": by_activations, "random": at_random}
"""By the names that the file of results has."""


def kept(weight: Tensor, share: float) -> int:
    """The rank that a share of all singular vectors is, at least 1.

    Examples:
        >>> kept(torch.zeros(10, 30), 0.25)
        3
    """
    return max(1, math.ceil(share * min(weight.shape)))


def linears(model: nn.Module, skip: tuple[str, ...] = ()) -> dict[str, nn.Module]:
    """The linear layers of a model by name.

    Args:
        model: The model.
        skip: Names that are left out, such as a head that is the transposed embedding.
    """
    return {n: part for n, part in model.named_modules() if n not in skip and read_linear(part) is not None}


def _weight(module: nn.Module) -> Tensor:
    read = read_linear(module)
    if read is None:
        raise TypeError(f"expected a linear layer, got {type(module).__name__}")
    return read.weight


@torch.no_grad()
def measure_moments(layers: Mapping[str, nn.Module], call: Callable[[], Any]) -> dict[str, Tensor]:
    """The second moments of the layers' inputs, ``(I, I)`` each, float64, while a function calls their model.

    Args:
        layers: The linear layers.
        call: Calls the model on inputs that are not measured on.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            rows = arguments[0].flatten(0, -2)
            sums[name] = sums.get(name, 0.0) + (rows.T @ rows).double()
            counts[name] = counts.get(name, 0) + len(rows)

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in layers.items()]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return {name: sums[name] / counts[name] for name in layers}


@contextmanager
def truncated(layers: Mapping[str, nn.Module], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give the layers other weights ``(I, O)`` for a block of code.

    Args:
        layers: The linear layers.
        weights: Theirs, by the same names.
    """
    old = {name: _weight(module).clone() for name, module in layers.items()}
    try:
        _set(layers, weights)
        yield
    finally:
        _set(layers, old)


@torch.no_grad()
def _set(layers: Mapping[str, nn.Module], weights: Mapping[str, Tensor]) -> None:
    for name, module in layers.items():
        _weight(module).copy_(weights[name])  # a view of the layer's own parameter
