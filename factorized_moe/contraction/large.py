"""The order of pairwise contractions where operands are too many to try every order.

The cheapest pair is merged again and again, by several rules and with some chance, which gives several orders. Each is
then improved piece by piece: a part of the contraction tree with a few operands is replaced by the best order of those
operands. All of it uses the costs of the exhaustive search, and the same numbers are drawn in every process. Random
greedy orders, and improving subtrees, are known from Gray and Kourtis (2021), "Hyper-optimized tensor network
contraction".
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from factorized_moe.contraction.exhaustive import search_order
from factorized_moe.contraction.search import MOVED, Operand, Pairs, merged_operand, order_cost, step_cost

__all__ = ["DRAWN", "search_large"]

Rule = Callable[[float, float, float, float], float]

RULES: tuple[Rule, ...] = (
    lambda left, right, result, cost: cost,
    lambda left, right, result, cost: result,
    lambda left, right, result, cost: result - left - right,
)
"""What is smallest for the pair that is merged next: its cost, the elements of its result, or those that are added.

Each is a function of the elements of the two operands and of the result, and of the cost.
"""

DRAWN = 48
"""So many orders are merged with some chance in what comes next, beside those that follow a rule strictly."""

IMPROVED = 12
"""Of the orders found by merging, so many are improved."""

SWEEPS = 3
"""At most so many times each part of a tree is improved, from the answer down."""

PART = 8
"""The operands of a part of the tree that are searched exhaustively; 3**n splits, 1 ms for eight."""


def search_large(
    operands: Sequence[Operand],
    output: frozenset[str],
    sizes: dict[str, int],
    *,
    moved: float = MOVED,
    limit: int | None = None,
    smallest: bool = False,
    starts: Iterable[Pairs] = (),
    drawn: int = DRAWN,
) -> Pairs | None:
    """A good order for many operands; not always the best one.

    Args:
        operands: The operands.
        output: The labels that the result keeps.
        sizes: The size of every label.
        moved: The cost of an element moved, in FLOPs.
        limit: The most elements that any intermediate may have.
        smallest: Whether to make the largest intermediate small; the cost decides between equals.
        starts: Orders that are known, whole or only their first steps: they are completed and improved as well.
        drawn: How many orders are merged with some chance.

    Returns:
        The order, or ``None`` if none was found within the limit.
    """
    search = _Search(tuple(operands), output, sizes, moved, limit, smallest)
    begun = [list(start) for start in starts]
    chance = random.Random(0)  # the same numbers in every process
    found = [search.merged(first, rule, last) for first in ([], *begun) for rule in RULES for last in (True, False)]
    found += [search.merged([], rule, False, chance) for rule in RULES for _ in range(drawn // len(RULES))]
    different = sorted(dict.fromkeys(map(tuple, found)), key=search.cost)
    whole = [tuple(start) for start in begun if len(start) == len(operands) - 1]
    chosen = dict.fromkeys([*different[:IMPROVED], *whole])
    best = min((search.improved(list(order)) for order in chosen), key=search.cost)
    return best if limit is None or search.largest(best) <= limit else None


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

    def merged(
        self, first: Sequence[tuple[int, int]], rule: Rule, parameters_last: bool, chance: random.Random | None = None
    ) -> Pairs:
        """The order in which the next pair is always the one for which a rule gives the least.

        Only operands that share a label to be summed are merged, or that both share one with a third: the vectors of a
        Tucker core with each other, but not two leaves at opposite ends of a tree. With ``parameters_last`` two
        parameters are merged only where nothing else is left: that looks cheap, as no samples take part, and makes
        large parameters. With a source of chance the rule's values are blurred.
        """
        live = dict(enumerate(self.operands))
        pairs: Pairs = []
        for pair in first:
            self._merge(live, pairs, pair)
        carriers: dict[str, int] = {}
        for position, operand in live.items():
            for label in operand.labels:
                carriers[label] = carriers.get(label, 0) | 1 << position
        # A pair's value does not change until one of the two is merged: a label is lost with its last pair.
        values: dict[tuple[int, int], tuple[bool, float, float]] = {}
        for pair in combinations(live, 2):
            values[pair] = self._value(live, carriers, pair, rule, parameters_last, chance)
        while len(live) > 1:
            beside = {
                position: _union(carriers[label] for label in operand.labels - self.output) & ~(1 << position)
                for position, operand in live.items()
            }
            together = [(a, b) for a, b in values if beside[a] >> b & 1 or beside[a] & beside[b]]
            one, two = min(together or values, key=lambda pair: (*values[pair], *pair))
            self._merge(live, pairs, (one, two))
            made = len(self.operands) + len(pairs) - 1
            for label in carriers:
                if carriers[label] & (1 << one | 1 << two):
                    carriers[label] &= ~(1 << one | 1 << two)
                    carriers[label] |= (label in live[made].labels) << made
            values = {pair: value for pair, value in values.items() if one not in pair and two not in pair}
            for other in live:
                if other != made:
                    pair = (other, made)
                    values[pair] = self._value(live, carriers, pair, rule, parameters_last, chance)
        return pairs

    def _merge(self, live: dict[int, Operand], pairs: Pairs, pair: tuple[int, int]) -> None:
        left, right = live.pop(pair[0]), live.pop(pair[1])
        pairs.append(pair)
        live[len(self.operands) + len(pairs) - 1] = merged_operand(left, right, self.output, live.values())

    def _value(
        self,
        live: dict[int, Operand],
        carriers: dict[str, int],
        pair: tuple[int, int],
        rule: Rule,
        parameters_last: bool,
        chance: random.Random | None,
    ) -> tuple[bool, float, float]:
        left, right = live[pair[0]], live[pair[1]]
        mine = 1 << pair[0] | 1 << pair[1]
        kept = frozenset(x for x in left.labels | right.labels if x in self.output or carriers[x] & ~mine)
        cost = step_cost(left, right, kept, self._size, self.moved)
        value = float(rule(self._size(left.labels), self._size(right.labels), self._size(kept), cost))
        if chance is not None:
            value += abs(value) * math.log(1 / (1 - chance.random()))
        return parameters_last and left.memory is not None and right.memory is not None, value, cost

    def improved(self, pairs: Pairs) -> Pairs:
        """The same order with parts replaced by the best orders of their operands, until none gets better.

        What a part takes in is drawn: parts that are cut off level by level leave some orders stuck.
        """
        chance = random.Random(0)
        count = len(self.operands)
        children = {count + number: pair for number, pair in enumerate(pairs)}
        made = dict(enumerate(self.operands))
        _make(made, list(children), children, set(made), self.output)
        waiting = set(children)
        for root in list(reversed(children)) * SWEEPS:
            if root not in waiting:
                continue
            waiting.discard(root)
            inner, around = _part(root, children, chance)
            found = self._better(root, inner, around, children, made)
            if found is None:
                continue
            # The part has as many inner values as before: their positions are used again, the root's for the last.
            again = inner[::-1]
            names = [*around, *again]
            for position, (one, two) in zip(again, found, strict=True):
                children[position] = (names[one], names[two])
            _make(made, again, children, set(around), made[root].labels)
            waiting = set(children)
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
        part = replace(self, operands=tuple(made[position] for position in around), output=made[root].labels)
        number = {position: k for k, position in enumerate(around)}
        now: Pairs = []
        for position in reversed(inner):
            one, two = children[position]
            now.append((number[one], number[two]))
            number[position] = len(around) + len(now) - 1
        arguments = (part.operands, part.output, self.sizes)
        found = search_order(*arguments, moved=self.moved, limit=self.limit, smallest=self.smallest)
        if found is None:  # nothing within the limit: then as small as it goes
            found = search_order(*arguments, moved=self.moved, smallest=True)
        assert found is not None  # without a limit there is always an order
        (largest, cost), (largest_now, cost_now) = part.cost(found), part.cost(now)
        better = largest < largest_now or (largest == largest_now and cost < cost_now * (1 - 1e-9))
        return found if better else None


def _union(masks: Iterable[int]) -> int:
    union = 0
    for mask in masks:
        union |= mask
    return union


def _part(root: int, children: dict[int, tuple[int, int]], chance: random.Random) -> tuple[list[int], list[int]]:
    """The top of a subtree: its inner values, each before those it is made of, and the values that it starts from."""
    inner, around = [], [root]
    while len(around) < PART:
        made = [p for p in around if p in children]
        if not made:
            break
        position = chance.choice(made)
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
        made[position] = merged_operand(made[one], made[two], output, [made[other] for other in live])
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
