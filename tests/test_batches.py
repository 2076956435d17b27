"""One tensor in place of an iterable of batches: its rows, or single numbers of an input, would pass for batches."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from factorized_moe import CPMuMoE
from factorized_moe.interpret import average_inputs, counterfactuals
from factorized_moe.surgery import DistillationSettings, capture, collect_covariances, distill

LAYER = CPMuMoE(6, 3, expert_dims=[4], rank=2).eval()
LINEAR = nn.Sequential(nn.Linear(6, 3))
SETTINGS = DistillationSettings(steps=1)
TAKES_BATCHES: dict[str, Callable[[object], object]] = {
    "average_inputs": lambda batches: average_inputs(LAYER, batches),  # type: ignore[arg-type]
    "capture": lambda batches: list(capture(LINEAR, "0", batches)),  # type: ignore[arg-type]
    "collect_covariances": lambda batches: collect_covariances(LINEAR, batches),  # type: ignore[arg-type]
    "counterfactuals": lambda batches: counterfactuals(LAYER, batches),  # type: ignore[arg-type]
    "distill": lambda batches: distill(LINEAR, {"0": nn.Linear(6, 3)}, batches, SETTINGS),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", TAKES_BATCHES)
def test_one_tensor_is_no_batches(name: str) -> None:
    with pytest.raises(TypeError, match=r"batches is one tensor; give an iterable of batches, such as inputs\.split"):
        TAKES_BATCHES[name](torch.randn(8, 6))
    with pytest.raises(TypeError, match="batches is a Iterable, got int"):
        TAKES_BATCHES[name](3)


@pytest.mark.parametrize("name", sorted(TAKES_BATCHES.keys() - {"collect_covariances"}))
def test_any_iterable_of_batches_is_taken(name: str) -> None:
    def generated() -> Iterator[torch.Tensor]:
        yield torch.randn(8, 6)

    for batches in ([torch.randn(8, 6)], torch.randn(8, 6).split(4), generated()):
        TAKES_BATCHES[name](batches)
