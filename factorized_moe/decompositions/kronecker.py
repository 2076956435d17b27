"""Kronecker decomposition: each expert is a mixture of Kronecker products that all experts share."""

from __future__ import annotations

import math

from factorized_moe.decompositions.base import Decomposition, Rank
from factorized_moe.decompositions.grouping import factors, input_factors
from factorized_moe.decompositions.registry import register
from factorized_moe.network import TensorNetwork

__all__ = ["Kronecker"]


class Kronecker(Decomposition):
    """Experts that mix Kronecker products which all of them share.

    ``W[n, ..] = sum_r A_0[n, r] .. kron(L_r, M_r)`` with ``L_r`` of shape ``(I_0, O_0)`` and ``M_r`` ``(I_1, O_1)``.

    Source: Van Loan & Pitsianis 1993, "Approximation with Kronecker products"; as a layer Zhang et al. 2021, arXiv
    2102.08597. ``I = I_0 I_1`` and ``O = O_0 O_1`` are split as evenly as possible; an input without an even split is
    padded with zeros.

    When to use it: matrices of high rank from very few parameters, above all where features form a grid (channels
    by positions, heads by features).

    The rank is one int R. Costs: ``R (sum N_k + I_0 O_0 + I_1 O_1)`` parameters; about ``2 R O_1 (I + I_0 O_0)`` FLOPs
    a sample, or ``2 R O_0 (I + I_1 O_1)``; one product alone has rank ``min(I_0, O_0) min(I_1, O_1)``.
    """

    def useful_rank(self, rank: int, shape: tuple[int, ...]) -> Rank:  # type: ignore[override]
        pairs = zip(input_factors(shape[-2], 2), factors(shape[-1], 2), strict=True)
        sizes = [*shape[:-2], *(inputs * outputs for inputs, outputs in pairs)]
        return min(rank, math.prod(sizes) // max(sizes))

    def network(self, expert_dims: tuple[int, ...], in_features: int, out_features: int, rank: int) -> TensorNetwork:
        experts = {f"expert_{k}": f"expert_{k} rank" for k in range(len(expert_dims))}
        return TensorNetwork.from_modes(
            expert_dims,
            in_features,
            out_features,
            nodes={**experts, "left": "in_0 rank out_0", "right": "in_1 rank out_1"},
            bonds={"rank": rank},
            in_labels=dict(zip(("in_0", "in_1"), input_factors(in_features, 2), strict=True)),
            out_labels=dict(zip(("out_0", "out_1"), factors(out_features, 2), strict=True)),
        )


register("kronecker", Kronecker(), aliases=("lokr",))
