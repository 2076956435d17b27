"""The order of pairwise contractions where operands are too many to try every order.

The cheapest pair is merged again and again, then the order is improved piece by piece: a part of the contraction tree
with a few operands is replaced by the best order of those operands. Both use the costs of the exhaustive search.
Improving subtrees is known from Gray and Kourtis (2021), "Hyper-optimized tensor network contraction".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from factorized_moe.contraction.search import MOVED, Operand, Pairs, order_cost, search_order, step_cost

__all__ = ["search_large"]

Rule = Callable[[int, int, int, float], float]

RULES: tuple[Rule, ...] = (
    lambda left, right, result, cost: cost,
    lambda left, right, result, cost: result,
    lambda left, right, result, cost: result - left - right,
)
"""What is smallest for the pair that is merged next: its cost, the elements of its result, or those that are added.

Each is a function of the elements of the two operands and of the result, and of the cost.
"""

IMPROVED = 2
"""Of the orders found by merging, so many are improved."""

SWEEPS = 2
"""So many times each part of a tree is improved, from the answer down."""

PART = 6
"""The operands of a part of the tree that are searched exhaustively; 3**n splits, 1 ms for six."""


def search_large(
    operands: Sequence[Operand],
    output: frozenset[str],
    sizes: dict[str, int],
    *,
    moved: float = MOVED,
    limit: int | None = None,
    smallest: bool = False,
) -> Pairs | None:
    """A good order for many operands; not always the best one.

    Args:
        operands: The operands.
        output: The labels that the result keeps.
        sizes: The size of every label.
        moved: The cost of an element moved, in FLOPs.
        limit: The most elements that any intermediate may have.
        smallest: Whether to make the largest intermediate small; the cost decides between equals.

    Returns:
        The order, or ``None`` if none was found within the limit.
    """
    search = _Search(tuple(operands), output, sizes, moved, limit, smallest)
    starts = [search.merged(rule, last) for rule in RULES for last in (True, False)]
    different = sorted(dict.fromkeys(map(tuple, starts)), key=search.cost)
    found = min((search.improved(list(start)) for start in different[:IMPROVED]), key=search.cost)
    return found if limit is None or search.largest(found) <= limit else None


@dataclass(frozen=True)
class _Search:
    """A problem; the attributes are the arguments of `search_large`."""

    operands: tuple[Operand, ...]
    output: frozenset[str]
    sizes: dict[str, int]
    moved: float
    limit: int | None
    smallest: bool

    def cost(self, pairs: Sequence[tuple[int, int]]) -> tuple[int, float]:
        """What is to be made small: the largest intermediate where that counts, then the cost."""
        largest, cost = order_cost(pairs, self.operands, self.output, self.sizes, self.moved)
        return self._counted(largest), cost

    def largest(self, pairs: Pairs) -> int:
        """The elements of the largest intermediate."""
        return order_cost(pairs, self.operands, self.output, self.sizes, self.moved)[0]

    def _counted(self, elements: int) -> int:
        return elements if self.smallest or (self.limit is not None and elements > self.limit) else 0

    def _size(self, labels: frozenset[str]) -> int:
        return math.prod(self.sizes[label] for label in labels)

    def merged(self, rule: Rule, parameters_last: bool) -> Pairs:
        """The order in which the next pair is always the one for which a rule gives the least.

        Only operands that share a label to be summed are merged, or that both share one with a third: the vectors of a
        Tucker core with each other, but not two leaves at opposite ends of a tree. With ``parameters_last`` two
        parameters are merged only where nothing else is left: that looks cheap, as no samples take part, and makes
        large parameters.
        """
        live = dict(enumerate(self.operands))
        pairs: Pairs = []
        while len(live) > 1:
            carriers: dict[str, list[int]] = {}
            for position, operand in live.items():
                for label in operand.labels:
                    carriers.setdefault(label, []).append(position)
            beside = {
                position: {other for label in operand.labels - self.output for other in carriers[label]} - {position}
                for position, operand in live.items()
            }
            together = [(a, b) for a, b in itertools.combinations(live, 2) if b in beside[a] or beside[a] & beside[b]]
            found: list[tuple[bool, float, float, int, int]] = []
            for one, two in together or itertools.combinations(live, 2):
                left, right = live[one], live[two]
                both = left.labels | right.labels
                kept = frozenset(x for x in both if x in self.output or any(p not in (one, two) for p in carriers[x]))
                parameters = parameters_last and left.memory is not None and right.memory is not None
                cost = step_cost(left, right, kept, self._size, self.moved)
                value = rule(self._size(left.labels), self._size(right.labels), self._size(kept), cost)
                found.append((parameters, value, cost, one, two))
            *_, one, two = min(found)
            both = live.pop(one).labels | live.pop(two).labels
            pairs.append((one, two))
            rest = self.output.union(*(operand.labels for operand in live.values()))
            live[len(self.operands) + len(pairs) - 1] = Operand(both & rest)
        return pairs

    def improved(self, pairs: Pairs) -> Pairs:
        """The same order with parts replaced by the best orders of their operands."""
        count = len(self.operands)
        children = {count + number: pair for number, pair in enumerate(pairs)}
        made = dict(enumerate(self.operands))
        _make(made, list(children), children, set(made), self.output)
        for root in list(reversed(children)) * SWEEPS:
            inner, around = _part(root, children)
            found = self._better(root, inner, around, children, made)
            if found is None:
                continue
            # The part has as many inner values as before: their positions are used again, the root's for the last.
            again = inner[::-1]
            names = [*around, *again]
            for position, (one, two) in zip(again, found, strict=True):
                children[position] = (names[one], names[two])
            _make(made, again, children, set(around), made[root].labels)
        return _unrolled(count + len(pairs) - 1, children, count)

    def _better(
        self,
        root: int,
        inner: list[int],
        around: list[int],
        children: dict[int, tuple[int, int]],
        made: dict[int, Operand],
    ) -> Pairs | None:
        """A better order of a part, its operands numbered as in ``around``."""
        if len(around) < 3:
            return None
        operands, output = [made[position] for position in around], made[root].labels
        number = {position: k for k, position in enumerate(around)}
        now: Pairs = []
        for position in reversed(inner):
            one, two = children[position]
            now.append((number[one], number[two]))
            number[position] = len(around) + len(now) - 1
        found = search_order(operands, output, self.sizes, moved=self.moved, limit=self.limit, smallest=self.smallest)
        if found is None:  # nothing within the limit: then as small as it goes
            found = search_order(operands, output, self.sizes, moved=self.moved, smallest=True)
        assert found is not None  # without a limit there is always an order
        costs = [order_cost(pairs, operands, output, self.sizes, self.moved) for pairs in (found, now)]
        (largest, cost), (largest_now, cost_now) = [(self._counted(most), cost) for most, cost in costs]
        better = largest < largest_now or (largest == largest_now and cost < cost_now * (1 - 1e-9))
        return found if better else None


def _part(root: int, children: dict[int, tuple[int, int]]) -> tuple[list[int], list[int]]:
    """The top of a subtree: its inner values, each before those it is made of, and the values that it starts from."""
    inner, around = [], [root]
    while len(around) < PART:
        position = max((p for p in around if p in children), default=None)
        if position is None:
            break
        around.remove(position)
        inner.append(position)
        around += children[position]
    return inner, around


def _make(
    made: dict[int, Operand],
    order: Sequence[int],
    children: dict[int, tuple[int, int]],
    live: set[int],
    output: frozenset[str],
) -> None:
    """Put into ``made`` the values at some positions, in the order in which they are made of those that are live."""
    for position in order:
        one, two = children[position]
        live -= {one, two}
        rest = output.union(*(made[other].labels for other in live))
        made[position] = Operand((made[one].labels | made[two].labels) & rest)
        live.add(position)


def _unrolled(root: int, children: dict[int, tuple[int, int]], count: int) -> Pairs:
    pairs: Pairs = []

    def visit(position: int) -> int:
        if position not in children:
            return position
        one, two = children[position]
        pairs.append((visit(one), visit(two)))
        return count + len(pairs) - 1

    visit(root)
    return pairs
