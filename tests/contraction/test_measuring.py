"""Plans within a memory limit and by measurement: valid, kept with the layer, and refused with the smallest limit."""

import copy
import pickle

import pytest
import torch

from factorized_moe import FactorizedExpertTensor
from factorized_moe.activations import entmax15
from factorized_moe.contraction import candidate_plans, execute, forward_request, measuring
from factorized_moe.contraction.search import SCANNED
from factorized_moe.testing import plan_cost

CASES = [("cp", 6), ("tucker", (4, 2, 5, 5)), ("tt", (1, 3, 4, 5, 1)), ("tr", (2, 3, 4, 5, 2))]


def tensor(decomposition: str, rank: object, **options: object) -> FactorizedExpertTensor:
    torch.manual_seed(0)
    return FactorizedExpertTensor((7, 6), 9, 8, decomposition, rank, bias=True, dtype=torch.float64, **options)


def call(w: FactorizedExpertTensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x, *coefficients = (torch.randn(5, n, generator=generator, dtype=torch.float64) for n in (9, 7, 6))
    return w(x, coefficients)


@pytest.mark.parametrize(("decomposition", "rank"), CASES)
def test_every_candidate_computes_the_same(decomposition, rank) -> None:
    w = tensor(decomposition, rank)
    x, a, b = (torch.randn(5, n, dtype=torch.float64) for n in (9, 7, 6))
    expected = w(x, [a, b])
    plans = candidate_plans(w.network, forward_request(w.network, bias=True))
    assert len(plans) == len({plan.steps for plan in plans}) > (decomposition != "cp")  # CP has one order to speak of
    for plan in plans:
        torch.testing.assert_close(execute(plan, (*w.weight.operands, x, a, b)), expected)


def test_memory_limit_is_kept_with_the_cheapest_order_that_allows_it() -> None:
    w = tensor("tucker", (4, 2, 5, 5))
    free = w.plan(batch_size=1, optimize="flops")
    limited = w.plan(batch_size=1, memory_limit=8 * (free.largest_intermediate - 1))
    assert limited.largest_intermediate < free.largest_intermediate
    assert plan_cost(limited) >= plan_cost(free)
    torch.testing.assert_close(call(w), call(tensor("tucker", (4, 2, 5, 5))))


def test_memory_limit_too_small_is_refused_with_the_smallest_that_works() -> None:
    w = tensor("tr", (2, 3, 4, 5, 2))
    before = w.plan(batch_size=10)
    with pytest.raises(ValueError, match=r"memory_limit of 8 bytes .* at batch size 10: the smallest possible is") as e:
        w.plan(batch_size=10, memory_limit=8)
    smallest = int(str(e.value).split(" is ")[-1].split(" ")[0].replace(",", ""))
    assert w.plan(batch_size=10) == before  # a refusal changes nothing
    assert 8 * w.plan(batch_size=10, memory_limit=smallest).largest_intermediate == smallest
    with pytest.raises(ValueError, match="smallest possible"):
        w.plan(batch_size=10, memory_limit=smallest - 8)


def test_measured_plan_stays_with_the_layer() -> None:
    w = tensor("tucker", (4, 2, 5, 5))
    expected = call(w)
    plan = w.plan(batch_size=16, optimize="measure", batch_sizes=(1, 16), backward=True)
    for twin in (w, copy.deepcopy(w), pickle.loads(pickle.dumps(w))):
        assert twin.plan(batch_size=16) == plan
        torch.testing.assert_close(call(twin), expected)
    other = tensor("tucker", (4, 2, 5, 5))
    other.load_state_dict(w.state_dict())  # the plan is no part of it: any layer of the same shape can load it
    torch.testing.assert_close(call(other), expected)
    w.load_state_dict(other.state_dict())
    assert w.plan(batch_size=16) == plan
    torch.testing.assert_close(call(w), expected)


def test_planning_from_the_description_is_deterministic() -> None:
    w = tensor("tucker", (4, 2, 5, 5))
    first = w.plan(batch_size=64, optimize="flops")
    w.plan(batch_size=64, optimize="measure")
    assert w.plan(batch_size=64, optimize="flops") == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a positive int, got 0"),
        ({"optimize": "fastest"}, "optimize is 'flops' or 'measure', got 'fastest'"),
        ({"optimize": "measure", "batch_sizes": (4, -1)}, "batch_size must be a positive int, got -1"),
    ],
)
def test_bad_arguments(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        tensor("cp", 3).plan(**arguments)


@pytest.mark.parametrize(("decomposition", "rank"), CASES)
def test_checkpoint_gives_the_same_gradients_and_saves_less(decomposition, rank) -> None:
    results = []
    for checkpoint in (False, True):
        w = tensor(decomposition, rank, checkpoint=checkpoint)
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.numel()) or t, lambda t: t):
            y = call(w)
        # Hooks of a checkpoint's own replace ours inside it, so the sum is what is kept outside.
        results.append((torch.autograd.grad(y.square().sum(), list(w.parameters())), sum(saved)))
    for plain, recomputed in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(plain, recomputed)
    assert results[1][1] < results[0][1]


@pytest.mark.parametrize(("decomposition", "rank"), CASES)
def test_sparse_coefficients_are_exact(decomposition, rank) -> None:
    dense = tensor(decomposition, rank)
    x = torch.randn(5, 9, dtype=torch.float64)
    coefficients = [torch.rand(5, n, dtype=torch.float64) * (torch.rand(5, n) < 0.3) for n in (7, 6)]
    coefficients[0][2] = 0.0  # a row without any
    expected = dense(x, coefficients)
    theirs = torch.autograd.grad(expected.sum(), list(dense.parameters()))
    plans = candidate_plans(dense.network, forward_request(dense.network, bias=True, sparse=True))
    assert any("SparseMatMul" in repr(plan) for plan in plans)
    assert any("SparseMatMul" not in repr(plan) for plan in plans)
    parameters = list(dense.weight.operands)
    for plan in plans:
        answer = execute(plan, (*parameters, x, *coefficients))
        torch.testing.assert_close(answer, expected)
        assert execute(plan, (*parameters, x[:0], *(a[:0] for a in coefficients))).shape == (0, 8)
        for a, b in zip(torch.autograd.grad(answer.sum(), parameters), theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_zeros_are_looked_for_only_where_rows_are_long() -> None:
    def operations(decomposition, rank, sparse):
        w = FactorizedExpertTensor((64, 32), 8, 8, decomposition, rank, sparse_coefficients=sparse)
        return [type(step.operation).__name__ for step in w.plan().steps]

    assert operations("cp", SCANNED // 2, sparse=True).count("SparseMatMul") == 2
    assert "SparseMatMul" not in operations("cp", SCANNED // 2 - 1, sparse=True)
    assert "SparseMatMul" not in operations("cp", SCANNED // 2, sparse=False)
    assert "SparseMatMul" not in operations("tr", (4, 4, 4, 256, 4), sparse=True)


def test_sparse_coefficients_are_timed_with_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        measuring, "execute", lambda plan, operands: seen.append(operands[-1]) or execute(plan, operands)
    )
    FactorizedExpertTensor((512,), 8, 8, "cp", 4, sparse_coefficients=True).plan(optimize="measure", batch_size=16)
    shares = [float((a != 0).double().mean()) for a in [*seen, entmax15(torch.randn(64, 1024))]]
    assert seen
    for share in shares:
        assert share == pytest.approx(measuring.SPARSE_SHARE, rel=0.5)
