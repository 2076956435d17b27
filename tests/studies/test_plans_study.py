"""The study of orders beside other libraries: its networks, its ratios and its page, on a few networks."""

import time
from pathlib import Path

import pytest

from benchmarks.random_networks import network
from factorized_moe.contraction import forward_request
from studies.common.runs import read
from studies.plans.page import page
from studies.plans.run import main
from studies.plans.searches import NAMES, searches, within

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("operands", [3, 9, 40])
def test_networks_have_so_many_operands(operands: int) -> None:
    for seed in range(5):
        described = network(seed, operands)
        assert len(described.nodes) + len(forward_request(described, bias=False).vectors) == operands
        assert described == network(seed, operands)


def test_no_search_of_few_operands_finds_a_cheaper_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--out", str(tmp_path)])
    assert capsys.readouterr().out.count(" s)") == 6
    main(["--quick", "--out", str(tmp_path)])
    assert capsys.readouterr().out == ""  # nothing is searched twice
    found = [each for run in read(tmp_path / "plans.jsonl") for each in run["result"]["others"].items()]
    assert {name for name, _ in found} == set(NAMES)
    assert all(0 < each["cost"] <= 1 + 1e-9 for _, each in found)
    assert all(min(each[key] for key in ("flops", "largest", "layer_largest")) > 0 for _, each in found)
    written = (tmp_path / "plans.md").read_text()
    assert "| 3 to 7 | cotengra, optimal | 3 of 3 |" in written
    assert "No other order costs less by the planner's account." in written


def test_a_cheaper_order_is_told() -> None:
    ratios = {"flops": 1.25, "cost": 1.125, "largest": 1.0, "layer_largest": 2.0, "seconds": 0.25}
    settings = {"seed": 4, "operands": 9, "seconds": 60.0}
    result = {"seconds": 0.5, "others": {NAMES[0]: ratios, NAMES[1]: None}}
    written = page([{"settings": settings, "result": result, "seconds": 1.0}])
    assert f"- 9 operands (seed 4), {NAMES[0]}: 1.125 of its cost, 1.250 of its FLOPs" in written
    assert "2.00 (2.00 to 2.00)" in written
    assert "more in 1; median 1.12, at most 1.125" in written
    assert "No other order" not in written


def test_a_search_that_takes_too_long_is_left_out() -> None:
    def slow() -> None:
        while True:
            sum(range(1000))

    start = time.perf_counter()
    assert within(0.05, slow) is None
    assert within(5.0, lambda: [(0, 1)])[0] == [(0, 1)]
    assert time.perf_counter() > start


def test_exhaustive_searches_are_for_few_operands() -> None:
    assert set(searches(10)) == set(NAMES)
    assert set(searches(11)) == set(NAMES[:2])
