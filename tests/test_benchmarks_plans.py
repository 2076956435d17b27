"""The comparison of orders: its networks, its ratios and its tables, on a few networks."""

import time

import pytest

from benchmarks import copies, measured_plans, plans
from benchmarks.measuring import QUICK
from factorized_moe.contraction import forward_request

pytestmark = pytest.mark.thorough

FEW = plans.Sizes(networks=6, groups=((3, 7), (8, 12)), seconds=5.0)


@pytest.mark.parametrize("operands", [3, 9, 40])
def test_networks_have_so_many_operands(operands: int) -> None:
    for seed in range(5):
        described = plans.network(seed, operands)
        assert len(described.nodes) + len(forward_request(described, bias=False).vectors) == operands
        assert described == plans.network(seed, operands)


def test_no_search_of_few_operands_finds_a_cheaper_order() -> None:
    found = list(plans.compare(QUICK, FEW))
    assert {c.other for c in found} == {"opt_einsum, dynamic programming", "cotengra, greedy", "cotengra, optimal"}
    assert all(0 < c.cost <= 1 + 1e-9 for c in found)
    assert all(min(c.flops, c.largest, c.layer_largest, c.seconds) > 0 for c in found)
    table = plans.markdown(found, FEW)
    assert "| 3 to 7 | cotengra, optimal |" in table
    assert "No other order costs less by the planner's account." in table


def test_a_cheaper_order_is_told() -> None:
    lost = plans.Comparison(9, "another search", 1.25, 1.125, 1.0, 2.0, 0.5, 0.25)
    table = plans.markdown([lost], FEW)
    assert "- 9 operands, another search: 1.125 of its cost, 1.250 of its FLOPs" in table
    assert "2.00 (2.00 to 2.00)" in table
    assert "No other order" not in table


def test_a_search_that_takes_too_long_is_left_out() -> None:
    described = plans.network(0, 5)
    request = forward_request(described, bias=False)

    def slow(*_: object) -> list[tuple[int, int]]:
        while True:
            time.sleep(0.01)

    assert plans._within(0.05, described, request, slow) is None


def test_default_plans_beside_timed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(measured_plans.compare(QUICK, networks=2))
    assert [c.samples for c in found] == [*measured_plans.SAMPLES] * 2
    assert all(c.ratio > 0 for c in found)
    table = measured_plans.markdown([measured_plans.Comparison(4, 64, 1.0), measured_plans.Comparison(5, 64, 1.5)])
    assert "| 64 | 2 | 1 | 1.25 | 1.50 |" in table


def test_plans_at_other_prices_of_a_copy() -> None:
    found = list(copies.compare(QUICK, networks=6))
    assert found
    assert {c.price for c in found} <= set(copies.PRICES)
    assert all(c.ratio > 0 and c.flops <= 1.01 for c in found if c.price == 0)
    table = copies.markdown([copies.Comparison(12, 64, 2.0, 0.5), copies.Comparison(12, 64, 8.0, 2.0)])
    assert "| 12 | 64 | 2 | 4.00 (2.00 to 8.00) | 1.00 (0.50 to 2.00) |" in table
