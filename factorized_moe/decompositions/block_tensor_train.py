"""Block tensor train: each expert is a structured matrix, two block-diagonal ones with a permutation between."""

from __future__ import annotations

from factorized_moe.decompositions.base import Decomposition, Rank
from factorized_moe.decompositions.grouping import factors, input_factors
from factorized_moe.decompositions.registry import register
from factorized_moe.network import TensorNetwork

__all__ = ["BlockTensorTrain"]


class BlockTensorTrain(Decomposition):
    """Each expert a product of two block-diagonal matrices, with a permutation between them.

    ``W[n, .., i_0 i_1, o_0 o_1] = sum_r P[n, .., i_0, i_1, o_1, r] Q[n, .., i_0, o_1, r, o_0]``.

    Source: Qiu et al. 2024, "Compute better spent: replacing dense layers with structured matrices", arXiv
    2406.06248; as experts Potapczynski et al. 2024, arXiv 2410.02117. R = 1 is a Monarch matrix. ``I = I_0 I_1`` and
    ``O = O_0 O_1`` are split as evenly as possible; an input without an even split is padded with zeros.

    When to use it: experts that share nothing and have a high rank, at a fraction of a dense matrix's compute.

    The rank is one int R. Costs: ``prod(N_k) R (I O_1 + O I_0)`` parameters; about twice as many FLOPs a sample, as
    soft coefficients visit all experts; experts of rank ``R I_0 O_1``.
    """

    def useful_rank(self, rank: int, shape: tuple[int, ...]) -> Rank:  # type: ignore[override]
        return min(rank, input_factors(shape[-2], 2)[1], factors(shape[-1], 2)[0])

    def network(self, expert_dims: tuple[int, ...], in_features: int, out_features: int, rank: int) -> TensorNetwork:
        experts = [f"expert_{k}" for k in range(len(expert_dims))]
        return TensorNetwork.from_modes(
            expert_dims,
            in_features,
            out_features,
            nodes={
                "input": ("in_0", "in_1", *experts, "out_1", "rank"),
                "output": ("out_1", *experts, "in_0", "rank", "out_0"),
            },
            bonds={"rank": rank},
            in_labels=dict(zip(("in_0", "in_1"), input_factors(in_features, 2), strict=True)),
            out_labels=dict(zip(("out_0", "out_1"), factors(out_features, 2), strict=True)),
        )


register("block_tensor_train", BlockTensorTrain(), aliases=("btt", "monarch"))
