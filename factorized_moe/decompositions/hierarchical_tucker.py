"""Hierarchical Tucker decomposition: a binary tree of small tensors over the modes."""

from __future__ import annotations

import math

from factorized_moe.decompositions.base import Decomposition, Rank
from factorized_moe.decompositions.registry import register
from factorized_moe.network import TensorNetwork

__all__ = ["HierarchicalTucker"]


def tree(modes: range) -> list[range]:
    """The vertices of the binary tree over some modes, each the range below it, halves before their whole."""
    middle = (modes.start + modes.stop) // 2
    halves = (range(modes.start, middle), range(middle, modes.stop)) if len(modes) > 1 else ()
    return [vertex for half in halves for vertex in tree(half)] + [modes]


class HierarchicalTucker(Decomposition):
    """A factor for each mode, joined in pairs by transfer tensors up to a root.

    Source: Hackbusch & Kuehn 2009, "A new scheme for the tensor representation", J. Fourier Anal. Appl. 15. The tree
    halves the modes, so input and output are a pair: with one expert mode, ``W[n, i, o] = sum A[n, a] R[a, d]
    T[b, c, d] B[i, b] C[c, o]``.

    When to use it: three expert modes or more, where Tucker's core grows with the power of their number and a tensor
    train relates distant modes only through all between them.

    The rank is one int for each vertex of the tree but its root, halves before their whole and left before right,
    ``(R_0, R_in, R_out, R_in_out)`` with one expert mode; or one int for all. Costs: ``sum N_k R_k + I R_in + R_out O``
    parameters, and for each whole the product of its rank and its halves'; about twice as many FLOPs a sample;
    experts of rank ``min(R_in, R_out)``.
    """

    def check_rank(self, rank: Rank, shape: tuple[int, ...]) -> Rank:
        count = 2 * len(shape) - 2
        ranks = (rank,) * count if isinstance(rank, int) else rank
        if len(ranks) != count:
            raise ValueError(
                f"rank of HierarchicalTucker is one int for each of the {count} vertices below the root of the tree "
                f"over the modes {shape}, got {ranks}"
            )
        return ranks

    def useful_rank(self, rank: tuple[int, ...], shape: tuple[int, ...]) -> Rank:  # type: ignore[override]
        below = [math.prod(shape[mode] for mode in vertex) for vertex in tree(range(len(shape)))]
        return tuple(min(size, inside, below[-1] // inside) for size, inside in zip(rank, below[:-1], strict=True))

    def network(
        self, expert_dims: tuple[int, ...], in_features: int, out_features: int, rank: tuple[int, ...]
    ) -> TensorNetwork:
        labels = [*(f"expert_{k}" for k in range(len(expert_dims))), "in", "out"]
        names = {"in": "input", "out": "output"}
        vertices = tree(range(len(labels)))
        bond = {vertex: "_".join(["rank", *(labels[mode] for mode in vertex)]) for vertex in vertices[:-1]}
        nodes: dict[str, tuple[str, ...]] = {}
        for vertex in vertices:
            if len(vertex) == 1:
                label = labels[vertex.start]
                nodes[names.get(label, label)] = (bond[vertex], label) if label == "out" else (label, bond[vertex])
            else:
                middle = (vertex.start + vertex.stop) // 2
                halves = bond[range(vertex.start, middle)], bond[range(middle, vertex.stop)]
                transfer = "_".join(["transfer", *(labels[mode] for mode in vertex)]) if vertex in bond else "root"
                nodes[transfer] = (*halves, bond[vertex]) if vertex in bond else halves
        bonds = dict(zip(bond.values(), rank, strict=True))
        return TensorNetwork.from_modes(expert_dims, in_features, out_features, nodes=nodes, bonds=bonds)


register("hierarchical_tucker", HierarchicalTucker(), aliases=("ht", "htucker"))
