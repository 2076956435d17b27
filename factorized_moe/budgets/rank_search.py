"""The entries of a rank that a budget is shared among, and the search for the best of them.

A decomposition is asked two things only: which tuples `check_rank` takes, and the network of a rank. So the search
serves any decomposition, a third party's too. Bounds and costs grow with every entry, which makes bisection exact in
one entry; the other entries are tried on a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import ge

from factorized_moe._scalars import is_whole
from factorized_moe.budgets.pricing import LayerCosts
from factorized_moe.budgets.rank_bounds import bounds_of
from factorized_moe.decompositions.base import Rank, largest_within

__all__ = ["RankForm", "best_expert_rank"]


@dataclass(frozen=True)
class RankForm:
    """Which entries of a decomposition's rank are free, and which go together, such as a ring's first and last.

    Attributes:
        costs: The layer.
        template: A rank as a tuple; ``None`` if the decomposition's rank is one int.
        groups: The free positions of the template; those of a group have the same value.
    """

    costs: LayerCosts
    template: tuple[int, ...] | None
    groups: tuple[tuple[int, ...], ...]
    kept: frozenset[int] = frozenset()

    @classmethod
    def of(cls, costs: LayerCosts, fixed: Sequence[int | None] | None = None) -> RankForm:
        """The form of a layer's rank.

        Args:
            costs: The layer.
            fixed: Values of the entries that are not free, ``None`` for the others.

        Raises:
            ValueError: If the decomposition takes no such rank.
        """
        shape = costs.shapes()[0]
        start = costs.decomposition.check_rank(2, shape)
        if isinstance(start, int):
            if fixed is not None:
                raise ValueError(f"fixed is for a rank of several entries; this one is one int, got {fixed}")
            return cls(costs, None, ())
        groups = _groups(costs, start)
        if fixed is None:
            return cls(costs, start, groups)
        entries = tuple(fixed) if isinstance(fixed, Sequence) else ()
        if len(entries) != len(start) or any(e is not None and (not is_whole(e) or e < 1) for e in entries):
            raise ValueError(
                f"fixed has one positive int or None for each of the {len(start)} entries of a rank, got {fixed!r}"
            )
        held = frozenset(position for position, entry in enumerate(entries) if entry is not None)
        values = {position: int(entry) for position, entry in enumerate(entries) if entry is not None}
        for group in groups:
            given = {values[position] for position in group if position in values}
            values |= dict.fromkeys(group, given.pop()) if len(given) == 1 else {}
        template = tuple(values.get(position, entry) for position, entry in enumerate(start))
        free = tuple(group for group in groups if not held & set(group))
        if not free:
            raise ValueError(f"fixed leaves no entry to be found: {fixed!r}; give None for at least one")
        costs.decomposition.check_rank(template, shape)
        return cls(costs, template, free, frozenset(values))

    @property
    def free(self) -> int:
        """The number of values to be found."""
        return 1 if self.template is None else len(self.groups)

    def uniform(self, size: int) -> Rank:
        """The rank whose free entries are one int, as far as they are of use."""
        if self.template is None or not self.groups:
            return self._useful(self.costs.decomposition.check_rank(size, self.costs.shapes()[0]))
        return self.rank((size,) * len(self.groups))

    def rank(self, values: Sequence[int]) -> Rank:
        """The rank with a value for each group, as far as they are of use."""
        return self._useful(self.filled(values))

    def filled(self, values: Sequence[int]) -> tuple[int, ...]:
        """The rank with a value for each group as it is."""
        assert self.template is not None  # only a tuple has groups
        entries = list(self.template)
        for group, value in zip(self.groups, values, strict=True):
            for position in group:
                entries[position] = value
        return tuple(entries)

    def _useful(self, rank: Rank) -> Rank:
        """Entries beyond use are cut in all layers at once; given ones stay."""
        useful = [self.costs.decomposition.useful_rank(rank, shape) for shape in self.costs.shapes()]
        if isinstance(rank, int):
            return max(u for u in useful if isinstance(u, int))
        largest = [max(entries) for entries in zip(*(u for u in useful if not isinstance(u, int)), strict=True)]
        return tuple(rank[k] if k in self.kept else entry for k, entry in enumerate(largest))


def _groups(costs: LayerCosts, start: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Positions that can be raised alone, or two together; the others are fixed by the decomposition."""

    def accepts(*positions: int) -> bool:
        raised = tuple(entry + (position in positions) for position, entry in enumerate(start))
        try:
            return all(costs.decomposition.check_rank(raised, shape) == raised for shape in costs.shapes())
        except ValueError:
            return False

    groups: list[tuple[int, ...]] = []
    for position in range(len(start)):
        if any(position in group for group in groups):
            continue
        tries = [(position,), *((position, other) for other in range(position + 1, len(start)))]
        groups += [next(group for group in tries if accepts(*group))] if any(accepts(*t) for t in tries) else []
    return tuple(groups)


def best_expert_rank(
    costs: LayerCosts,
    form: RankForm,
    measure: Callable[[Rank], int],
    limit: int,
    uniform: Rank,
    wanted: int | None,
) -> Rank:
    """The rank of the largest expert rank bound within a limit: see `Budget`.

    Args:
        costs: The layer.
        form: The rank's free entries.
        measure: What a rank costs.
        limit: The most it may cost.
        uniform: The uniform choice, for comparison.
        wanted: The number of experts that must be able to be linearly independent, or ``None``.
    """
    search = _Search(costs, form, measure, limit)
    experts, full = math.prod(costs.expert_dims), min(map(min, costs.linears))
    if costs.rank_bounds(uniform) == (full, experts):
        return uniform
    wanted = math.isqrt(experts - 1) + 1 if wanted is None else min(wanted, experts)
    floor = _largest(0, wanted, lambda count: search.cheapest(1, count) is not None)
    bound = _largest(0, full, lambda bound: search.cheapest(bound, floor) is not None)
    if costs.expert_rank_bound(uniform) >= bound and costs.independent_experts(uniform) >= floor:
        return uniform
    count = _largest(floor, experts, lambda count: search.cheapest(bound, count) is not None)
    return search.cheapest(bound, count) or uniform


def _largest(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The largest value from ``low``, which is taken to hold, to ``high`` that holds, by bisection."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


class _Search:
    """The cheapest ranks within a limit that reach given bounds, remembered."""

    def __init__(self, costs: LayerCosts, form: RankForm, measure: Callable[[Rank], int], limit: int) -> None:
        self.costs, self.form, self.limit = costs, form, limit
        self.measure = lru_cache(maxsize=None)(measure)
        self.cheapest = lru_cache(maxsize=None)(self._cheapest)
        self.caps = tuple(self._cap(group) for group in range(len(form.groups)))
        self.bounds = bounds_of(costs, form.rank, form.filled, self.caps)

    def _cap(self, group: int) -> int:
        """The largest value of one entry that is affordable at all."""

        def alone(size: int) -> int:
            return self.measure(self.form.rank([size if k == group else 1 for k in range(len(self.form.groups))]))

        return largest_within(alone, self.limit)

    def _cheapest(self, bound: int, count: int) -> Rank | None:
        """The cheapest rank found within the limit, or ``None``.

        Lowering one entry after the other ends where none can be lowered further. That is the only such place where
        each bound hangs on one entry; where entries can stand in for each other (a ring's), there are several, so
        each entry in turn is also held at values of a grid, as long as that lets another one be lower.
        """
        found = self._lowered(self.caps, None, bound, count)
        for group, cap in enumerate(self.caps):
            least = self._lowered(self.caps, group, bound, count)
            for value in _grid(cap):
                held = (*self.caps[:group], value, *self.caps[group + 1 :])
                tries = self._lowered(held, group, bound, count)
                found += tries
                if tries and _without(tries, group) == _without(least, group):
                    break
        ranks = {self.form.rank(values) for values in set(found)}
        fitting = sorted((self.measure(rank), rank) for rank in ranks)
        for cost, rank in fitting:
            # Asked again of the rank itself: of a decomposition of another's own the bounds may have been read wrongly.
            if cost <= self.limit and all(map(ge, self.costs.rank_bounds(rank), (bound, count))):
                return rank
        return None

    def _lowered(self, start: tuple[int, ...], held: int | None, bound: int, count: int) -> list[tuple[int, ...]]:
        """Entries lowered as far as both bounds hold, from the first to the last and from the last to the first."""
        wanted = (bound, count)
        if not self.bounds.reach(start, wanted):
            return []
        order = [k for k in range(len(start)) if k != held]
        found = []
        for sequence in (order, order[::-1]) if len(order) > 1 else (order,):
            values = list(start)
            for k in sequence:
                values[k] = self.bounds.least(values, k, wanted)
            found.append(tuple(values))
        return found


def _grid(cap: int) -> list[int]:
    """Values from 1 to a cap, each a half or a third more than the one before."""
    values = {factor * 2**k for factor in (2, 3) for k in range(cap.bit_length())} | {1}
    return sorted(value for value in values if value <= cap)


def _without(found: list[tuple[int, ...]], group: int) -> list[tuple[int, ...]]:
    return [values[:group] + values[group + 1 :] for values in found]
