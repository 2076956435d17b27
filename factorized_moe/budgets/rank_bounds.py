"""The bounds of many ranks from the cuts of one network.

A bound of a rank (`LayerCosts.rank_bounds`) is the least product of sizes over the cuts of its network. Where the size
of every label is a number or one entry of the rank, cuts are products of entries, the same ones at every rank, and
a bound is a few multiplications. A search asks for a hundred thousand bounds; to make a network for each of them took
nearly all of its time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import ge

from factorized_moe.budgets.pricing import LayerCosts, Matrix, bounded_matrices
from factorized_moe.contraction.cuts import bounding_cuts
from factorized_moe.decompositions.base import Rank
from factorized_moe.network import TensorNetwork

__all__ = ["RankBounds", "bounds_of"]


class RankBounds(ABC):
    """Both bounds of a rank, as functions of its free values."""

    @abstractmethod
    def reach(self, values: Sequence[int], wanted: tuple[int, int]) -> bool:
        """Whether both bounds of some values are at least those wanted."""

    @abstractmethod
    def least(self, values: Sequence[int], varied: int, wanted: tuple[int, int]) -> int:
        """The smallest value at one position with which both bounds are still reached, as they are with its own."""


class _Asked(RankBounds):
    """Bounds of any decomposition, each asked of the networks of a rank."""

    def __init__(self, ask: Callable[[Sequence[int]], tuple[int, int]]) -> None:
        self._ask = ask

    def reach(self, values: Sequence[int], wanted: tuple[int, int]) -> bool:
        return all(map(ge, self._ask(tuple(values)), wanted))

    def least(self, values: Sequence[int], varied: int, wanted: tuple[int, int]) -> int:
        return _smallest(values, varied, lambda some: self.reach(some, wanted))


def _smallest(values: Sequence[int], varied: int, holds: Callable[[Sequence[int]], bool]) -> int:
    """The smallest value at one position that holds, by bisection; its own one is taken to hold."""
    low, high = 0, values[varied]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds([*values[:varied], middle, *values[varied + 1 :]]) else (middle, high)
    return high


@dataclass(frozen=True)
class _Product:
    """A number times the values at some positions, which may occur more than once."""

    factor: int
    positions: tuple[int, ...]

    def of(self, values: Sequence[int]) -> int:
        return self.factor * math.prod([values[p] for p in self.positions])

    def never_above(self, other: _Product) -> bool:
        """Whether it is at most the other one, whatever the values."""
        counts = (self.positions.count(p) <= other.positions.count(p) for p in self.positions)
        return self.factor <= other.factor and all(counts)


@dataclass(frozen=True)
class _Bound:
    """The bound of one matrix: the least cut of each term, added up, and at most the matrix's smaller side."""

    side: int
    terms: tuple[tuple[_Product, ...], ...]

    def reach(self, values: Sequence[int], wanted: int) -> bool:
        return self.side >= wanted and sum(min(cut.of(values) for cut in term) for term in self.terms) >= wanted

    def least(self, values: Sequence[int], varied: int, wanted: int) -> int:
        """The smallest value at one position that still reaches what is wanted."""
        if self._linear is None:
            return _smallest(values, varied, lambda some: self.reach(some, wanted))
        others = [factor * math.prod([values[p] for p in rest]) for factor, rest in self._linear[varied]]
        return -(-wanted // min(others)) if others else 1

    @cached_property
    def _linear(self) -> dict[int, list[tuple[int, tuple[int, ...]]]] | None:
        """For each position what multiplies its value in each cut; ``None`` of a sum, or if a cut has one twice."""
        cuts = [cut for term in self.terms for cut in term]
        if len(self.terms) > 1 or any(len(set(cut.positions)) < len(cut.positions) for cut in cuts):
            return None
        found = defaultdict(list)
        for cut in cuts:
            for position in cut.positions:
                found[position].append((cut.factor, tuple(p for p in cut.positions if p != position)))
        return found


class _Read(RankBounds):
    """Bounds as products of values: for each layer those of its two matrices."""

    def __init__(self, bounds: Sequence[tuple[_Bound, ...]]) -> None:
        self._bounds = bounds

    def reach(self, values: Sequence[int], wanted: tuple[int, int]) -> bool:
        return all(
            bound.reach(values, most) for layer in self._bounds for bound, most in zip(layer, wanted, strict=True)
        )

    def least(self, values: Sequence[int], varied: int, wanted: tuple[int, int]) -> int:
        return max(
            bound.least(values, varied, most)
            for layer in self._bounds
            for bound, most in zip(layer, wanted, strict=True)
        )


def bounds_of(
    costs: LayerCosts,
    rank: Callable[[Sequence[int]], Rank],
    filled: Callable[[Sequence[int]], Rank],
    largest: Sequence[int],
) -> RankBounds:
    """Both bounds as functions of a rank's values.

    Args:
        costs: The layer.
        rank: From values to the rank.
        filled: The same without a cut to what is of use, by which no bound gets smaller.
        largest: The largest values that are asked for.

    Returns:
        The bounds, read from the networks of three ranks, if the size of every label is a number or one of the values
        there, and the labels are the same.
    """
    count = len(largest)
    probes = [range(2, count + 2), range(2 * count + 2, count + 2, -1), largest]  # the first two share no value
    asked = _Asked(lru_cache(maxsize=None)(lambda values: costs.rank_bounds(rank(values))))
    try:
        networks = [costs.networks(filled(values)) for values in probes]
    except ValueError:  # a decomposition that refuses ranks beyond use
        return asked
    bounds: list[tuple[_Bound, ...]] = []
    for layer in zip(*networks, strict=True):
        meaning = _meaning(layer, probes)
        if meaning is None:
            return asked
        bounds.append(tuple(_cuts(layer[0], matrix, meaning) for matrix in bounded_matrices(layer[0])))
    return _Read(bounds)


def _meaning(networks: Sequence[TensorNetwork], probes: Sequence[Sequence[int]]) -> dict[str, _Product] | None:
    """The size of each label, those of the modes as numbers; ``None`` if they are not so."""
    first = networks[0]
    if any((n.terms, n.external_labels) != (first.terms, first.external_labels) for n in networks):
        return None
    positions = {column: k for k, column in enumerate(zip(*probes, strict=True))}
    meaning: dict[str, _Product] = {}
    for label in first.sizes:
        sizes = tuple(network.sizes[label] for network in networks)
        if len(set(sizes)) == 1:
            meaning[label] = _Product(sizes[0], ())
        elif sizes in positions and label not in first.external_labels:
            meaning[label] = _Product(1, (positions[sizes],))
        else:
            return None
    return meaning


def _cuts(network: TensorNetwork, matrix: Matrix, meaning: Mapping[str, _Product]) -> _Bound:
    cuts = bounding_cuts(network, matrix.rows, matrix.columns)
    if cuts is None:
        return _Bound(matrix.side, ((_Product(matrix.side, ()),),))
    terms = []
    for some in cuts:
        parts = [[meaning[label] for label in cut] for cut in some]
        products = {
            _Product(math.prod(p.factor for p in part), tuple(sorted(k for p in part for k in p.positions)))
            for part in parts
        }
        least = [p for p in products if not any(other != p and other.never_above(p) for other in products)]
        terms.append(tuple(least))
    return _Bound(matrix.side, tuple(terms))
