"""The dense weight itself, one node: the baseline that every other decomposition is compared with."""

from __future__ import annotations

from factorized_moe.decompositions.base import Decomposition, Rank
from factorized_moe.decompositions.registry import register
from factorized_moe.network import TensorNetwork

__all__ = ["Dense"]


class Dense(Decomposition):
    """The weight itself as one parameter, without any factorisation: a baseline.

    When to use it: as the baseline, or for a few small experts. It has no bond, so a rank has nothing to say: any int
    is taken, so that ``"dense"`` stands in for another name in the same call, and becomes 1.

    Costs: ``prod(N_k) I O`` parameters; about ``2 prod(N_k) I O`` FLOPs a sample; experts of full rank.
    """

    def check_rank(self, rank: Rank, shape: tuple[int, ...]) -> Rank:
        super().check_rank(rank, shape)
        return 1

    def network(self, expert_dims: tuple[int, ...], in_features: int, out_features: int, rank: int) -> TensorNetwork:
        weight = (*(f"expert_{k}" for k in range(len(expert_dims))), "in", "out")
        return TensorNetwork.from_modes(expert_dims, in_features, out_features, nodes={"weight": weight}, bonds={})


register("dense", Dense())
