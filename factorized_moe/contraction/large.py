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
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import combinations, starmap

from factorized_moe.contraction.exhaustive import search_order
from factorized_moe.contraction.search import MOVED, Operand, Pairs
from factorized_moe.contraction.steps import Steps, Value
from factorized_moe.network import BATCH

__all__ = ["DRAWN", "search_large"]

Rule = Callable[[float, float, float, float], float]
Ranked = tuple[bool, float, float, int, int]

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


class _Search:
    """A problem; the arguments are those of `search_large`."""

    def __init__(
        self,
        operands: tuple[Operand, ...],
        output: frozenset[str],
        sizes: dict[str, int],
        moved: float,
        limit: int | None,
        smallest: bool,
    ) -> None:
        self.operands, self.output, self.sizes = operands, output, sizes
        self.moved, self.limit, self.smallest = moved, limit, smallest
        self.steps = Steps(operands, output, sizes, moved)
        self.parts: dict[tuple[object, ...], Pairs] = {}  # the best orders of parts of a tree
        summed = [operand.labels - output for operand in operands]
        self.beside = [
            sum(1 << other for other, labels in enumerate(summed) if labels & mine and other != position)
            for position, mine in enumerate(summed)
        ]

    def cost(self, pairs: Sequence[tuple[int, int]], values: Sequence[Value] = ()) -> tuple[int, float]:
        """What is to be made small: the largest intermediate where that counts, then the cost."""
        largest, cost = self.steps.cost(pairs, values)
        return self._counted(largest), cost

    def largest(self, pairs: Pairs) -> int:
        """The elements of the largest intermediate."""
        return self.steps.cost(pairs)[0]

    def _counted(self, elements: int) -> int:
        return elements if self.smallest or (self.limit is not None and elements > self.limit) else 0

    def merged(
        self, first: Sequence[tuple[int, int]], rule: Rule, parameters_last: bool, chance: random.Random | None = None
    ) -> Pairs:
        """The order in which the next pair is always the one for which a rule gives the least.

        Only operands that share a label to be summed are merged, or that both share one with a third: the vectors of a
        Tucker core with each other, but not two leaves at opposite ends of a tree. With ``parameters_last`` two
        parameters are merged only where nothing else is left: that looks cheap, as no samples take part, and makes
        large parameters. With a source of chance the rule's values are blurred.
        """
        live = dict(enumerate(self.steps.leaves))
        beside = dict(enumerate(self.beside))  # who shares a label to be summed, as bits
        pairs: Pairs = []
        for pair in first:
            self._merge(live, beside, pairs, pair)
        near = {position: self._near(position, beside) for position in live}  # who may be merged with it
        # A pair's value does not change until one of the two is merged: a label is lost with its last pair. All pairs
        # draw in turn; values are worked out of those that may be merged.
        draws: dict[tuple[int, int], float] = {}

        def rank(one: int, two: int) -> Ranked:
            left, right = live[one], live[two]
            made, cost = self.steps.step(left, right)
            value = float(rule(left.elements, right.elements, made.elements, cost))
            if chance is not None:
                value += abs(value) * math.log(1 / (1 - draws[one, two]))
            last = parameters_last and left.operand.memory is not None and right.operand.memory is not None
            return last, value, cost, one, two

        if chance is not None:
            draws = {pair: chance.random() for pair in combinations(live, 2)}
        # The least first. Whoever is near each other remains so, until one is merged.
        waiting = [rank(one, two) for one in live for two in _bits(near[one] >> one << one)]
        heapify(waiting)
        while len(live) > 1:
            while waiting and not (waiting[0][3] in live and waiting[0][4] in live):
                heappop(waiting)
            if waiting:
                one, two = heappop(waiting)[3:]
            else:
                one, two = min(starmap(rank, combinations(live, 2)))[3:]
            made = self._merge(live, beside, pairs, (one, two))
            del near[one], near[two]
            near[made] = self._near(made, beside)
            for other in _bits(near[made]):
                near[other] = near[other] & ~(1 << one | 1 << two) | 1 << made
            if chance is not None:
                draws |= {(other, made): chance.random() for other in live if other != made}
            for other in _bits(near[made]):
                heappush(waiting, rank(other, made))
            for other in _bits(beside[made]):  # its neighbours are now near each other
                new = beside[made] & ~near[other] & ~(1 << other)
                near[other] |= new
                for another in _bits(new):
                    if another > other:
                        heappush(waiting, rank(other, another))
        return pairs

    @staticmethod
    def _near(position: int, beside: dict[int, int]) -> int:
        """Who shares a label to be summed with it or with one who does, as bits."""
        near = beside[position]
        for other in _bits(beside[position]):
            near |= beside[other]
        return near & ~(1 << position)

    def _merge(self, live: dict[int, Value], beside: dict[int, int], pairs: Pairs, pair: tuple[int, int]) -> int:
        """Merge a pair; the position of what it makes."""
        one, two = pair
        pairs.append(pair)
        made = len(self.operands) + len(pairs) - 1
        live[made] = self.steps.step(live.pop(one), live.pop(two))[0]
        gone = 1 << one | 1 << two
        beside[made] = (beside.pop(one) | beside.pop(two)) & ~gone
        for other in _bits(beside[made]):
            beside[other] = beside[other] & ~gone | 1 << made
        return made

    def improved(self, pairs: Pairs) -> Pairs:
        """The same order with parts replaced by the best orders of their operands, until none gets better.

        What a part takes in is drawn: parts that are cut off level by level leave some orders stuck.
        """
        chance = random.Random(0)
        count = len(self.operands)
        children = {count + number: pair for number, pair in enumerate(pairs)}
        made = dict(enumerate(self.steps.leaves))
        self._make(made, list(children), children)
        waiting = set(children)
        for root in list(reversed(children)) * SWEEPS:
            if root not in waiting:
                continue
            waiting.discard(root)
            inner, around = _part(root, children, chance)
            found = self._better(inner, around, children, made)
            if found is None:
                continue
            # The part has as many inner values as before: their positions are used again, the root's for the last.
            again = inner[::-1]
            names = [*around, *again]
            for position, (one, two) in zip(again, found, strict=True):
                children[position] = (names[one], names[two])
            self._make(made, again, children)
            waiting = set(children)
        return _unrolled(count + len(pairs) - 1, children, count)

    def _make(self, made: dict[int, Value], order: Sequence[int], children: dict[int, tuple[int, int]]) -> None:
        """Put into ``made`` the values at some positions, each behind those that it is made of."""
        for position in order:
            one, two = children[position]
            made[position] = self.steps.step(made[one], made[two])[0]

    def _better(
        self, inner: list[int], around: list[int], children: dict[int, tuple[int, int]], made: dict[int, Value]
    ) -> Pairs | None:
        """A better order of a part, its operands numbered as in ``around``."""
        if len(around) < 3:
            return None
        values = [made[position] for position in around]
        number = {position: k for k, position in enumerate(around)}
        now: Pairs = []
        for position in reversed(inner):
            one, two = children[position]
            now.append((number[one], number[two]))
            number[position] = len(around) + len(now) - 1
        found = self._best(values, made[inner[0]])
        (largest, cost), (largest_now, cost_now) = self.cost(found, values), self.cost(now, values)
        better = largest < largest_now or (largest == largest_now and cost < cost_now * (1 - 1e-9))
        return found if better else None

    def _alike(self, values: Sequence[Value], whole: Value) -> tuple[object, ...]:
        """The same for parts that differ in the names of their labels alone, as those along a chain do."""
        carriers: dict[str, int] = {}
        for position, value in enumerate(values):
            for label in value.operand.labels:
                carriers[label] = carriers.get(label, 0) | 1 << position
        kept = whole.operand.labels
        kinds = {x: (mask, x in kept, x == BATCH, self.sizes[x]) for x, mask in carriers.items()}
        memories = [value.operand.memory for value in values]
        return (
            len(values),
            tuple(sorted(kinds.values())),
            tuple(None if memory is None else tuple(kinds[x] for x in memory) for memory in memories),
        )

    def _best(self, values: Sequence[Value], whole: Value) -> Pairs:
        """The best order of some values, searched once for all parts that are alike."""
        key = self._alike(values, whole)
        if key not in self.parts:
            arguments = ([value.operand for value in values], whole.operand.labels, self.sizes)
            found = search_order(*arguments, moved=self.moved, limit=self.limit, smallest=self.smallest)
            if found is None:  # nothing within the limit: then as small as it goes
                found = search_order(*arguments, moved=self.moved, smallest=True)
            assert found is not None  # without a limit there is always an order
            self.parts[key] = found
        return self.parts[key]


def _bits(members: int) -> Iterator[int]:
    """The places of an int's bits that are set, from the lowest."""
    while members:
        lowest = members & -members
        yield lowest.bit_length() - 1
        members ^= lowest


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
