"""A rank from a budget and sizes, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from factorized_moe.budgets.budget import Budget, SizeLike
from factorized_moe.decompositions import Decomposition, get_decomposition
from factorized_moe.decompositions.base import Rank

__all__ = ["linears_of", "rank_for_budget", "rank_of_tensor"]


def rank_for_budget(
    expert_dims: Sequence[int],
    in_features: int,
    out_features: int,
    decomposition: str | Decomposition = "cp",
    *,
    hidden_features: int | None = None,
    bias: bool = True,
    input_norm: bool = False,
    gate_rank: int | None = None,
    **budget: Any,
) -> Rank:
    """The rank of a layer or a block for a budget: `Budget.rank`, with the budget's own arguments beside the layer's.

    Args:
        expert_dims: The number of experts ``N_k`` of each expert mode.
        in_features: The number of input features, ``I``.
        out_features: The number of output features, ``O``.
        decomposition: A registered name or an instance.
        hidden_features: ``H``, for the rank of both layers of a `MuMoEBlock`; both layers and the one gate count.
        bias: Whether every expert has a bias.
        input_norm: Whether there is a LayerNorm of the input, whose ``2 I`` parameters count.
        gate_rank: The rank ``r`` of the gate's weight, which then has ``r (I + sum(N_k))`` parameters.
        budget: As for `Budget`: one of ``parameters``, ``flops``, ``bytes`` and ``like``, and how they are counted.

    Returns:
        The rank, to be given to a layer.

    Raises:
        TypeError: As `Budget` and `Budget.rank`.
        ValueError: The same.

    Examples:
        >>> from torch import nn
        >>> rank_for_budget((256,), 768, 1000, "cp", like=nn.Linear(768, 1000))
        282
        >>> rank_for_budget((256,), 768, 1000, "cp", parameters=769_000, rounding="up")  # the paper's
        283
        >>> rank_for_budget((64,), 768, 768, "tt", parameters=3_000_000)
        (1, 8, 426, 1)
    """
    linears = linears_of(in_features, hidden_features, out_features)
    layer: dict[str, Any] = {"bias": bias, "input_norm": input_norm, "gate_rank": gate_rank}
    return Budget(**budget).rank(expert_dims, linears, decomposition, **layer)


def rank_of_tensor(rank: SizeLike, shape: tuple[int, ...], decomposition: str | Decomposition, *, bias: bool) -> Rank:
    """The canonical rank of one expert tensor, which has no gate.

    Args:
        rank: A rank, or a budget of the tensor's own parameters, bytes or FLOPs.
        shape: The dense shape, ``(*expert_dims, I (+1), O)``.
        decomposition: A registered name or an instance.
        bias: Whether the last row of the input mode is the bias.

    Raises:
        TypeError: If the rank is of no known type.
        ValueError: If it is out of range, or the budget is too small.
    """
    if not isinstance(rank, Budget):
        return get_decomposition(decomposition).resolve_rank(rank, shape)
    *expert_dims, rows, out_features = shape
    alone = replace(rank, count_gate=False)
    return alone.rank(expert_dims, [(rows - bias, out_features)], decomposition, bias=bias)


def linears_of(in_features: int, hidden_features: int | None, out_features: int) -> tuple[tuple[int, int], ...]:
    """``(I, O)`` of each layer: one, or two if there are hidden features."""
    if hidden_features is None:
        return ((in_features, out_features),)
    return (in_features, hidden_features), (hidden_features, out_features)
