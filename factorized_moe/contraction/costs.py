"""What a factorised tensor costs, from its network alone: parameters and the bound on an expert's matrix rank."""

from __future__ import annotations

import math

from factorized_moe.network import Node, TensorNetwork

__all__ = ["expert_rank_bound", "num_parameters"]


def num_parameters(network: TensorNetwork) -> int:
    """The number of parameters of a network; a shared parameter counts once.

    Examples:
        >>> from factorized_moe.decompositions import get_decomposition
        >>> num_parameters(get_decomposition("cp").network((8,), 16, 32, rank=4))  # 4 * (8 + 16 + 32)
        224
    """
    return sum(math.prod(shape) for shape in network.parameter_shapes.values())


def expert_rank_bound(network: TensorNetwork) -> int:
    """An upper bound on the rank of one expert's ``(I, O)`` matrix.

    With the expert labels fixed, the matrix factors through every set of labels that separates the input labels from
    the output labels, so its rank is at most the product of their sizes: a minimum cut, with ``log(size)`` as a
    label's capacity. Generic parameters of every built-in decomposition meet it; not those of every network. For a sum
    of networks the terms' bounds add up.

    Examples:
        >>> from factorized_moe.decompositions import get_decomposition
        >>> expert_rank_bound(get_decomposition("tr").network((8,), 16, 32, rank=(4, 4, 3, 4)))  # 3 * 4
        12
    """
    total = sum(_term_rank_bound(network, term) for term in network.terms)
    return min(total, *network.shape[-2:])


def _term_rank_bound(network: TensorNetwork, term: tuple[Node, ...]) -> int:
    import networkx  # costs 0.1 s to import, and only this function needs it

    graph = networkx.DiGraph()
    labels = {label for node in term for label in node.labels} - set(network.expert_labels)
    for label in labels:
        # A label is a pair of vertices joined by its capacity, so that cutting it once separates all its nodes.
        graph.add_edge(("enter", label), ("leave", label), capacity=math.log(network.sizes[label]))
    for node in term:
        for label in labels & set(node.labels):
            graph.add_edge(("leave", label), ("node", node.name))
            graph.add_edge(("node", node.name), ("enter", label))
    for label in network.in_labels:
        graph.add_edge("source", ("enter", label))
    for label in network.out_labels:
        graph.add_edge(("leave", label), "sink")
    _, (source_side, _) = networkx.minimum_cut(graph, "source", "sink")
    cut = [x for x in labels if ("enter", x) in source_side and ("leave", x) not in source_side]
    return network.size_of(cut)
