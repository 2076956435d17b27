"""One part of a bond in all experts at once: what it adds to an output, and the model with it taken out or scaled.

A network is a sum over each of its bonds: of CP's rank, over ``R`` parts of rank 1 that all experts share.

Legend: ``B`` inputs, ``R`` the bond's size, ``O`` out_features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from factorized_moe._scalars import is_number, is_whole
from factorized_moe._validation import check_call, check_kind
from factorized_moe.contraction import Request, execute, make_plan
from factorized_moe.interpret.interventions.intervening import InterventionHandle
from factorized_moe.spread import whole
from factorized_moe.storage.container import Operands
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["bond_contributions", "scale_bond"]


def scale_bond(
    experts: FactorizedExpertTensor, bond: str, parts: int | Sequence[int] | Tensor, factor: float = 0.0
) -> InterventionHandle:
    """Scale some parts of a bond in all experts, biases included: for a ``with`` block, or until the handle's ``undo``.

    With a factor of 0 they are taken out. The parameters stay as they are.

    Args:
        experts: The experts: ``layer.experts``.
        bond: The bond's name in ``experts.network.bonds``, such as ``"rank"`` of CP.
        parts: The parts' numbers, counted from 0.
        factor: What they are multiplied by.

    Returns:
        The handle, also a context manager.

    Raises:
        TypeError: If something else than experts is given, a part is no int, or the factor no number.
        ValueError: If there is no such bond or part, one is given twice, or the factor is not finite.

    Examples:
        >>> w = FactorizedExpertTensor((8,), 16, 32, decomposition="cp", rank=4)
        >>> w.network.bonds
        ('rank',)
        >>> x, a = torch.randn(5, 16), [torch.rand(5, 8)]
        >>> with scale_bond(w, "rank", [0, 1, 2, 3]):
        ...     print(w(x, a).abs().sum().item())
        0.0
    """
    _check_bond(experts, bond)
    size = experts.network.sizes[bond]
    given = parts.tolist() if isinstance(parts, Tensor) else parts
    numbers = list(given) if isinstance(given, Iterable) else [given]
    if not all(is_whole(part) for part in numbers):
        raise TypeError(f"parts are ints counted from 0, got {numbers}")
    if not numbers or len(set(numbers)) < len(numbers) or not all(0 <= part < size for part in numbers):
        raise ValueError(f"parts are different numbers below {size}, the size of bond {bond!r}, got {numbers}")
    if not is_number(factor):
        raise TypeError(f"factor is a number, got {factor!r}")
    if not torch.isfinite(torch.tensor(float(factor))):
        raise ValueError(f"factor must be finite, got {factor}")
    hook = _Scaling(tuple(_carriers(experts, bond)), tuple(int(part) for part in numbers), size, float(factor))
    with ExitStack() as undo:
        undo.callback(experts.weight.register_forward_hook(hook).remove)
        return InterventionHandle(undo.pop_all())


@torch.no_grad()
def bond_contributions(experts: FactorizedExpertTensor, x: Tensor, coefficients: Sequence[Tensor], bond: str) -> Tensor:
    """What each part of a bond adds to the outputs, all experts together.

    Args:
        experts: The experts: ``layer.experts``.
        x: The experts' input, ``(B, I)``.
        coefficients: For each expert mode the gate's output, ``(B, N_k)``.
        bond: As for `scale_bond`.

    Returns:
        ``(B, R, O)``. The sum over the parts is the output; of a sum of networks, the output without the terms that
        lack the bond.

    Raises:
        TypeError: If dtypes or devices differ.
        ValueError: If there is no such bond, or a shape does not fit.

    Examples:
        >>> w = FactorizedExpertTensor((8,), 16, 32, decomposition="cp", rank=4)
        >>> x, a = torch.randn(5, 16), [torch.rand(5, 8)]
        >>> parts = bond_contributions(w, x, a, "rank")
        >>> parts.shape, torch.allclose(parts.sum(dim=1), w(x, a), atol=1e-5)
        (torch.Size([5, 4, 32]), True)
    """
    _check_bond(experts, bond)
    check_call(x, coefficients, experts.in_features, experts.expert_dims, experts.weight().operands[0])
    if x.ndim != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, {experts.in_features}): one row for each input")
    network, size = experts.network, experts.network.sizes[bond]
    vectors = (network.in_labels, *((label,) for label in network.expert_labels))
    if len(network.terms) == 1:
        operands = [whole(operand) for operand in experts.weight().operands]
        plan = make_plan(network, Request(vectors, (bond, *network.out_labels), append_one=experts.bias))
        return execute(plan, (*operands, x, *coefficients)).reshape(len(x), size, experts.out_features)
    with scale_bond(experts, bond, range(size)):
        rest: Tensor = experts(x, coefficients)
    found: list[Tensor] = []
    for part in range(size):
        with ExitStack() as alone:
            if others := [number for number in range(size) if number != part]:
                alone.enter_context(scale_bond(experts, bond, others))
            found.append(experts(x, coefficients) - rest)
    return torch.stack(found, dim=1)


@dataclass(frozen=True)
class _Scaling:
    """The hook of `scale_bond`; with the model it is copied and pickled.

    Attributes:
        places: For each term the number of a node that carries the bond, and the bond's axis there.
        parts: The parts' numbers.
        size: ``R``.
        factor: What they are multiplied by.
    """

    places: tuple[tuple[int, int], ...]
    parts: tuple[int, ...]
    size: int
    factor: float

    def __call__(self, module: nn.Module, inputs: object, output: Operands) -> Operands:
        changed = list(output.operands)
        for node, axis in self.places:
            factors = changed[node].new_ones(self.size)
            factors[torch.tensor(self.parts, device=factors.device)] = self.factor
            changed[node] = changed[node] * factors.reshape(-1, *(1,) * (changed[node].ndim - axis - 1))
        return Operands(tuple(changed))


def _check_bond(experts: FactorizedExpertTensor, bond: str) -> None:
    check_kind("experts", experts, FactorizedExpertTensor)
    if bond not in experts.network.bonds:
        raise ValueError(f"{bond!r} is no bond of the network; its bonds are {list(experts.network.bonds)}")


def _carriers(experts: FactorizedExpertTensor, bond: str) -> list[tuple[int, int]]:
    """For each term that has the bond, the number of one node that carries it and the bond's axis there."""
    places, number = [], 0
    for term in experts.network.terms:
        here = [(number + place, node.labels.index(bond)) for place, node in enumerate(term) if bond in node.labels]
        places += here[:1]
        number += len(term)
    return places
