"""Several ranks distil together: as one process that accumulates their batches, and to the bit after a stop."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from factorized_moe import MuMoEBlock
from factorized_moe.parallel import synchronise_gates
from factorized_moe.surgery import DistillationSettings, distill
from factorized_moe.surgery.distillation.joint_ranks import Ranks
from factorized_moe.testing.processes import on_ranks

pytestmark = pytest.mark.thorough

STEPS = 12


def settings(accumulate: int = 1) -> DistillationSettings:
    return DistillationSettings(steps=STEPS, learning_rate=1e-2, accumulate=accumulate)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)))


def block(seed: int = 1, norm: str = "layer") -> MuMoEBlock:
    torch.manual_seed(seed)
    return MuMoEBlock(6, 12, 6, expert_dims=[4], decomposition="cp", rank=6, gate_norm=norm)


def batches(rank: int = 0, ranks: int = 1) -> Iterator[Tensor]:
    """All batches, or every so many of them."""
    generator = torch.Generator().manual_seed(2)
    for number in range(2 * STEPS):
        batch = torch.randn(16, 6, generator=generator)
        if number % ranks == rank:
            yield batch


def together(rank: int, layer: nn.Module, **options: object) -> dict[str, tuple[float, ...]]:
    world = torch.distributed.group.WORLD
    return distill(model(), {"1": layer}, batches(rank, 2), settings(), group=world, **options)


def test_two_ranks_are_one_that_accumulates() -> None:
    alone = block()
    losses = distill(model(), {"1": alone}, batches(), settings(accumulate=2))["1"]

    def work(rank: int) -> tuple[dict[str, list[float]], tuple[float, ...]]:
        layer = block(seed=1 + rank)  # the second rank's own values give way to the first one's
        found = together(rank, layer)
        return {name: value.tolist() for name, value in layer.state_dict().items()}, found["1"]

    answers = on_ranks(2, work)
    for state, found in answers:
        assert found == pytest.approx(losses, rel=1e-5)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(torch.tensor(state[name]), value, rtol=1e-4, atol=1e-6)
    assert losses[-1] < losses[0]


def test_gradients_and_losses_become_means() -> None:
    """AdamW hardly sees a factor on all gradients, so the mean itself is looked at."""

    def work(rank: int) -> tuple[list[float], dict[str, float]]:
        parameter = nn.Parameter(torch.zeros(2))
        parameter.grad = torch.tensor([1.0, 2.0]) * (rank + 1)
        found = Ranks(torch.distributed.group.WORLD).mean({"a": float(rank)}, [parameter])
        return parameter.grad.tolist(), found

    assert on_ranks(2, work) == [([1.5, 3.0], {"a": 0.5})] * 2


def test_a_stopped_run_of_two_ranks_goes_on_to_the_bit(tmp_path: Path) -> None:
    def work(rank: int) -> list[bool]:
        whole, stopped = block(norm="batch"), block(norm="batch")
        for layer in (whole, stopped):
            synchronise_gates(layer)
        together(rank, whole)

        def interrupt(step: object) -> None:
            if step.step == 7:
                raise KeyboardInterrupt

        options = {"checkpoint": tmp_path / "state.safetensors", "checkpoint_every": 5}
        with pytest.raises(KeyboardInterrupt):
            together(rank, stopped, on_step=interrupt, **options)
        torch.distributed.barrier()
        again = block(seed=7, norm="batch")
        synchronise_gates(again)
        together(rank, again, **options)
        return [torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items()]

    assert all(all(same) and len(same) > 5 for same in on_ranks(2, work))
    with pytest.raises(ValueError, match="no state of the generator of each of 1 ranks"):
        distill(model(), {"1": block(norm="batch")}, batches(), settings(), checkpoint=tmp_path / "state.safetensors")


def test_an_error_of_one_rank_ends_all() -> None:
    def work(rank: int) -> str:
        few = list(batches(rank, 2))[: 3 if rank else STEPS]
        try:
            distill(model(), {"1": block()}, few, settings(), group=torch.distributed.group.WORLD)
        except (FloatingPointError, ValueError) as error:
            return str(error)
        return "no error"

    first, second = on_ranks(2, work)
    assert first == "rank 1 stopped with an error; see there"
    assert second.startswith("the batches ran out after 3 of 12 steps")
