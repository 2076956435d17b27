"""What `large` and `steps` work out, written plainly: each time all labels and all pairs are looked at."""

import itertools
import math
import random
from collections.abc import Callable, Sequence

from factorized_moe.contraction.search import MOVED, Operand, merged_operand, step_cost

Pairs = Sequence[tuple[int, int]]


def order_cost(
    pairs: Pairs, operands: Sequence[Operand], output: frozenset[str], sizes: dict[str, int]
) -> tuple[int, float]:
    """The elements of an order's largest intermediate, and its cost."""
    live = dict(enumerate(operands))
    largest, cost = 0, 0.0
    for count, (one, two) in enumerate(pairs):
        left, right = live.pop(one), live.pop(two)
        made = merged_operand(left, right, output, live.values())
        largest = max(largest, size_of(made.labels, sizes))
        cost += step_cost(left, right, made.labels, lambda labels: size_of(labels, sizes), MOVED)
        live[len(operands) + count] = made
    return largest, cost


def size_of(labels: frozenset[str], sizes: dict[str, int]) -> int:
    return math.prod(sizes[label] for label in labels)


def merged(
    operands: Sequence[Operand],
    output: frozenset[str],
    sizes: dict[str, int],
    rule: Callable[[float, float, float, float], float],
    parameters_last: bool,
    chance: random.Random | None,
) -> list[tuple[int, int]]:
    """The order in which the next pair is always the one for which a rule gives the least."""
    live = dict(enumerate(operands))
    draws = {pair: chance.random() for pair in itertools.combinations(live, 2)} if chance else {}
    pairs: list[tuple[int, int]] = []

    def value(pair: tuple[int, int]) -> tuple[bool, float, float, int, int]:
        left, right = live[pair[0]], live[pair[1]]
        kept = merged_operand(left, right, output, [live[k] for k in live if k not in pair]).labels
        cost = step_cost(left, right, kept, lambda labels: size_of(labels, sizes), MOVED)
        found = float(rule(size_of(left.labels, sizes), size_of(right.labels, sizes), size_of(kept, sizes), cost))
        if chance:
            found += abs(found) * math.log(1 / (1 - draws[pair]))
        last = parameters_last and left.memory is not None and right.memory is not None
        return last, found, cost, *pair

    def beside(one: int, two: int) -> bool:
        return bool((live[one].labels & live[two].labels) - output)

    while len(live) > 1:
        every = list(itertools.combinations(live, 2))
        thirds = {pair: [k for k in live if k not in pair] for pair in every}
        near = [p for p in every if beside(*p) or any(beside(p[0], k) and beside(p[1], k) for k in thirds[p])]
        one, two = min(map(value, near or every))[3:]
        left, right = live.pop(one), live.pop(two)
        pairs.append((one, two))
        made = len(operands) + len(pairs) - 1
        if chance:
            draws |= {(other, made): chance.random() for other in live}
        live[made] = merged_operand(left, right, output, live.values())
    return pairs
