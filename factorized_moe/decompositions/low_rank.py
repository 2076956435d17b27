"""Low-rank experts: each expert has its own pair of thin matrices."""

from __future__ import annotations

from factorized_moe.decompositions.base import Decomposition, Rank
from factorized_moe.decompositions.registry import register
from factorized_moe.network import TensorNetwork

__all__ = ["LowRank"]


class LowRank(Decomposition):
    """Two thin matrices for each expert: a mixture of LoRA adapters (Hu et al. 2021).

    ``W[n, .., i, o] = sum_r U[n, .., i, r] V[n, .., r, o]``.

    When to use it: experts that share nothing, such as adapters that were trained apart, or light experts beside a
    frozen layer (Zadouri et al. 2023, arXiv 2309.05444).

    The rank is one int R. Costs: ``prod(N_k) R (I + O)`` parameters; about twice as many FLOPs a sample, as soft
    coefficients visit all experts; experts of rank R.
    """

    def useful_rank(self, rank: int, shape: tuple[int, ...]) -> Rank:  # type: ignore[override]
        return min(rank, *shape[-2:])

    def network(self, expert_dims: tuple[int, ...], in_features: int, out_features: int, rank: int) -> TensorNetwork:
        experts = [f"expert_{k}" for k in range(len(expert_dims))]
        nodes = {"input": ("in", *experts, "rank"), "output": (*experts, "rank", "out")}
        return TensorNetwork.from_modes(expert_dims, in_features, out_features, nodes=nodes, bonds={"rank": rank})


register("low_rank", LowRank(), aliases=("lora",))
