"""The search over many operands, beside the same written plainly, and how often it works a thing out."""

import random
from typing import Any

import pytest

from factorized_moe.contraction import exhaustive, forward_request, large, plan_layer, steps
from factorized_moe.contraction.search import Operand
from factorized_moe.decompositions import get_decomposition
from factorized_moe.network import BATCH

from .plain_merging import merged, order_cost


def drawn_operands(
    chance: random.Random, count: int, most: list[int]
) -> tuple[list[Operand], frozenset[str], dict[str, int]]:
    """Parameters and vectors along a tree, sometimes in two pieces, and labels that some of them share besides."""
    joined = [[k, chance.randrange(k)] for k in range(1, count) if chance.random() < 0.97]
    joined += [chance.sample(range(count), chance.choice([1, 2, 3, 4])) for _ in range(3)]
    sizes = {f"label_{k}": chance.choice(most) for k in range(len(joined))}
    labels = [[label for label, mine in zip(sizes, joined, strict=True) if k in mine] for k in range(count)]
    vectors = chance.randint(1, 4)
    operands = [Operand(frozenset(mine), tuple(mine)) for mine in labels[:-vectors]]
    operands += [Operand(frozenset((BATCH, *mine))) for mine in labels[-vectors:]]
    output = frozenset((BATCH, *chance.sample(sorted(sizes), chance.randint(0, 2))))
    return operands, output, sizes | {BATCH: chance.choice([1, 64])}


@pytest.mark.parametrize("seed", range(12))
def test_pairs_are_merged_as_where_all_is_looked_at_anew(seed: int) -> None:
    chance = random.Random(seed)
    operands, output, sizes = drawn_operands(chance, chance.randint(3, 16), [1, 2, 3, 16])
    search = large._Search(tuple(operands), output, sizes, 8, None, False)
    for rule in large.RULES:
        for last, blurred in ((False, False), (True, False), (False, True)):
            one, other = (random.Random(seed) if blurred else None for _ in range(2))
            found = search.merged([], rule, last, one)
            assert found == merged(operands, output, sizes, rule, last, other)
            assert search.merged(found[:2], rule, last, random.Random(0))[:2] == found[:2]
            assert search.steps.cost(found) == order_cost(found, operands, output, sizes)


@pytest.mark.parametrize("seed", range(6))
def test_parts_that_are_alike_have_one_best_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    operands, output, sizes = drawn_operands(chance, 20, [2, 2, 3])
    best = large._Search._best

    def checked(search: large._Search, values: Any, whole: Any) -> Any:
        found = best(search, values, whole)
        assert found == exhaustive.search_order([v.operand for v in values], whole.operand.labels, sizes)
        return found

    monkeypatch.setattr(large._Search, "_best", checked)
    large.search_large(operands, output, sizes)


def key_of(third: str = "b c d", kept: str = "a d", memory: str | None = "c a e", **sizes: int) -> Any:
    """The key of a part of three values, of labels of sizes 2 to 6 if nothing else is said."""
    sizes = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 6} | sizes
    names = [("a b", None), (memory or "c a e", memory), (third, None)]
    operands = [Operand(frozenset(x.split()), order and tuple(order.split())) for x, order in names]
    search = large._Search(tuple(operands), frozenset(kept.split()), sizes | {"x": 5, BATCH: 5}, 8, None, False)
    return search._alike(search.steps.leaves, steps.Value(7, 0, Operand(frozenset(kept.split())), 1))


def test_parts_are_alike_only_if_all_that_costs_depend_on_is_the_same() -> None:
    same = key_of()
    assert key_of("b c x", "a x") == same  # another name
    others = [key_of(d=7), key_of(kept="a"), key_of(memory="a c e"), key_of(memory=None), key_of(third="b d")]
    others += [key_of(f"b c {BATCH}", f"a {BATCH}")]
    assert all(other != same for other in others)


class Counted:
    """A function and how often it is called."""

    def __init__(self, function: Any) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.function(*args, **kwargs)


@pytest.mark.parametrize(
    ("name", "rank", "most_steps", "most_parts"),
    [
        ("cp", 3, 6000, 300),
        ("tr", (2, 3, 2, 3, 2, 2, 3, 3, 2, 3, 2, 2), 5000, 450),
        ("hierarchical_tucker", (3,) * 20, 6000, 900),
    ],
)
def test_steps_and_parts_are_worked_out_once(
    name: str, rank: Any, most_steps: int, most_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each occurrence anew it would be 35,000 steps or more, and 363 to 1,180 parts."""
    network = get_decomposition(name).network((2,) * 9, 8, 7, rank)
    counts, parts = Counted(steps.step_cost), Counted(exhaustive.search_order)
    monkeypatch.setattr(steps, "step_cost", counts)
    monkeypatch.setattr(large, "search_order", parts)
    plans = plan_layer.__wrapped__(network, forward_request(network, bias=False))
    assert counts.calls < most_steps
    assert parts.calls < most_parts
    monkeypatch.setattr(large._Search, "_alike", lambda self, *_: object())  # no two parts are alike
    assert plan_layer.__wrapped__(network, forward_request(network, bias=False)) == plans
