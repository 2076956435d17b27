"""The order of pairwise contractions: an exhaustive search for a few operands; `large` has the one for many.

opt_einsum's dynamic programming counts FLOPs alone, and FLOPs are not time: among orders of nearly equal FLOPs one may
copy a parameter at every call or write large intermediates. Here each step is charged for the elements it moves as
well, which needs to know the memory order of the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = [
    "COPIED",
    "EXHAUSTIVE",
    "MOVED",
    "SCANNED",
    "Operand",
    "Pairs",
    "order_cost",
    "pair_flops",
    "search_order",
    "step_cost",
]

MOVED = 8
"""FLOPs that reading or writing one element counts for.

``python -m benchmarks --only cost_model`` fits 4 to 29, depending on the machine. Little is charged, so that an order
has more FLOPs than another only where it clearly pays.
"""

COPIED = 200
"""The same for an element of a parameter that is copied into another order: fitted as 35 to 215."""

SCANNED = 256
"""The same for a coefficient that is looked at to find out whether it is zero: fitted as 116 to 120 on one machine.

It is the price of reading only the rows of non-zero coefficients, so that pays only for rows of more elements than half
of it: in CP's factors with one element for each rank, hardly in a tensor ring's. More is charged than was fitted,
because on another machine, which was not fitted, skipping rows of 256 elements saved nothing.
"""

EXHAUSTIVE = 10
"""Up to so many operands every order is tried; 3**n splits, 0.1 s for ten."""

Pairs = list[tuple[int, int]]
"""An order: positions in the list of operands; the result of pair k takes position ``len(operands) + k``."""


@dataclass(frozen=True)
class Operand:
    """An operand of the search.

    Attributes:
        labels: Its labels.
        memory: Their order in memory if it is a parameter, which a step may have to copy; otherwise ``None``.
    """

    labels: frozenset[str]
    memory: tuple[str, ...] | None = None


def search_order(
    operands: Sequence[Operand],
    output: frozenset[str],
    sizes: dict[str, int],
    *,
    moved: float = MOVED,
    limit: int | None = None,
    smallest: bool = False,
) -> Pairs | None:
    """The cheapest order of all, outer products included, by dynamic programming over subsets: 3**n steps.

    Args:
        operands: The operands, at most about `EXHAUSTIVE`.
        output: The labels that the result keeps.
        sizes: The size of every label.
        moved: The cost of an element moved, in FLOPs.
        limit: The most elements that any intermediate may have.
        smallest: Whether to make the largest intermediate as small as possible; the cost decides between equals.

    Returns:
        The order, or ``None`` if no order keeps to the limit.
    """
    count = len(operands)
    carriers: dict[str, int] = {}
    for position, operand in enumerate(operands):
        for label in operand.labels:
            carriers[label] = carriers.get(label, 0) | 1 << position
    everyone = (1 << count) - 1
    size: dict[frozenset[str], int] = {}

    def size_of(labels: frozenset[str]) -> int:
        if labels not in size:
            size[labels] = math.prod(sizes[label] for label in labels)
        return size[labels]

    # For each set of operands: the largest intermediate and the cost so far, the split, and what the set makes.
    best: dict[int, tuple[int, float, int]] = {}
    made: dict[int, Operand] = {}
    for position, operand in enumerate(operands):
        best[1 << position] = (0, 0.0, 0)
        made[1 << position] = operand
    for group in range(1, everyone + 1):
        if group in best:
            continue
        members = [1 << p for p in range(count) if group >> p & 1]
        outside = everyone & ~group
        union = frozenset().union(*(operands[m.bit_length() - 1].labels for m in members))
        kept = frozenset(x for x in union if x in output or carriers[x] & outside)
        made[group] = Operand(kept)
        result = size_of(kept)
        if limit is not None and result > limit:
            continue
        choice: tuple[int, float, int] | None = None
        part = (group - 1) & group
        while part:
            other = group ^ part
            if part > other and part in best and other in best:
                left, right = best[part], best[other]
                largest = max(left[0], right[0], result) if smallest else 0
                step = step_cost(made[part], made[other], kept, size_of, moved)
                candidate = (largest, left[1] + right[1] + step, part)
                if choice is None or candidate < choice:
                    choice = candidate
            part = (part - 1) & group
        if choice is not None:
            best[group] = choice
    if everyone not in best:
        return None
    return _unroll(everyone, best, count)


def order_cost(
    pairs: Sequence[tuple[int, int]],
    operands: Sequence[Operand],
    output: frozenset[str],
    sizes: dict[str, int],
    moved: float = MOVED,
) -> tuple[int, float]:
    """The elements of an order's largest intermediate, and its cost.

    Args:
        pairs: The order.
        operands: The operands.
        output: The labels that the result keeps.
        sizes: The size of every label.
        moved: The cost of an element moved, in FLOPs.
    """

    def size_of(labels: frozenset[str]) -> int:
        return math.prod(sizes[label] for label in labels)

    live = dict(enumerate(operands))
    largest, cost = 0, 0.0
    for count, (one, two) in enumerate(pairs):
        left, right = live.pop(one), live.pop(two)
        kept = (left.labels | right.labels) & output.union(*(operand.labels for operand in live.values()))
        largest = max(largest, size_of(kept))
        cost += step_cost(left, right, kept, size_of, moved)
        live[len(operands) + count] = Operand(kept)
    return largest, cost


def pair_flops(
    left: frozenset[str], right: frozenset[str], kept: frozenset[str], size_of: Callable[[frozenset[str]], int]
) -> int:
    """Multiplications and additions of one step on two operands.

    A label that one operand alone has, and the result has not, is summed before the operands meet.

    Args:
        left: The labels of the left operand.
        right: Those of the right one.
        kept: Those of the result.
        size_of: The product of some labels' sizes.
    """
    both = left & right
    flops = (1 if both <= kept else 2) * size_of((left | right) & (both | kept))
    for mine in (left, right):
        alone = mine - both - kept
        if alone and size_of(alone) > 1:
            flops += size_of(mine)
    return flops


def step_cost(
    left: Operand, right: Operand, kept: frozenset[str], size_of: Callable[[frozenset[str]], int], moved: float
) -> float:
    """The cost of one step in FLOPs: its FLOPs, the elements of values moved, and the elements of a parameter copied.

    Args:
        left: An operand.
        right: The other.
        kept: The labels of the result.
        size_of: The product of some labels' sizes.
        moved: The cost of an element moved.
    """
    flops = pair_flops(left.labels, right.labels, kept, size_of)
    elements = size_of(kept)
    for mine, theirs in ((left, right), (right, left)):
        if mine.memory is None:
            elements += size_of(mine.labels)
        elif not mine.labels & theirs.labels & kept:
            contracted = [x in theirs.labels and x not in kept for x in mine.memory if x in mine.labels]
            # A matrix product reads the parameter in place if the contracted labels lie together at one end.
            if contracted != sorted(contracted) and contracted != sorted(contracted, reverse=True):
                flops += COPIED * size_of(mine.labels)
    return float(flops + moved * elements)


def _unroll(group: int, best: dict[int, tuple[int, float, int]], count: int) -> Pairs:
    pairs: Pairs = []

    def visit(group: int) -> int:
        part = best[group][2]
        if not part:
            return group.bit_length() - 1
        first, second = visit(part), visit(group ^ part)
        pairs.append((first, second))
        return count + len(pairs) - 1

    visit(group)
    return pairs
