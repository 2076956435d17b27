"""TT-matrix decomposition: a tensor train whose last cores each carry a part of the input and of the output."""

from __future__ import annotations

import math
from dataclasses import dataclass

from factorized_moe.decompositions.base import Decomposition, Rank
from factorized_moe.decompositions.grouping import factors, input_factors
from factorized_moe.decompositions.registry import register
from factorized_moe.network import TensorNetwork

__all__ = ["TTMatrix"]


@dataclass(frozen=True)
class TTMatrix(Decomposition):
    """A tensor train whose last cores each carry a part of the input and a part of the output.

    ``W[n, .., i, o] = G_0[n] .. M_0[i_0, o_0] M_1[i_1, o_1] ..``, a product of matrices.

    Source: Oseledets 2010, "Approximation of 2^d x 2^d matrices using tensor decomposition"; as a layer Novikov et
    al. 2015, arXiv 1509.06569. ``I`` and ``O`` are split into as many factors as there are cores, as evenly as
    possible; an input without an even split is padded with zeros.

    When to use it: extreme compression of wide layers; the parameters grow with the logarithm of the matrix's size.

    The rank is one int for each bond over the expert modes and then the cores, first and last included and equal to
    1, or one int for all inner bonds. Costs: ``sum r_k N_k r_(k+1) + sum r_j I_j O_j r_(j+1)`` parameters; of the order
    of ``I O_j r_j r_(j+1)`` FLOPs a sample for a core; the rank of experts is a minimum cut.

    Args:
        cores: How many cores the matrix is split into.
    """

    cores: int = 3

    def check_rank(self, rank: Rank, shape: tuple[int, ...]) -> Rank:
        count = len(shape) - 2 + self.cores
        ranks = (1, *(rank,) * (count - 1), 1) if isinstance(rank, int) else rank
        if len(ranks) != count + 1 or ranks[0] != 1 or ranks[-1] != 1:
            raise ValueError(
                f"rank of TTMatrix is one int for each of the {count + 1} bonds of {len(shape) - 2} expert modes and "
                f"{self.cores} cores, the first and last 1, got {ranks}"
            )
        return ranks

    def useful_rank(self, rank: tuple[int, ...], shape: tuple[int, ...]) -> Rank:  # type: ignore[override]
        pairs = zip(input_factors(shape[-2], self.cores), factors(shape[-1], self.cores), strict=True)
        sizes = [*shape[:-2], *(inputs * outputs for inputs, outputs in pairs)]
        ranks = [1]
        for k in range(1, len(sizes)):
            ranks.append(min(rank[k], ranks[-1] * sizes[k - 1], math.prod(sizes[k:])))
        return (*ranks, 1)

    def network(
        self, expert_dims: tuple[int, ...], in_features: int, out_features: int, rank: tuple[int, ...]
    ) -> TensorNetwork:
        experts, cores = len(expert_dims), range(self.cores)
        bonds = {f"bond_{k}": size for k, size in enumerate(rank[1:-1], start=1)}
        nodes: dict[str, tuple[str, ...]] = {}
        for k in range(experts):
            nodes[f"expert_{k}"] = (f"expert_{k}", f"bond_{k}", f"bond_{k + 1}")
        # The input is contracted from the last core on: its bond to the right is summed with it, and lies beside it.
        for j in cores:
            nodes[f"core_{j}"] = (f"in_{j}", f"bond_{experts + j + 1}", f"bond_{experts + j}", f"out_{j}")
        return TensorNetwork.from_modes(
            expert_dims,
            in_features,
            out_features,
            nodes={
                name: [x for x in labels if not x.startswith("bond") or x in bonds] for name, labels in nodes.items()
            },
            bonds=bonds,
            in_labels={f"in_{j}": size for j, size in zip(cores, input_factors(in_features, self.cores), strict=True)},
            out_labels={f"out_{j}": size for j, size in zip(cores, factors(out_features, self.cores), strict=True)},
        )


register("tt_matrix", TTMatrix(), aliases=("ttm", "mpo"))
