"""The test class of the suite as a third party uses it, and what it refuses."""

import importlib
import re
import sys
from typing import Any

import pytest
import torch

from factorized_moe import FactorizedExpertTensor
from factorized_moe.decompositions import CP
from factorized_moe.testing import (
    LAWS,
    DecompositionContract,
    Structure,
    contract_dense,
    count_flops,
    dense_from_nodes,
    draw_rank,
)
from factorized_moe.testing.closeness import assert_near

pytestmark = pytest.mark.thorough

pytest_plugins = ["pytester"]

BROKEN = """
from factorized_moe import Decomposition
from factorized_moe.decompositions import CP
from factorized_moe.testing import LAWS, DecompositionContract

class HalfBudget(CP):
    def useful_rank(self, rank, shape):
        return 2 * rank

class TestCP(DecompositionContract):
    decomposition = CP()
    expert_modes = (1,)
    max_examples = 2
    opt_out = {law: "not in this example" for law in LAWS if law not in ("parameter_count", "node_order_is_free")}

class TestBroken(TestCP):
    decomposition = HalfBudget()
    opt_out = {law: "not in this example" for law in LAWS if law != "parameter_count"}

    def test_parameter_count(self):
        assert False, "its own test takes the law's place"
"""


def test_a_file_of_two_lines_collects_every_law(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(BROKEN)
    result = pytester.runpytest_inprocess("-q", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist")
    passed = result.parseoutcomes()
    assert passed["passed"] == 2
    assert passed["failed"] == 1
    # Each skipped law counts once for each of its structures.
    assert passed["skipped"] >= 2 * len(LAWS) - 3
    result.stdout.fnmatch_lines(["*its own test takes the law's place*", "*SKIPPED*not in this example*"])


def test_a_failed_law_shows_the_structure(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from factorized_moe.decompositions import CP
        from factorized_moe.testing import LAWS, DecompositionContract

        class WrongSign(CP):
            def to_tensorly(self, tensors):
                return super().to_tensorly({**tensors, "input": -tensors["input"]})

        class TestWrongSign(DecompositionContract):
            decomposition = WrongSign()
            expert_modes = (2,)
            max_examples = 2
            opt_out = {law: "not in this example" for law in LAWS if law != "dense_equals_tensorly"}
        """
    )
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(["*TensorLy's tensor: off by *", "*(structure): Structure(expert_dims=*"])


def test_every_law_has_a_test_of_its_own_in_every_class() -> None:
    class TestOne(DecompositionContract):
        decomposition = "cp"

    class TestTwo(TestOne):
        decomposition = "tucker"

    for law in LAWS.values():
        one, two = getattr(TestOne, f"test_{law.name}"), getattr(TestTwo, f"test_{law.name}")
        assert one is not two
        assert one.__doc__ == law.check.__doc__
        assert two.__qualname__.endswith(f"TestTwo.test_{law.name}")


def subclass(**attributes: Any) -> type:
    return type("TestMine", (DecompositionContract,), attributes)


REFUSED = {
    "no decomposition": (lambda: subclass(), TypeError, "TestMine names no decomposition; set decomposition to an"),
    "a class": (lambda: subclass(decomposition=CP), TypeError, "TestMine names no decomposition"),
    "no such law": (
        lambda: subclass(decomposition="cp", opt_out={"compiles": "slow"}),
        ValueError,
        "opt_out of TestMine names no law: ['compiles']; the laws are ['autocast_agrees', ",
    ),
    "no reason": (
        lambda: subclass(decomposition="cp", opt_out={"fit_recovers": " "}),
        ValueError,
        "opt_out of TestMine gives no reason for 'fit_recovers'; say why it does not apply",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case: str) -> None:
    act, error, message = REFUSED[case]
    with pytest.raises(error, match=re.escape(message)):
        act()


@pytest.mark.parametrize("missing", ["hypothesis", "pytest"])
def test_missing_requirements_are_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("factorized_moe.testing")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    message = f"factorized_moe.testing needs {missing}, which is not installed; .* pip install 'factorized-moe"
    with pytest.raises(ImportError, match=message):
        importlib.import_module("factorized_moe.testing")


def test_drawn_ranks_suit_the_decomposition() -> None:
    def largest(low: int, high: int) -> int:
        return high

    assert draw_rank("cp")((3, 4, 5), largest) == 4
    assert draw_rank("tucker", largest=6)((3, 4, 5), largest) == (6, 6, 6)
    assert draw_rank("tt")((3, 4, 5), largest) == (1, 4, 4, 1)
    numbers = iter([9, 1, 2, 3, 4])
    assert draw_rank("tr")((3, 4, 5), lambda low, high: next(numbers)) == (1, 2, 3, 1)


def test_structures_are_reproducible() -> None:
    structure = Structure((3, 2), 4, 5, 2, bias=True, batch_shape=(2, 3), seed=7)
    assert structure.shape == (3, 2, 5, 5)
    one, two = structure.tensor("tr"), structure.tensor("tr")
    assert torch.equal(one.to_dense(), two.to_dense())
    x, coefficients = structure.arguments(torch.float32)
    assert (x.shape, [a.shape for a in coefficients]) == ((2, 3, 4), [(2, 3, 3), (2, 3, 2)])
    assert x.dtype == torch.float32
    assert torch.equal(x, structure.arguments()[0].float())
    assert structure.cotangent().shape == (2, 3, 5)
    assert structure.network("tr") == one.network


def test_oracles_by_hand() -> None:
    """Two experts of 2 x 1 matrices, small enough to follow."""
    dense = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])  # (2, 2, 1)
    x, a = torch.tensor([[10.0, 100.0]]), torch.tensor([[0.25, 0.75]])
    assert contract_dense(dense, x, [a]).item() == 0.25 * 210.0 + 0.75 * 430.0
    assert contract_dense(dense, x[:, :1], [a], bias=True).item() == 0.25 * 12.0 + 0.75 * 34.0
    w = FactorizedExpertTensor((2,), 2, 1, "cp", 1)
    w.weight.assign(
        {
            "expert_0": torch.tensor([[1.0], [2.0]]),
            "input": torch.tensor([[3.0], [5.0]]),
            "output": torch.tensor([[7.0]]),
        }
    )
    assert dense_from_nodes(w.network, w.weight.tensors).flatten().tolist() == [21.0, 35.0, 42.0, 70.0]
    assert count_flops(w.plan(3, path=[(0, 4), (0, 2), (1, 2), (0, 1)])) == 3 * (2 * 2 + 2 * 2 + 1 + 2 * 1)


def test_nearness_is_relative_to_the_terms() -> None:
    one = torch.ones(2, dtype=torch.float64)
    assert_near("equal", one, one, one)
    assert_near("a cancellation", 1e-6 * one, 2e-6 * one, 1e6 * one)
    for what, actual, scale in (
        ("off", one * (1 + 1e-9), one),
        ("not a number", one * float("nan"), one),
        ("zero terms", one * 1e-30, 0 * one),
        ("another shape", one[:1], one),
    ):
        with pytest.raises(AssertionError, match=what):
            assert_near(what, actual, one if what != "zero terms" else 0 * one, scale)
