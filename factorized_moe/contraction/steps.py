"""What steps between sets of operands make and cost, each worked out once.

Whatever the order, the result of contracting some operands has the same labels: those that the output or another
operand has too. So a step is known by the two sets of operands that it joins, and a search that tries many orders of
many operands meets the same steps again and again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from factorized_moe.contraction.search import MOVED, Operand, step_cost

__all__ = ["Steps", "Value"]


class Value:
    """What some operands are contracted to.

    Attributes:
        members: The operands, as the bits of an int.
        kind: A number that values of the same labels, and of the same order in memory if they are parameters, share.
        operand: The labels, and the order in memory of a parameter.
        elements: The elements.
    """

    __slots__ = ("elements", "kind", "members", "operand", "steps")

    def __init__(self, members: int, kind: int, operand: Operand, elements: int) -> None:
        self.members, self.kind, self.operand, self.elements = members, kind, operand, elements
        self.steps: dict[int, tuple[Value, float]] = {}  # by the other value's members


class Steps:
    """The steps of all orders of some operands.

    Args:
        operands: The operands.
        output: The labels that the result keeps.
        sizes: The size of every label.
        moved: The cost of an element moved, in FLOPs.
    """

    def __init__(
        self, operands: Sequence[Operand], output: frozenset[str], sizes: dict[str, int], moved: float = MOVED
    ) -> None:
        self._output, self._sizes, self._moved = output, sizes, moved
        self._products: dict[frozenset[str], int] = {}
        self._kinds: dict[object, tuple[int, Operand, int]] = {}  # by the labels, or of a parameter by the operand
        self._costs: dict[tuple[int, int, int], float] = {}  # by the kinds of both values and of the result
        self._made: dict[int, Value] = {}
        self._carriers: dict[str, int] = {}
        for position, operand in enumerate(operands):
            for label in operand.labels:
                self._carriers[label] = self._carriers.get(label, 0) | 1 << position
        self.leaves = [Value(1 << position, *self._kind(operand)) for position, operand in enumerate(operands)]

    def step(self, left: Value, right: Value) -> tuple[Value, float]:
        """What a step makes of two values, and what it costs: `step_cost`."""
        known = left.steps.get(right.members)
        if known is None:
            made = self._value(left, right)
            kinds = left.kind, right.kind, made.kind
            cost = self._costs.get(kinds)
            if cost is None:
                cost = step_cost(left.operand, right.operand, made.operand.labels, self._size, self._moved)
                self._costs[kinds] = cost
            known = left.steps[right.members] = made, cost
        return known

    def cost(self, pairs: Sequence[tuple[int, int]], values: Sequence[Value] = ()) -> tuple[int, float]:
        """The elements of an order's largest intermediate, and its cost.

        Args:
            pairs: The order.
            values: What it is an order of, the operands by default.
        """
        live = list(values or self.leaves)
        largest, total = 0, 0.0
        for one, two in pairs:
            made, cost = self.step(live[one], live[two])
            live.append(made)
            largest, total = max(largest, made.elements), total + cost
        return largest, total

    def _value(self, left: Value, right: Value) -> Value:
        members = left.members | right.members
        made = self._made.get(members)
        if made is None:
            both = left.operand.labels | right.operand.labels
            kept = frozenset([x for x in both if x in self._output or self._carriers[x] & ~members])
            kind = self._kinds.get(kept) or self._kind(Operand(kept))
            made = self._made[members] = Value(members, *kind)
        return made

    def _kind(self, operand: Operand) -> tuple[int, Operand, int]:
        """The number, the labels and the elements of a kind."""
        key = operand.labels if operand.memory is None else operand
        if key not in self._kinds:
            self._kinds[key] = len(self._kinds), operand, self._size(operand.labels)
        return self._kinds[key]

    def _size(self, labels: frozenset[str]) -> int:
        found = self._products.get(labels)
        if found is None:
            found = self._products[labels] = math.prod(self._sizes[label] for label in labels)
        return found
