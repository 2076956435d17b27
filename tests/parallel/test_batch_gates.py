"""Gates that read the batch, on several ranks."""

import copy
import warnings

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from factorized_moe import ExpertGate, MuMoE, batch_statistics
from factorized_moe.parallel import synchronise_gates
from factorized_moe.testing.processes import on_ranks

pytestmark = pytest.mark.thorough


def layer(gate_rank: int | None = None) -> MuMoE:
    torch.manual_seed(0)
    made = MuMoE(6, 5, [4], "cp", 3, gate_norm="batch", gate_rank=gate_rank, dtype=torch.float64)
    nn.init.normal_(made.gate.projection.weight)
    return made


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    model(x).square().mean().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_converted_gates_normalise_over_all_ranks() -> None:
    x = torch.randn(9, 6, dtype=torch.float64)
    alone = layer()
    expected = step(alone, x)

    def work(rank: int) -> None:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(layer())
        assert isinstance(model.gate.batch_norm, nn.SyncBatchNorm)
        piece = x[:6] if rank == 0 else x[6:]  # of unequal length
        model(piece).square().sum().div(9 * 5).backward()
        for parameter, known in zip(model.parameters(), expected, strict=True):
            torch.distributed.all_reduce(parameter.grad)
            torch.testing.assert_close(parameter.grad, known, rtol=1e-12, atol=1e-12)
        for name, buffer in model.gate.batch_norm.named_buffers():
            torch.testing.assert_close(buffer, alone.gate.batch_norm.get_buffer(name))
        assert model.gate.batch_norm.num_batches_tracked == 1

    on_ranks(2, work)


@pytest.mark.parametrize("gate_rank", [None, 2])
def test_synchronised_gates_under_ddp(gate_rank: int | None) -> None:
    x = torch.randn(8, 6, dtype=torch.float64)
    expected = step(layer(gate_rank), x)

    def work(rank: int) -> float:
        model = layer(gate_rank)
        assert synchronise_gates(model) == 1
        found = step(DistributedDataParallel(model), x[4 * rank : 4 * rank + 4])
        return max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True))

    assert max(on_ranks(2, work)) < 1e-12


def test_a_gate_that_is_not_converted_warns_once() -> None:
    x = torch.randn(8, 6, dtype=torch.float64)

    def work(rank: int) -> list[str]:
        model = layer()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                model(x)
        return [str(one.message) for one in caught]

    for messages in on_ranks(2, work):
        assert len(messages) == 1
        assert "synchronise_gates(model) to normalise over all ranks" in messages[0]
        assert "gate_norm='layer'" in messages[0]
    assert on_ranks(1, work) == [[]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer()(x)
    assert not batch_statistics._warned


def test_converted_gates_keep_float32_averages_and_run_alone() -> None:
    gate = ExpertGate(6, [4], norm="batch")
    nn.init.normal_(gate.projection.weight)
    twin = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(gate))
    x = torch.randn(9, 6)
    for one in (gate, twin):
        one(x)
    torch.testing.assert_close(twin(x)[0], gate(x)[0])
    mean = twin.batch_norm.running_mean.clone()
    twin.to(torch.bfloat16)
    assert twin.projection.weight.dtype == torch.bfloat16
    assert torch.equal(twin.batch_norm.running_mean, mean)
    assert twin(x.bfloat16())[0].dtype == torch.bfloat16
    assert torch.isfinite(twin.eval()(x.bfloat16())[0]).all()


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_moves_averages_once(converted: bool, reentrant: bool) -> None:
    plain, model = layer(), layer()
    if converted:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    x = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    step(plain, x)
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant).square().mean().backward()
    for name, buffer in model.gate.batch_norm.named_buffers():
        torch.testing.assert_close(buffer, plain.gate.batch_norm.get_buffer(name))
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
