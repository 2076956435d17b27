"""One matrix for all experts, plus what is each expert's own in CP form."""

from __future__ import annotations

from factorized_moe.decompositions.base import Decomposition
from factorized_moe.decompositions.registry import register
from factorized_moe.network import TensorNetwork

__all__ = ["SharedPrivate"]


class SharedPrivate(Decomposition):
    """One matrix that all experts share, plus a CP decomposition of their differences from it.

    ``W[n, .., i, o] = S[i, o] + sum_r A_0[n, r] .. B[i, r] C[r, o]``.

    When to use it: experts that are variations of one matrix, a pretrained one for instance; common knowledge is kept
    apart, as by the shared experts of Dai et al. 2024, arXiv 2401.06066. The first term lacks the expert modes:
    where the coefficients sum to 1 it is a plain linear layer, otherwise it is scaled by their sum.

    The rank is one int R. Costs: ``I O + R (sum N_k + I + O)`` parameters; about twice as many FLOPs a sample; experts
    of full rank.
    """

    def network(self, expert_dims: tuple[int, ...], in_features: int, out_features: int, rank: int) -> TensorNetwork:
        experts = {f"expert_{k}": f"expert_{k} rank" for k in range(len(expert_dims))}
        private = {**experts, "input": "in rank", "output": "rank out"}
        modes = in_features, out_features
        return TensorNetwork.from_modes((), *modes, nodes={"shared": "in out"}, bonds={}) + TensorNetwork.from_modes(
            expert_dims, *modes, nodes=private, bonds={"rank": rank}
        )


register("shared_private", SharedPrivate())
