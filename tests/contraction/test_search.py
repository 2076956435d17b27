"""The search for an order, against all orders."""

import math
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from factorized_moe.contraction.exhaustive import SLACK, AllOrders, search_order
from factorized_moe.contraction.search import Operand, Pairs

LABELS = "abcdefg"
SIZES = dict(zip(LABELS, (2, 3, 5, 7, 4, 9, 6), strict=True))


def size_of(labels: frozenset[str]) -> int:
    return math.prod(SIZES[x] for x in labels)


def all_costs(live: list[frozenset[str]], output: frozenset[str], moved: float) -> Iterator[tuple[float, int]]:
    """Cost and largest intermediate of every pairwise order."""
    if len(live) == 1:
        yield 0.0, 0
    for one in range(len(live)):
        for two in range(one):
            rest = [labels for k, labels in enumerate(live) if k not in (one, two)]
            cost, kept = step_cost(live[one], live[two], rest, output, moved)
            for later, largest in all_costs([*rest, kept], output, moved):
                yield cost + later, max(largest, size_of(kept))


def step_cost(
    one: frozenset[str], two: frozenset[str], rest: list[frozenset[str]], output: frozenset[str], moved: float
) -> tuple[float, frozenset[str]]:
    kept = (one | two) & output.union(*rest)
    flops = sum(size_of(mine) for mine, other in ((one, two), (two, one)) if mine - other - kept)  # summed on its own
    flops += size_of(kept | (one & two)) * (2 if one & two - kept else 1)
    return flops + moved * (size_of(one) + size_of(two) + size_of(kept)), kept


def cost_of(pairs: Pairs, operands: list[frozenset[str]], output: frozenset[str], moved: float) -> tuple[float, int]:
    """Cost and largest intermediate of one order."""
    values = dict(enumerate(operands))
    total, largest = 0.0, 0
    for one, two in pairs:
        left, right = values.pop(one), values.pop(two)
        cost, kept = step_cost(left, right, list(values.values()), output, moved)
        values[len(operands) + pairs.index((one, two))] = kept
        total, largest = total + cost, max(largest, size_of(kept))
    assert len(values) == 1
    return total, largest


@settings(max_examples=60)
@given(
    operands=st.lists(st.frozensets(st.sampled_from(LABELS), max_size=4), min_size=2, max_size=5),
    output=st.frozensets(st.sampled_from(LABELS), max_size=3),
    moved=st.sampled_from([0.0, 1.0, 8.0]),
)
def test_the_cheapest_order_is_found(operands: list[frozenset[str]], output: frozenset[str], moved: float) -> None:
    costs = list(all_costs(operands, output, moved))
    found = search_order([Operand(labels) for labels in operands], output, SIZES, moved=moved)
    assert found is not None
    assert cost_of(found, operands, output, moved)[0] == min(cost for cost, _ in costs)

    smallest = min(largest for _, largest in costs)
    found = search_order([Operand(labels) for labels in operands], output, SIZES, moved=moved, smallest=True)
    assert found is not None
    cheapest = min(cost for cost, largest in costs if largest == smallest)
    assert cost_of(found, operands, output, moved) == (cheapest, smallest)

    arguments = ([Operand(labels) for labels in operands], output, SIZES)
    assert search_order(*arguments, moved=moved, limit=smallest - 1) is None
    found = search_order(*arguments, moved=moved, limit=smallest)
    assert found is not None
    assert cost_of(found, operands, output, moved) == (cheapest, smallest)


@settings(max_examples=60)
@given(
    operands=st.lists(st.frozensets(st.sampled_from(LABELS), max_size=4), min_size=2, max_size=5),
    output=st.frozensets(st.sampled_from(LABELS), max_size=3),
)
def test_the_smallest_intermediates_of_the_orders_near_the_cheapest(
    operands: list[frozenset[str]], output: frozenset[str]
) -> None:
    costs = list(all_costs(operands, output, 8.0))
    near = min(cost for cost, _ in costs) * SLACK
    smallest = min(largest for cost, largest in costs if cost <= near)
    cost, pairs = AllOrders([Operand(labels) for labels in operands], output, SIZES).balanced()
    assert cost_of(pairs, operands, output, 8.0) == (cost, smallest)
    assert cost == min(cost for cost, largest in costs if largest == smallest)


def test_a_parameter_is_not_copied_if_another_order_is_about_as_cheap() -> None:
    """Contracting the middle axis of a parameter copies it; contracting the two outer ones one after the other not."""
    sizes = {"batch": 8, "left": 10, "middle": 11, "right": 10}
    vectors = [Operand(frozenset({"batch", name})) for name in ("left", "middle", "right")]
    core = Operand(frozenset({"left", "middle", "right"}), memory=("left", "middle", "right"))
    found = search_order([core, *vectors], frozenset({"batch"}), sizes)
    assert found is not None
    partner = next(pair for pair in found if 0 in pair)
    assert partner != (0, 2)
    assert partner != (2, 0)
