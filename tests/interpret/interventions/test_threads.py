"""Threads that share a model with an intervention in force each get what a single one would."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from factorized_moe import MuMoE, MuMoEBlock
from factorized_moe.interpret import Ablate, Add, Bias, Force, Intervention, Scale, Swap, intervene

THREADS = 6
EACH: dict[str, Intervention] = {
    "ablate": Ablate(0, layer="1"),
    "scale": Scale(1, 2.0, layer="1"),
    "force": Force(2, layer="1"),
    "add": Add(3, 0.5, layer="1"),
    "swap": Swap((0, 1), layer="1"),
    "bias": Bias((0, 2), 3.0, [1], layer="1"),
    "bias of two modes": Bias(1, 3.0, layer="0", mode=1),
}


@pytest.fixture(autouse=True)
def threads_change_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@torch.no_grad()
def wrong_calls(intervention: Intervention, calls: int) -> int:
    """How many calls give something else than the same call alone."""
    torch.manual_seed(0)
    layer = MuMoE(6, 5, [4, 3], "cp", 2, dtype=torch.float64)
    model = nn.Sequential(layer, MuMoEBlock(5, 7, 5, [4], rank=3, dtype=torch.float64)).eval()
    for part in (model[0], model[1]):
        nn.init.normal_(part.gate.projection.weight)
    inputs = torch.randn(THREADS, 2, 6, dtype=torch.float64)  # every thread has its own, of another answer

    def outputs(thread: int) -> list[Tensor]:
        return [model(inputs[thread]) for _ in range(calls // THREADS)]

    with intervene(model, intervention), ThreadPoolExecutor(THREADS) as pool:
        expected = [model(x) for x in inputs]
        found = list(pool.map(outputs, range(THREADS)))
    return sum(not torch.equal(y, expected[thread]) for thread in range(THREADS) for y in found[thread])


@pytest.mark.parametrize("name", EACH)
def test_threads_do_not_meet(name: str) -> None:
    assert wrong_calls(EACH[name], 300) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_threads_do_not_meet_in_3000_calls(name: str) -> None:
    assert wrong_calls(EACH[name], 3000) == 0


def test_a_call_that_fails_leaves_nothing_to_the_next() -> None:
    layer = MuMoE(6, 5, [4], "cp", 2, gate_norm=None)
    with intervene(layer, Bias(0, 1.0)):
        with pytest.raises(ValueError, match="shape"):
            layer(torch.randn(3, 5))
        layer.experts.register_forward_hook(fail := Failing())
        with pytest.raises(ZeroDivisionError):
            layer(torch.randn(3, 6))
        fail.fails = False
        assert layer(torch.randn(2, 6)).shape == (2, 5)


class Failing:
    fails = True

    def __call__(self, *arguments: object) -> None:
        if self.fails:
            raise ZeroDivisionError
