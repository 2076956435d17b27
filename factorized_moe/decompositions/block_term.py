"""Block-term decomposition: a sum of Tucker decompositions."""

from __future__ import annotations

from factorized_moe.decompositions.base import Decomposition, Rank
from factorized_moe.decompositions.registry import register
from factorized_moe.network import TensorNetwork

__all__ = ["BlockTerm"]


class BlockTerm(Decomposition):
    """A sum of small Tucker decompositions, the terms ``t``, each with a core of its own.

    ``W[n, .., i, o] = sum_t sum G[t, a, .., b, c] A_0[n, t, a] .. B[i, t, b] C[t, c, o]``.

    Source: De Lathauwer 2008, "Decompositions of a higher-order tensor in block terms, part II", SIAM J. Matrix Anal.
    Appl. 30(3), terms of rank (L, M, N). The term is a bond on every node: one contraction does all terms at once.

    When to use it: between CP (terms of rank 1) and Tucker (one term). Several small cores cost less than one core
    for all subspaces, which grows with the power of their number.

    The rank is the number of terms T, then one int for each mode, ``(T, R_0, .., R_in, R_out)``, or one int for all.
    Costs: ``T (sum N_k R_k + I R_in + R_out O + prod R)`` parameters; about twice as many FLOPs a sample; experts of
    rank ``T min(R_in, R_out)``.
    """

    def check_rank(self, rank: Rank, shape: tuple[int, ...]) -> Rank:
        ranks = (rank,) * (1 + len(shape)) if isinstance(rank, int) else rank
        if len(ranks) != 1 + len(shape):
            raise ValueError(
                f"rank of BlockTerm is the number of terms and one int for each of the {len(shape)} modes {shape}, "
                f"got {ranks}"
            )
        return ranks

    def useful_rank(self, rank: tuple[int, ...], shape: tuple[int, ...]) -> Rank:  # type: ignore[override]
        return (rank[0], *(min(size, mode) for size, mode in zip(rank[1:], shape, strict=True)))

    def network(
        self, expert_dims: tuple[int, ...], in_features: int, out_features: int, rank: tuple[int, ...]
    ) -> TensorNetwork:
        names = [f"expert_{k}" for k in range(len(expert_dims))]
        ranks = [f"rank_{name}" for name in [*names, "in", "out"]]
        experts = {name: f"{name} term rank_{name}" for name in names}
        nodes = {**experts, "input": "in term rank_in", "output": "term rank_out out", "core": ["term", *ranks]}
        bonds = dict(zip(["term", *ranks], rank, strict=True))
        return TensorNetwork.from_modes(expert_dims, in_features, out_features, nodes=nodes, bonds=bonds)


register("block_term", BlockTerm(), aliases=("btd",))
