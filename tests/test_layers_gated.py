"""The gated block: its formula against the dense tensors, one gate for three tensors, and its options."""

import pytest
import torch
from torch import nn

from factorized_moe import GatedMuMoEBlock


@pytest.mark.parametrize("experts", [(), (4,), (3, 2)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_dense_formula(experts: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    block = GatedMuMoEBlock(6, 9, 5, experts, "tr", 3, bias=bias, dtype=torch.float64)
    for parameter in block.gate.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(7, 6, dtype=torch.float64)
    coefficients = block.gate(x)

    def dense(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
        weights = part.to_dense().expand(7, *part.to_dense().shape)
        for values in coefficients:
            weights = torch.einsum("bn,bn...->b...", values, weights)
        x = torch.cat([x, x.new_ones(7, 1)], dim=1) if bias else x
        return torch.einsum("bi,bio->bo", x, weights)

    hidden = nn.functional.silu(dense(block.first, x)) * dense(block.multiplier, x)
    torch.testing.assert_close(block(x), dense(block.second, hidden))


def test_gate_runs_once_for_three_tensors() -> None:
    block, calls = GatedMuMoEBlock(6, 9, 5, [4], rank=3), []
    block.gate.register_forward_hook(lambda *_: calls.append(1))
    block(torch.randn(2, 6))
    assert len(calls) == 1


def test_options() -> None:
    gate = nn.Sequential()
    block = GatedMuMoEBlock(6, 9, 5, [4], rank=3, second_rank=2, activation=torch.tanh, gate=gate)
    assert (block.first.rank, block.multiplier.rank, block.second.rank) == (3, 3, 2)
    assert block.gate is gate
    assert block.activation is torch.tanh


def test_reset_fills_everything_anew() -> None:
    block = GatedMuMoEBlock(6, 9, 5, [4], rank=3)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(torch.nan)
    block.reset_parameters()
    assert all(torch.isfinite(parameter).all() for parameter in block.parameters())
    assert not block.gate.projection.weight.any()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_whole() -> None:
    block, x = GatedMuMoEBlock(6, 9, 5, [4], rank=3).eval(), torch.randn(8, 6)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), block(x))


def test_bad_input_says_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"must have shape \(\*batch, 6\), but got \(2, 5\)"):
        GatedMuMoEBlock(6, 9, 5, [4], rank=3)(torch.randn(2, 5))
    with pytest.raises(TypeError, match="rank is missing"):
        GatedMuMoEBlock(6, 9, 5, [4])
