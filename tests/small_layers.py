"""Small layers of the paper's decompositions, for the tests of layers."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from factorized_moe.layers import CPMuMoE, MuMoE, MuMoEBlock, TRMuMoE, TTMuMoE, TuckerMuMoE

Make = Callable[..., nn.Module]

ADAPTERS: dict[str, tuple[type[MuMoE], tuple[int, ...] | int]] = {
    "cp": (CPMuMoE, 3),
    "tucker": (TuckerMuMoE, (2, 2, 3, 4)),
    "tt": (TTMuMoE, (1, 2, 3, 4, 1)),
    "tr": (TRMuMoE, (2, 2, 3, 4, 2)),
}


def make_layer(decomposition: str = "cp", **options: object) -> MuMoE:
    kind, rank = ADAPTERS[decomposition]
    return kind(5, 7, expert_dims=[4, 3], rank=rank, **options)


def make_block(decomposition: str = "cp", **options: object) -> MuMoEBlock:
    return MuMoEBlock(5, 6, 7, [4, 3], decomposition, ADAPTERS[decomposition][1], **options)


def make_low_rank_gate(decomposition: str = "cp", **options: object) -> MuMoEBlock:
    return make_block(decomposition, gate_rank=2, **options)


MAKERS = pytest.mark.parametrize("make", [make_layer, make_block], ids=["layer", "block"])
ALL_MAKERS = pytest.mark.parametrize(
    "make", [make_layer, make_block, make_low_rank_gate], ids=["layer", "block", "gate of low rank"]
)
DECOMPOSITIONS = pytest.mark.parametrize("decomposition", ADAPTERS)


def train_gate(module: nn.Module, seed: int = 0) -> None:
    """Give the gate weights, so that it no longer answers with the uniform mixture."""
    generator = torch.Generator().manual_seed(seed)
    weight = module.gate.projection.weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator))
