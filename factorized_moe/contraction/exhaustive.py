"""All orders of a few operands at once: the cheapest by dynamic programming over subsets, on arrays.

An order is a binary tree, so the best order of a set of operands is the best split of it in two, each part in its own
best order: 3**n splits, outer products and contractions of parameters alone among them. What a split costs is the same
for every number of samples or proportional to it, so the amounts are worked out once and then searched at any batch
size, within any limit. Costs are those of `search.step_cost`.

A set of operands is an int whose bits are its members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factorized_moe.contraction.search import MOVED, Operand, Pairs, copy_price
from factorized_moe.network import BATCH

__all__ = ["EXHAUSTIVE", "SLACK", "AllOrders", "search_order"]

EXHAUSTIVE = 14
"""Up to so many operands every order is tried: 3**n / 2 splits, 2.4 million for fourteen."""

SLACK = 1.1
"""Among orders that cost at most so many times the least, the smallest largest intermediate is preferred."""

CHUNK = 11
"""Labels whose sizes are looked up together, in a table of the products of all their subsets."""

Floats = NDArray[np.float64]
Ints = NDArray[Any]


@dataclass(frozen=True)
class _Level:
    """The splits of all sets of so many operands: one row for each set, one column for each of its splits.

    Attributes:
        groups: The sets.
        parts: The part of each split that holds the set's last operand; ascending in each row.
        others: The other part.
        singles: Of the splits with one operand alone on a side: their positions, row by row, the operand, and the other
            side.
    """

    groups: Ints
    parts: Ints
    others: Ints
    singles: tuple[tuple[Ints, Ints, Ints], ...]


@lru_cache(maxsize=16)
def _levels(count: int) -> tuple[_Level, ...]:
    """All splits of all sets of up to so many operands, by the size of the set."""
    everything = np.arange(1 << count)
    bits = (everything[:, None] >> np.arange(count)) & 1
    levels = []
    for members in range(2, count + 1):
        groups = everything[bits.sum(1) == members]
        places = np.nonzero(bits[groups])[1].reshape(len(groups), members)
        last = 1 << places[:, -1]
        inner = np.zeros((len(groups), 1 << (members - 1)), dtype=np.int32)
        for k in range(members - 1):  # bit k of the column's number goes to the place of the set's member k
            inner |= ((np.arange(inner.shape[1]) >> k & 1) << places[:, k : k + 1]).astype(np.int32)
        parts = (last[:, None] | inner[:, :-1]).astype(np.int32)  # the last column would be the set itself
        others = (groups[:, None] ^ parts).astype(np.int32)
        singles = []
        for mine, theirs in ((parts, others), (others, parts)):
            where = np.flatnonzero(mine & (mine - 1) == 0)
            singles.append((where, np.log2(mine.reshape(-1)[where]).astype(np.int64), theirs.reshape(-1)[where]))
        levels.append(_Level(groups, parts, others, tuple(singles)))
    return tuple(levels)


class AllOrders:
    """All orders of some operands.

    Args:
        operands: The operands, at most about `EXHAUSTIVE`.
        output: The labels that the result keeps.
        sizes: The size of every label; the batch's is given to each search.
        moved: The cost of an element moved, in FLOPs.
        copied: The cost of an element of a parameter copied into another order, in FLOPs; `copy_price` by default.
    """

    def __init__(
        self,
        operands: Sequence[Operand],
        output: frozenset[str],
        sizes: dict[str, int],
        moved: float = MOVED,
        copied: float | None = None,
    ) -> None:
        self._count = len(operands)
        sets = np.arange(1 << self._count)
        carriers: dict[str, int] = {}
        for position, operand in enumerate(operands):
            for label in sorted(operand.labels):
                carriers[label] = carriers.get(label, 0) | 1 << position
        # What a set keeps: a label that one of its operands has, and that the output or another operand has too.
        kept = {
            label: ((sets & mask) != 0) & ((label in output) | ((~sets & mask) != 0))
            for label, mask in carriers.items()
        }
        batch = kept.pop(BATCH) if BATCH in output and BATCH in carriers else np.zeros(len(sets), dtype=bool)
        self._batched: NDArray[np.bool_] = batch
        self._elements: Floats = np.ones(len(sets))
        for label, where in kept.items():
            self._elements[where] *= sizes[label]
        self._moved, self._copied = moved, copied
        self._work_out_products(kept, carriers, sizes)
        self._work_out_leaves(operands, kept, sizes)

    def _work_out_products(
        self, kept: dict[str, NDArray[np.bool_]], carriers: dict[str, int], sizes: dict[str, int]
    ) -> None:
        """For each split the FLOPs of one sample, without what is summed before its two parts meet."""
        shared = [label for label in kept if carriers[label] & (carriers[label] - 1)]  # others are never on both parts
        chunks: list[tuple[Ints, Floats]] = []
        for start in range(0, len(shared), CHUNK):
            labels = shared[start : start + CHUNK]
            codes: Ints = np.zeros(1 << self._count, dtype=np.int16)
            table = np.ones(1 << len(labels))
            for k, label in enumerate(labels):
                codes |= kept[label].astype(np.int16) << k
                table[(np.arange(len(table)) >> k & 1) == 1] *= sizes[label]
            chunks.append((codes, table))
        self._products: list[Floats] = []
        for level in _levels(self._count):
            both = np.ones(level.parts.shape)
            summed = np.zeros(level.parts.shape, dtype=bool)
            for codes, table in chunks:
                common = codes[level.parts] & codes[level.others]
                both *= table[common]
                summed |= (common & ~codes[level.groups][:, None]) != 0
            together = self._elements[level.parts] * self._elements[level.others] / both
            self._products.append(np.where(summed, 2 * together, together))

    def _work_out_leaves(
        self,
        operands: Sequence[Operand],
        kept: dict[str, NDArray[np.bool_]],
        sizes: dict[str, int],
    ) -> None:
        """What each operand costs whatever it meets, and the elements that a step has to copy of a parameter."""
        self._fixed, self._copies = np.zeros(self._count), np.zeros((self._count, 1 << self._count))
        self._stored = np.zeros(1 << self._count)  # the elements of a set's operands
        for position, operand in enumerate(operands):
            alone = 1 << position
            labels = [x for x in operand.labels if x in kept]
            whole = float(np.prod([float(sizes[x]) for x in labels]))
            before = any(sizes[x] > 1 for x in labels if not kept[x][alone])  # a sum before it meets anything
            self._fixed[position] = whole * (before + (self._moved if operand.memory is None else 0))
            self._stored += whole * (np.arange(1 << self._count) >> position & 1)
            if operand.memory is None or len(operand.memory) < 3:  # two labels lie in blocks whatever they are
                continue
            # As in `step_cost`: a product reads a parameter in place if its labels lie in blocks.
            sets = np.arange(1 << self._count)
            together = sets | alone
            kinds = np.zeros((len(sets), len(operand.memory)), dtype=np.int8)
            for column, x in enumerate(operand.memory):
                if x in kept and kept[x][alone]:
                    kinds[:, column] = np.where(kept[x], np.where(kept[x][together], 2, 1), 0)
            blocks = 1 + (np.diff(kinds, axis=1) != 0).sum(1)
            different = sum((kinds == kind).any(1).astype(np.int64) for kind in range(3))
            copied = (kinds == 1).any(1) & (blocks > different)
            self._copies[position] = np.where(copied, whole, 0.0)

    def _steps(self, index: int, level: _Level, batch_size: int) -> Floats:
        """The cost of each split of a level, apart from the elements that are moved."""
        samples = np.where(self._batched[level.groups], float(batch_size), 1.0)
        costs: Floats = self._products[index] * samples[:, None]
        flat = costs.reshape(-1)
        many, alone = (copy_price(n) if self._copied is None else self._copied for n in (batch_size, 1))
        for positions, leaves, rest in level.singles:
            flat[positions] += self._copies[leaves, rest] * np.where(self._batched[rest], many, alone)
        return costs

    def cheapest(
        self, batch_size: int = 1, limit: float | None = None, folded: bool = False
    ) -> tuple[float, Pairs] | None:
        """The least cost at a batch size, and an order of that cost.

        Args:
            batch_size: The number of samples.
            limit: The most elements that any intermediate may have.
            folded: Whether steps on parameters alone cost nothing, as their results are stored; then no result may
                meet samples that has more elements than the parameters it is made of.

        Returns:
            Cost and order, or ``None`` if no order keeps to the limit.
        """
        elements = self._made(batch_size)
        best = np.zeros(1 << self._count)
        leaves = 1 << np.arange(self._count)
        best[leaves] = self._fixed * np.where(self._batched[leaves], float(batch_size), 1.0)
        choice = np.zeros(1 << self._count, dtype=np.int32)
        everyone = len(best) - 1
        for index, level in enumerate(_levels(self._count)):
            costs = self._steps(index, level, batch_size)
            if folded:
                costs[~self._batched[level.groups]] = 0.0
                for side in (level.parts, level.others):
                    large = ~self._batched[side] & (self._elements[side] > self._stored[side])
                    costs[large & self._batched[level.groups][:, None]] = np.inf
            costs += best[level.parts]
            costs += best[level.others]
            column = costs.argmin(1)
            rows = np.arange(len(column))
            choice[level.groups] = level.parts[rows, column]
            made = elements[level.groups]
            found = costs[rows, column]
            paid = self._batched[level.groups] if folded else 1
            found += self._moved * made * np.where(level.groups == everyone, 1, 2) * paid
            best[level.groups] = found if limit is None else np.where(made > limit, np.inf, found)
        if self._count > 1 and not np.isfinite(best[everyone]):
            return None
        return float(best[everyone]), self._unrolled(choice)

    def smallest(self, batch_size: int = 1) -> float:
        """The elements of the largest intermediate of the order where it is as small as possible."""
        elements = self._made(batch_size)
        best = np.zeros(1 << self._count)
        for level in _levels(self._count):
            parts = np.maximum(best[level.parts], best[level.others]).min(1)
            best[level.groups] = np.maximum(parts, elements[level.groups])
        return float(best[-1])

    def balanced(self, batch_size: int = 1, slack: float = SLACK) -> tuple[float, Pairs]:
        """The order of the smallest largest intermediate among those of nearly the least cost.

        Args:
            batch_size: The number of samples.
            slack: How many times the least cost it may cost.

        Returns:
            Cost and order: of the orders with that largest intermediate, the cheapest.
        """
        found = self.cheapest(batch_size)
        assert found is not None  # without a limit there is always an order
        low, high = self.smallest(batch_size), self.largest(found[1], batch_size)
        if low >= high:
            return found
        most = found[0] * slack
        elements = self._made(batch_size)[1:]
        limits = np.unique(elements[(elements >= low) & (elements < high)])
        first, last = 0, len(limits)  # the limit sought is the least that an order within the slack keeps to
        while first < last:
            middle = (first + last) // 2
            within = self.cheapest(batch_size, float(limits[middle]))
            if within is not None and within[0] <= most:
                found, last = within, middle
            else:
                first = middle + 1
        return found

    def largest(self, pairs: Pairs, batch_size: int = 1) -> float:
        """The elements of an order's largest intermediate."""
        elements = self._made(batch_size)
        sets = [1 << position for position in range(self._count)]
        for one, two in pairs:
            sets.append(sets[one] | sets[two])
        return max((float(elements[group]) for group in sets[self._count :]), default=0.0)

    def _made(self, batch_size: int) -> Floats:
        return self._elements * np.where(self._batched, float(batch_size), 1.0)

    def _unrolled(self, choice: Ints) -> Pairs:
        pairs: Pairs = []

        def visit(group: int) -> int:
            part = int(choice[group])
            if not part:
                return group.bit_length() - 1
            first, second = visit(part), visit(group ^ part)
            pairs.append((first, second))
            return self._count + len(pairs) - 1

        visit((1 << self._count) - 1)
        return pairs


def search_order(
    operands: Sequence[Operand],
    output: frozenset[str],
    sizes: dict[str, int],
    *,
    moved: float = MOVED,
    limit: int | None = None,
    smallest: bool = False,
) -> Pairs | None:
    """The cheapest order of all, outer products included.

    Args:
        operands: The operands, at most about `EXHAUSTIVE`.
        output: The labels that the result keeps.
        sizes: The size of every label, the batch's too.
        moved: The cost of an element moved, in FLOPs.
        limit: The most elements that any intermediate may have.
        smallest: Whether to make the largest intermediate as small as possible; the cost decides between equals.

    Returns:
        The order, or ``None`` if no order keeps to the limit.
    """
    if len(operands) < 2:
        return []
    orders = AllOrders(operands, output, sizes, moved)
    batch_size = sizes.get(BATCH, 1)
    if smallest:
        least = orders.smallest(batch_size)
        limit = int(least) if limit is None or least <= limit else limit
    found = orders.cheapest(batch_size, limit)
    return None if found is None else found[1]
