"""Plans timed beside others: the ratios and the tables, on a few networks."""

import pytest

from benchmarks import copies, measured_plans
from benchmarks.measuring import QUICK

pytestmark = pytest.mark.thorough


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
