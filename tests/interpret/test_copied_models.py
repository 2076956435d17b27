"""What copies and files of a model have of the hooks that it has meanwhile."""

import copy
import importlib
import io
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from factorized_moe import CPMuMoE
from factorized_moe.interpret import (
    Ablate,
    Add,
    Bias,
    Force,
    Scale,
    Swap,
    intervene,
    record,
    scale_bond,
    watch_usage,
)

X = torch.randn(7, 6, dtype=torch.float64)


class Masked(nn.Module):
    """A model that is called with a mask of padding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = CPMuMoE(6, 3, expert_dims=[5], rank=4, gate_norm=None, dtype=torch.float64)
        nn.init.normal_(self.layer.gate.get_parameter("projection.weight"))

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.layer(x)


def model() -> nn.Module:
    return Masked().eval()


def through_a_file(given: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(given, file)
    file.seek(0)
    found: nn.Module = torch.load(file, weights_only=False)
    return found


COPIES = {"deepcopy": copy.deepcopy, "file": through_a_file}


@pytest.mark.parametrize("compiler", [False, True], ids=["", "with the compiler in the process"])
@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_a_recorded_model_is_not_recorded(way: str, compiler: bool) -> None:
    if compiler:
        importlib.import_module("torch._dynamo")
    given, mask = model(), torch.tensor([[1, 1, 0, 1, 1, 1, 0]])
    with record(given) as log:
        y = given(X[None], mask)
        other = COPIES[way](given)
        assert torch.equal(other(X[None], attention_mask=mask), y)
        given(X[None, :2], mask[:, :2])
        assert log.num_samples == 7
    other(X)
    assert log.recording.num_samples == 7
    with record(other) as again:
        other(X[None], mask)
    assert again.recording.num_samples == 5


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_a_watched_model_is_not_watched(way: str) -> None:
    given = model()
    with watch_usage(given) as watcher:
        given(X)
        COPIES[way](given)(X)
    assert [mode.num_samples for mode in watcher.usage] == [7]


CHANGES: dict[str, Callable[[nn.Module], AbstractContextManager[object]]] = {
    "ablate": lambda given: intervene(given, Ablate(1)),
    "scale": lambda given: intervene(given, Scale([0, 1], 2.0)),
    "force": lambda given: intervene(given, Force(2, torch.rand(7, 1))),
    "add": lambda given: intervene(given, Add(2, 0.5)),
    "swap": lambda given: intervene(given, Swap((0, 4))),
    "bias": lambda given: intervene(given, Bias([0, 3], torch.rand(2, 1), outputs=[1, 2]), Bias(1, 2.0)),
    "bond": lambda given: scale_bond(given.layer.experts, "rank", [0, 3], 0.5),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_of_a_changed_model_is_changed_for_good(change: str, way: str) -> None:
    given = model()
    plain = given(X)
    with CHANGES[change](given):
        changed = given(X)
        other = COPIES[way](given)
    assert torch.equal(given(X), plain)
    assert not torch.allclose(changed, plain)
    assert torch.equal(other(X), changed)
    assert torch.equal(copy.deepcopy(other)(X), changed)
    with intervene(given, Ablate(0)), intervene(other, Ablate(0)):  # neither knows of the other
        assert not torch.equal(given(X), other(X))
    assert torch.equal(given(X), plain)
    assert torch.equal(other(X), changed)
