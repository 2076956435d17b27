"""Mixture of Decoders: experts that share one matrix and scale its columns, each in its own way."""

from __future__ import annotations

import math

from factorized_moe.decompositions.base import Decomposition, Rank
from factorized_moe.decompositions.registry import register
from factorized_moe.network import TensorNetwork

__all__ = ["MixtureOfDecoders"]


class MixtureOfDecoders(Decomposition):
    """One full matrix that all experts share, its columns scaled by each in its own way (Oldfield et al. 2025).

    ``W[n, .., i, o] = sum_r D[i, r, o] C_0[n, r, o] ..``; with R = 1, ``W[n] = D diag(c_n)``.

    Source: "Towards interpretability without sacrifice: faithful dense layer decomposition with Mixture of
    Decoders", arXiv 2505.21364; there R is 1 and there is one expert mode.

    When to use it: thousands of experts of full rank, as in the decomposition of a dense layer into parts to
    interpret. N experts cost ``N O`` parameters beyond one dense matrix.

    The rank is one int R. Costs: ``R O (I + sum N_k)`` parameters; about twice as many FLOPs a sample; experts of
    full rank. Without expert modes R is 1.
    """

    def useful_rank(self, rank: int, shape: tuple[int, ...]) -> Rank:  # type: ignore[override]
        return min(rank, math.prod(shape[:-2]))

    def network(self, expert_dims: tuple[int, ...], in_features: int, out_features: int, rank: int) -> TensorNetwork:
        bonds = {"rank": rank} if expert_dims else {}
        experts = {f"expert_{k}": (f"expert_{k}", *bonds, "out") for k in range(len(expert_dims))}
        nodes = {**experts, "decoder": ("in", *bonds, "out")}
        return TensorNetwork.from_modes(expert_dims, in_features, out_features, nodes=nodes, bonds=bonds)


register("mixture_of_decoders", MixtureOfDecoders(), aliases=("mxd",))
