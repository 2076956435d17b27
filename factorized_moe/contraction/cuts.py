"""The rank of a matrix that a network's dense tensor is arranged to: at most the smallest cut between its two sides.

`expert_rank_bound` asks this of one expert's matrix. Here the two sides are free, so that a fit knows the singular
values it has to leave out, and a search over ranks reads thousands of bounds from one list of cuts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import lru_cache

from factorized_moe.network import TensorNetwork

__all__ = ["MOST_NODES", "bounding_cuts", "rank_bound", "separating_labels"]

MOST_NODES = 14
"""Cuts are listed over all ways to put a term's nodes on two sides; for more nodes no bound is given."""

Cuts = tuple[frozenset[str], ...]


def rank_bound(network: TensorNetwork, rows: Iterable[str], columns: Iterable[str]) -> int:
    """An upper bound on the rank of the dense tensor as a matrix, between two groups of its labels.

    External labels in neither group are held fixed: ``rank_bound(network, in_labels, out_labels)`` is about one
    expert's matrix. The terms of a sum add up.

    Args:
        network: The network, without its padding.
        rows: Labels of the matrix's rows.
        columns: Labels of its columns.

    Returns:
        The bound, at most the smaller side of the matrix. It is that side if a term has more than `MOST_NODES` nodes.

    Examples:
        >>> from factorized_moe.decompositions import get_decomposition
        >>> ring = get_decomposition("tr").network((64,), 16, 32, rank=(4, 5, 3, 4))
        >>> rank_bound(ring, ["in"], ["out"]), rank_bound(ring, ["expert_0"], ["in", "out"])
        (12, 20)
    """
    left, right = frozenset(rows), frozenset(columns)
    sides = network.size_of(left), network.size_of(right)
    cuts = bounding_cuts(network, left, right)
    if cuts is None:
        return min(sides)
    return min(*sides, sum(min(network.size_of(cut) for cut in found) for found in cuts))


def bounding_cuts(network: TensorNetwork, rows: frozenset[str], columns: frozenset[str]) -> tuple[Cuts, ...] | None:
    """For each term the sets of labels whose products of sizes `rank_bound` takes the smallest of.

    Args:
        network: The network, of which the labels alone matter.
        rows: Labels of the matrix's rows.
        columns: Labels of its columns.

    Returns:
        The sets, or ``None`` if a term has more than `MOST_NODES` nodes.
    """
    terms = tuple(tuple(node.labels for node in term) for term in network.terms)
    if any(len(term) > MOST_NODES for term in terms):
        return None
    external = frozenset(network.external_labels)
    return tuple(separating_labels(term, rows, columns, external) for term in terms)


@lru_cache(maxsize=1024)
def separating_labels(
    nodes: tuple[tuple[str, ...], ...], rows: frozenset[str], columns: frozenset[str], external: frozenset[str]
) -> Cuts:
    """The smallest sets of labels that separate rows from columns: all that a bound for any sizes depends on.

    Args:
        nodes: The labels of each node of one term.
        rows: Labels on the one side.
        columns: Labels on the other.
        external: The labels of all modes; those in neither group are held fixed and join nothing.
    """
    fixed = external - rows - columns
    carried = [frozenset(labels) - fixed for labels in nodes]
    found: set[frozenset[str]] = set()
    for sides in itertools.product((False, True), repeat=len(nodes)):
        left = rows.union(*(labels for labels, side in zip(carried, sides, strict=True) if not side))
        right = columns.union(*(labels for labels, side in zip(carried, sides, strict=True) if side))
        found.add((left & right) & frozenset().union(*carried))
    smallest: list[frozenset[str]] = []
    for cut in sorted(found, key=lambda cut: (len(cut), sorted(cut))):
        if not any(kept <= cut for kept in smallest):
            smallest.append(cut)
    return tuple(smallest)
