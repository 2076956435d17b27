"""The paper's figures: parameter counts of its layers and blocks, and the initial values of its released code."""

import pytest
import torch
from torch import Tensor, nn

from factorized_moe.layers import CPMuMoE, MuMoE, MuMoEBlock, TRMuMoE, TTMuMoE, TuckerMuMoE


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# CLIP's head, 768 -> 1000, with the parameters of a linear layer (769,000), by the rule of the released uMoE code.
CP_HEADS = {
    16: (424, 769_128),
    32: (414, 770_190),
    64: (393, 769_521),
    128: (354, 769_842),
    256: (283, 769_683),
    512: (165, 769_581),
}
TR_HEADS = {
    16: (107, 769_676, 428),
    32: (106, 775_144, 424),
    64: (102, 771_928, 408),
    128: (95, 772_572, 380),
    256: (81, 773_860, 324),
    512: (52, 769_360, 208),
}


@pytest.mark.parametrize("experts", CP_HEADS)
def test_parameters_of_the_paper_s_cp_heads(experts: int) -> None:
    rank, parameters = CP_HEADS[experts]
    assert count(CPMuMoE(768, 1000, expert_dims=[experts], rank=rank, device="meta")) == parameters


@pytest.mark.parametrize("experts", TR_HEADS)
def test_parameters_of_the_paper_s_tr_heads(experts: int) -> None:
    rank, parameters, rank_bound = TR_HEADS[experts]
    layer = TRMuMoE(768, 1000, expert_dims=[experts], rank=(4, 4, rank, 4), device="meta")
    assert count(layer) == parameters
    assert layer.experts.expert_rank_bound == rank_bound


def test_parameters_of_the_paper_s_blocks() -> None:
    def mixer(decomposition: str, token_rank: object, channel_rank: object) -> int:
        token = MuMoEBlock(196, 256, 196, [64], decomposition, token_rank, device="meta")
        channel = MuMoEBlock(512, 2048, 512, [64], decomposition, channel_rank, device="meta")
        return 8 * (count(token) + count(channel))

    def gpt2(decomposition: str, rank: object) -> int:
        return 12 * count(MuMoEBlock(768, 3072, 768, [256], decomposition, rank, gate_norm="layer", device="meta"))

    assert mixer("cp", 147, 384) == 17_706_480
    assert mixer("tr", (4, 4, 37, 4), (4, 4, 97, 4)) == 17_366_656
    assert gpt2("cp", 556) == 57_029_664
    assert gpt2("tr", (4, 4, 149, 4)) == 57_399_264


def test_paper_s_initial_values_of_cp() -> None:
    torch.manual_seed(0)
    weight = CPMuMoE(8, 300, expert_dims=[200, 30], rank=250, init="paper").experts.weight
    assert_normal(weight.expert_0, 1.0, 1.0)
    assert torch.equal(weight.expert_1, torch.ones(30, 250))
    assert_uniform(weight.input, 9**-0.5)
    assert_uniform(weight.output, 250**-0.5)


@pytest.mark.parametrize(("kind", "ring"), [(TTMuMoE, 1), (TRMuMoE, 5)])
def test_paper_s_initial_values_of_chains(kind: type[MuMoE], ring: int) -> None:
    torch.manual_seed(0)
    weight = kind(8, 300, expert_dims=[2000, 30], rank=(ring, 5, 5, 40, ring), init="paper").experts.weight
    first = weight.expert_0.reshape(2000, ring, 5)
    diagonal = first.diagonal(dim1=1, dim2=2)  # (N_0, smaller bond)
    assert_normal(diagonal, 1.0, 1.0)
    assert torch.count_nonzero(first) == torch.count_nonzero(diagonal)
    assert torch.equal(weight.expert_1, torch.eye(5).expand(30, 5, 5))
    assert_uniform(weight.input, 9**-0.5)
    assert_uniform(weight.output, (40 * ring) ** -0.5)


def test_paper_s_initial_values_of_tucker() -> None:
    torch.manual_seed(0)
    layer = TuckerMuMoE(399, 300, expert_dims=[2000, 30], rank=(20, 4, 50, 60), init="paper")
    core, (first, second, *factors) = layer.experts.to_tensorly()
    assert_normal(first, 1.0, 1.0)
    assert torch.equal(second, torch.ones(30, 4))
    for factor in factors:  # (I + 1, R_in) and (O, R_out)
        torch.testing.assert_close(factor.norm(dim=1), torch.ones(len(factor)))
        assert_normal(factor, 0.0, factor.shape[1] ** -0.5)
    torch.testing.assert_close(core.norm(), torch.tensor(1.0))
    assert_normal(core, 0.0, core.numel() ** -0.5)


def assert_normal(values: Tensor, mean: float, std: float) -> None:
    """Mean and deviation to five standard errors, and the tail that a normal distribution has."""
    error = std / values.numel() ** 0.5
    assert abs(values.mean().item() - mean) < 5 * error
    assert abs(values.std().item() - std) < 5 * error
    within = ((values - mean).abs() < std).float().mean().item()
    assert abs(within - 0.6827) < 0.03


def assert_uniform(values: Tensor, bound: float) -> None:
    assert values.abs().max() <= bound
    assert values.abs().max() > 0.99 * bound
    assert abs(values.mean().item()) < 5 * bound / (3 * values.numel()) ** 0.5
    assert abs(values.std().item() * 3**0.5 / bound - 1) < 2.3 / values.numel() ** 0.5
