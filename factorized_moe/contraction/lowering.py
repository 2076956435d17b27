"""Lowering: each step of a plan becomes the operation that suits its labels, in a memory order that needs no copy.

Legend, for a step on two operands: S labels that both have and the result keeps, K labels that both have and the
result loses (they are contracted), L and R labels that only the left or only the right operand has. A *leaf* is a
parameter or a vector: its memory order is given. The order of every other value is free, so a pass from the answer
back to the leaves collects the order that each value's consumer wants, and a second pass makes the operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from factorized_moe.contraction.operations import (
    Add,
    Align,
    AppendConstants,
    Arrange,
    BatchedMatMul,
    Expand,
    MatMul,
    Multiply,
    MultiplySum,
    Operation,
    SparseMatMul,
)
from factorized_moe.contraction.plan import Step
from factorized_moe.contraction.search import pair_flops
from factorized_moe.network import BATCH

__all__ = ["Draft", "lower"]

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """A step before lowering: its operands' positions, the orders of those that are leaves, what is kept."""

    operands: tuple[int, ...]
    leaves: dict[int, Labels | None]
    kept: frozenset[str]


@dataclass(frozen=True)
class _Pair:
    """A step on two operands with its labels sorted into the four groups, each in the order to be used."""

    left: int
    right: int
    shared: Labels
    only_left: Labels
    only_right: Labels
    contracted: Labels

    @property
    def is_matrix_product(self) -> bool:
        return bool(self.contracted) and not self.shared and BATCH not in self.only_right

    @property
    def is_inner_product(self) -> bool:
        return bool(self.contracted) and not self.only_left and not self.only_right


def lower(
    drafts: Sequence[Draft],
    answers: Sequence[int],
    output: Labels,
    sizes: dict[str, int],
    *,
    padded: int | None,
    zeros: int,
    first_free: int,
    multiply: bool,
    sparse: frozenset[int],
    scanned: float,
) -> list[Step]:
    """Lower a plan's drafts.

    Args:
        drafts: The steps of all terms; the one at index k makes value ``first_free + k``.
        answers: The value that closes each term; the answers are added up.
        output: The labels of the answer, in order.
        sizes: The size of every label.
        padded: The position of a vector that lacks the last entry of its label, a constant 1; or ``None``.
        zeros: How many zeros the first vector lacks at its end, after that 1.
        first_free: The number of leaves.
        multiply: Whether small products per sample become a multiplication and a sum.
        sparse: The positions of vectors that are mostly zeros.
        scanned: The FLOPs that finding out whether one of their entries is zero counts for.

    Returns:
        For each step its operands, operation, result labels, formula, FLOPs, elements, and elements read that grow
        with the batch and that do not.
    """
    orders: dict[int, Labels] = {p: o for d in drafts for p, o in d.leaves.items() if o is not None}
    leaves = set(orders)
    builder = _Builder(sizes, first_free, multiply, sparse, scanned)
    for position, order in sorted(orders.items()):
        builder.place[position] = position
        builder.labels[position] = order
        inputs = order[1:] if order[:1] == (BATCH,) else ()
        folded = position == padded and len(inputs) == 1 and _absorbed(position, drafts, first_free)
        one = position == padded and not folded
        if one or (zeros and len(inputs) > 1):  # only a group of several labels is padded
            builder.append(position, order, one, zeros)
        if len(inputs) > 1:
            builder.split_group(position, order)

    pairs, wanted = _want(drafts, leaves, orders, output, sizes, first_free)
    for index, draft in enumerate(drafts):
        value = first_free + index
        pair = pairs[index]
        if pair is None:
            builder.arrange(draft.operands[0], value, orders, output)
        else:
            bias = padded in (pair.left, pair.right) and builder.place[padded] == padded
            builder.contract(pair, value, orders, wanted[value], bias)
    total = answers[0]
    for answer in answers[1:]:
        total = builder.add(total, answer, output)
    return builder.steps


def _absorbed(position: int, drafts: Sequence[Draft], first_free: int) -> bool:
    """Whether a vector meets, in every step that uses it, parameters with which it makes a matrix product."""
    labels: dict[int, frozenset[str]] = {}
    for index, draft in enumerate(drafts):
        labels |= {p: frozenset(order) for p, order in draft.leaves.items() if order is not None}
        labels[first_free + index] = frozenset().union(*(labels[p] for p in draft.operands)) & draft.kept
        if position in draft.operands:
            others = [labels[p] for p in draft.operands if p != position]
            summed = labels[position] - {BATCH}
            if not others or BATCH in others[0] or not summed <= others[0] or summed & draft.kept:
                return False
    return True


def _want(
    drafts: Sequence[Draft],
    leaves: set[int],
    orders: dict[int, Labels],
    output: Labels,
    sizes: dict[str, int],
    first_free: int,
) -> tuple[list[_Pair | None], dict[int, Labels]]:
    """Sort every step's labels into groups, from the answer backwards, so that each value suits its consumer."""
    labels = {position: frozenset(order) for position, order in orders.items()}
    for index, draft in enumerate(drafts):
        labels[first_free + index] = frozenset().union(*(labels[p] for p in draft.operands)) & draft.kept
    canonical = (BATCH, *(label for label in sizes if label != BATCH))
    wanted: dict[int, Labels] = {}
    pairs: list[_Pair | None] = [None] * len(drafts)
    for index in reversed(range(len(drafts))):
        draft, value = drafts[index], first_free + index
        want = wanted.setdefault(value, output)
        if len(draft.operands) == 1:
            wanted[draft.operands[0]] = tuple(x for x in want if x in labels[draft.operands[0]])
            continue
        pair = _sort_labels(draft, labels, leaves, orders, want, canonical)
        pairs[index] = pair
        if pair.contracted:
            wanted[pair.left] = pair.shared + pair.only_left + pair.contracted
            wanted[pair.right] = pair.shared + pair.contracted + pair.only_right
        else:
            wanted[pair.left] = tuple(x for x in want if x in labels[pair.left])
            wanted[pair.right] = tuple(x for x in want if x in labels[pair.right])
    return pairs, wanted


def _sort_labels(
    draft: Draft,
    labels: dict[int, frozenset[str]],
    leaves: set[int],
    orders: dict[int, Labels],
    want: Labels,
    canonical: Labels,
) -> _Pair:
    left, right = draft.operands
    both = labels[left] & labels[right]
    # The operand without a batch goes right (a matrix product's parameter); otherwise whichever the consumer wants.
    first = next((x for x in want if (x in labels[left]) != (x in labels[right])), None)
    if BATCH not in labels[left] if BATCH in labels[left] ^ labels[right] else first in labels[right]:
        left, right = right, left
    memory = orders[right] if right in leaves else orders[left] if left in leaves else canonical

    def ordered(group: Iterable[str], order: Labels) -> Labels:
        members = set(group)
        return tuple(x for x in order if x in members)

    only_right = (labels[right] - both) & draft.kept
    return _Pair(
        left,
        right,
        shared=ordered(both & draft.kept, want),
        only_left=ordered((labels[left] - both) & draft.kept, want),
        only_right=ordered(only_right, orders[right] if right in leaves else want),
        contracted=ordered(both - draft.kept, memory),
    )


class _Builder:
    """Collects lowered steps and keeps, for each value, its place among all values so far and its labels' order."""

    def __init__(
        self, sizes: dict[str, int], first_free: int, multiply: bool, sparse: frozenset[int], scanned: float
    ) -> None:
        self.sizes = sizes
        self.multiply = multiply
        self.sparse = sparse
        self.scanned = scanned
        self.steps: list[Step] = []
        self.place: dict[int, int] = {}
        self.labels: dict[int, Labels] = {}
        self.first_free = first_free

    def _emit(
        self,
        value: int,
        operands: tuple[int, ...],
        operation: Operation,
        labels: Labels,
        formula: str,
        flops: int = 0,
        elements: int | None = None,
    ) -> None:
        count = self._size(labels) if elements is None else elements
        read = [self._size(self.labels[p]) for p in operands if BATCH in self.labels[p]]
        fixed = [self._size(self.labels[p]) for p in operands if BATCH not in self.labels[p]]
        places = tuple(self.place[p] for p in operands)
        self.steps.append(Step(places, operation, labels, formula, flops, count, sum(read), sum(fixed)))
        self.labels[value] = labels
        self.place[value] = self.first_free + len(self.steps) - 1

    def _size(self, labels: Iterable[str]) -> int:
        return math.prod(self.sizes[label] for label in labels)

    def _axis(self, labels: Iterable[str]) -> int:
        labels = tuple(labels)
        return -1 if BATCH in labels else self._size(labels)

    def _to(self, order: Labels, groups: Sequence[Labels]) -> Arrange | None:
        """Brings a value of some order to grouped axes; labels in no group are summed. ``None`` if nothing is to do."""
        target = tuple(label for group in groups for label in group)
        # An axis of size 1 needs no sum: it goes last and the shape leaves it out.
        idle = tuple(label for label in order if label not in target and self.sizes[label] == 1 and label != BATCH)
        gone = tuple(axis for axis, label in enumerate(order) if label not in target + idle)
        left = tuple(label for label in order if label in target + idle)
        permutation = tuple(left.index(label) for label in target + idle)
        plain = not idle and all(len(group) == 1 for group in groups)
        arrange = Arrange(
            gone or None,
            None if permutation == tuple(range(len(left))) else permutation,
            None if plain else tuple(self._axis(group) for group in groups),
        )
        return None if arrange == Arrange() else arrange

    def _split(self, groups: Sequence[Labels]) -> Arrange | None:
        """Takes grouped axes apart again."""
        if all(len(group) == 1 for group in groups):
            return None
        return Arrange(shape=tuple(self._axis((label,)) for group in groups for label in group))

    def append(self, position: int, order: Labels, one: bool, zeros: int) -> None:
        self._emit(position, (position,), AppendConstants(one, zeros), order, _formula([order], order))

    def split_group(self, position: int, order: Labels) -> None:
        shape = tuple(self._axis((label,)) for label in order)
        self._emit(position, (position,), Expand(Arrange(shape=shape)), order, _formula([order], order), elements=0)

    def contract(self, pair: _Pair, value: int, orders: dict[int, Labels], want: Labels, bias: bool) -> None:
        left, right = orders[pair.left], orders[pair.right]
        operation, result = self._operation(pair, left, right, want, bias)
        orders[value] = result
        flops = pair_flops(frozenset(left), frozenset(right), frozenset(result), self._size)
        self._emit(value, (pair.left, pair.right), operation, result, _formula([left, right], result), flops)

    def _operation(
        self, pair: _Pair, left: Labels, right: Labels, want: Labels, bias: bool
    ) -> tuple[Operation, Labels]:
        """The operation for a pair, and the labels of its result in memory order."""
        shared, only_left, only_right, contracted = pair.shared, pair.only_left, pair.only_right, pair.contracted
        result = shared + only_left + only_right
        split = self._split([group for group in (shared, only_left, only_right) if group or not pair.is_inner_product])
        if pair.is_matrix_product:
            result, split = only_left + only_right, self._split([only_left, only_right])
            pays = 2 * self._size(only_right) >= self.scanned  # else a dense product is as fast as looking for zeros
            if pays and pair.left in self.sparse and left[1:] == contracted:
                return SparseMatMul(self._to(right, [contracted, only_right]), split), result
            kept = tuple(x for x in right if x in contracted + only_right)
            transposed = bool(only_right) and kept == only_right + contracted
            groups = [only_right, contracted] if transposed else [contracted, only_right]
            arranged = self._to(left, [only_left, contracted]), self._to(right, groups)
            return MatMul(arranged[0], arranged[1], transposed, bias, split), result
        if self._size(contracted) == 1:
            result = tuple(x for x in want if x in result)
            return Multiply(self._align(left, result), self._align(right, result)), result
        if pair.is_inner_product:
            arranged = self._to(left, [shared, contracted]), self._to(right, [shared, contracted])
            return MultiplySum(arranged[0], arranged[1], -1, split), result
        if self.multiply:
            arranged = (
                self._to(left, [shared, only_left, contracted, ()]),
                self._to(right, [shared, (), contracted, only_right]),
            )
            return MultiplySum(arranged[0], arranged[1], 2, split), result
        arranged = self._to(left, [shared, only_left, contracted]), self._to(right, [shared, contracted, only_right])
        return BatchedMatMul(arranged[0], arranged[1], split), result

    def _align(self, order: Labels, result: Labels) -> Arrange | Align | None:
        """Brings an operand of a product to the result's axes, of size 1 where it lacks the label."""
        arrange = self._to(order, [(x,) for x in result if x in order])
        missing = tuple(axis for axis, x in enumerate(result) if x not in order)
        if not missing:
            return arrange
        return Align(arrange, missing, tuple(self._axis((x,)) if x in order else 1 for x in result))

    def arrange(self, operand: int, value: int, orders: dict[int, Labels], output: Labels) -> None:
        order = orders[operand]
        present = tuple(x for x in output if x in order)
        arrange = self._to(order, [(x,) for x in present])
        missing = tuple(axis for axis, x in enumerate(output) if x not in order)
        orders[value] = output
        if arrange is None and not missing:
            self.place[value] = self.place[operand]
            self.labels[value] = output
            return
        expanded = tuple(self._axis((x,)) for x in output) if missing else None
        flops = self._size(order) if arrange is not None and arrange.sum_axes else 0
        self._emit(value, (operand,), Expand(arrange, missing, expanded), output, _formula([order], output), flops)

    def add(self, left: int, right: int, output: Labels) -> int:
        value = -1 - len(self.steps)  # a key of its own: drafts' values are positive
        self._emit(value, (left, right), Add(), output, _formula([output, output], output), self._size(output))
        return value


def _formula(operands: Iterable[Labels], result: Labels) -> str:
    def words(labels: Labels) -> str:
        return " ".join(label for label in labels if label != BATCH) or "1"

    return f"{', '.join(words(labels) for labels in operands)} -> {words(result)}"
