"""Layers whose best order depends on the batch size: which plan runs, how it is shown, and what compilers see."""

import copy
import pickle

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import factorized_moe.tensor
from factorized_moe import FactorizedExpertTensor, TensorNetwork
from factorized_moe.contraction import ContractionPlan, execute, plan_layer
from factorized_moe.contraction.batches import LARGEST, NEAR
from factorized_moe.decompositions import available_decompositions, get_decomposition
from factorized_moe.testing import plan_cost

from .random_networks import random_network

MIXED = TensorNetwork.parse("core: in out s, mix: expert_0 s; expert_0=4 in=64 out=64 s=16")


def layer(**options: object) -> FactorizedExpertTensor:
    torch.manual_seed(0)
    return FactorizedExpertTensor(network=MIXED, dtype=torch.float64, **options)


def arguments(samples: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(samples)
    return (
        torch.randn(samples, 64, generator=generator, dtype=torch.float64),
        [torch.rand(samples, 4, generator=generator, dtype=torch.float64)],
    )


@pytest.mark.parametrize("shape", [(), (1,), (6,), (7,), (2, 3), (2, 4), (0,)])
def test_plan_shows_what_forward_runs(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    w, ran = layer(), []

    def spy(plan: ContractionPlan, operands: object) -> torch.Tensor:
        ran.append(plan)
        return execute(plan, operands)

    monkeypatch.setattr(factorized_moe.tensor, "execute", spy)
    w(torch.ones(*shape, 64, dtype=torch.float64), [torch.ones(*shape, 4, dtype=torch.float64)])
    samples = max(1, torch.Size(shape).numel())
    assert [step.operation for step in ran[0].steps] == [step.operation for step in w.plan(samples).steps]


def test_the_second_plan_is_told() -> None:
    w = layer()
    few, many = w.plan(1), w.plan(1000)
    assert few.steps != many.steps
    assert few.runs_until == many.runs_from - 1
    assert f"batch size 1; up to {few.runs_until} samples, another plan runs for more" in repr(few)
    assert f"batch size 1,000; from {many.runs_from} samples on, another plan runs for fewer" in repr(many)
    assert "another plan" not in repr(w.plan(1000, optimize="flops"))
    assert w.plan(1).steps == w.plan(1000).at_batch_size(1).steps  # one plan for all now


def test_copies_and_pickles_take_both_plans_along() -> None:
    w = layer()
    for twin in (copy.deepcopy(w), pickle.loads(pickle.dumps(w))):
        assert twin.plan(1) == w.plan(1)
        assert twin.plan(1000) == w.plan(1000)


def test_a_pickle_from_before_there_were_two_plans() -> None:
    w = layer()
    old = copy.deepcopy(w)
    del old.__dict__["_plans"]
    x, coefficients = arguments(100)
    torch.testing.assert_close(old(x, coefficients), w(x, coefficients))


@pytest.mark.thorough
def test_two_plans_take_two_compilations() -> None:
    w = layer()
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(w, fullgraph=True, backend=counter)
    for samples in (1, 2, 6, 7, 64, 4096, 3):
        x, coefficients = arguments(samples)
        torch.testing.assert_close(compiled(x, coefficients), w(x, coefficients))
    assert counter.frame_count <= 2


@pytest.mark.thorough
def test_three_plans_take_two_compilations() -> None:
    w = FactorizedExpertTensor(network=random_network(11))
    starts = [plan.runs_from for plan in plan_layer(w.network, w._request).plans]
    assert len(starts) == 3
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(w, fullgraph=True, backend=counter)
    for samples in (1, *starts[1:], 2 * starts[2], 2):
        x = torch.randn(samples, w.in_features)
        coefficients = [torch.rand(samples, count) for count in w.expert_dims]
        torch.testing.assert_close(compiled(x, coefficients), w(x, coefficients), rtol=1e-3, atol=1e-3)
    assert counter.frame_count <= 2


@pytest.mark.thorough
@pytest.mark.parametrize("samples", [1, 5, 7, 500])
def test_compiled_for_one_batch_size_its_plan_runs(samples: int) -> None:
    w = layer()
    torch.compiler.reset()
    operations: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        operations.extend(node.target.__name__ for node in graph.graph.nodes if callable(node.target))
        return graph

    torch.compile(w, fullgraph=True, dynamic=False, backend=backend)(*arguments(samples))
    assert ("bmm" in operations) == any(type(s.operation).__name__ == "BatchedMatMul" for s in w.plan(samples).steps)


def test_exported_for_any_batch_one_plan_runs() -> None:
    w = layer()
    batch = torch.export.Dim("batch")
    program = torch.export.export(w, arguments(5), dynamic_shapes=({0: batch}, [{0: batch}])).module()
    for samples in (2, 7, 1000):
        x, coefficients = arguments(samples)
        torch.testing.assert_close(program(x, coefficients), w(x, coefficients))


def test_exported_for_large_batches_the_second_plan_runs() -> None:
    w = layer()
    batch = torch.export.Dim("batch", min=w.plan(1000).runs_from)
    program = torch.export.export(w, arguments(50), dynamic_shapes=({0: batch}, [{0: batch}]))
    assert "bmm" not in program.graph_module.code
    x, coefficients = arguments(1000)
    torch.testing.assert_close(program.module()(x, coefficients), w(x, coefficients))


@pytest.mark.parametrize("name", available_decompositions())
def test_a_layer_is_near_the_best_between_the_sampled_batch_sizes_too(name: str) -> None:
    """Against the plans made for each batch size, on three expert modes: more operands than the oracle takes."""
    decomposition = get_decomposition(name)
    shape = (5, 4, 3, 33, 48)
    network = decomposition.network(shape[:3], *shape[3:], decomposition.resolve_rank(3, shape))
    w = FactorizedExpertTensor(network=network, device="meta")
    assert w.plan() == plan_layer(network, w._request).at(64)
    for samples in (1, 2, 3, 10, 50, 200, 3000, LARGEST, 10 * LARGEST):
        runs = plan_cost(w.plan(samples))
        w_alone = FactorizedExpertTensor(network=network, device="meta")
        assert runs <= NEAR * plan_cost(w_alone.plan(samples, optimize="flops"))
