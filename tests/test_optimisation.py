"""Groups of parameters for optimisers: complete, disjoint, and fit for an optimiser of matrices."""

import pytest
import torch
from torch import nn

from factorized_moe import GatedMuMoEBlock, MuMoE, MuMoEBlock, parameter_groups
from factorized_moe.optimisation import warm_up_and_cosine


def model_of(decomposition: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 8),
        MuMoEBlock(8, 12, 8, [3, 2], decomposition, 2, input_norm=True),
        GatedMuMoEBlock(8, 12, 8, [3], decomposition, 2),
        nn.LayerNorm(8),
        MuMoE(8, 4, [3], decomposition, 2),
    )


@pytest.mark.parametrize("decomposition", ["cp", "tucker", "tt", "tr", "dense", "shared_private"])
def test_every_parameter_is_in_one_group(decomposition: str) -> None:
    model = model_of(decomposition)
    groups = parameter_groups(model, weight_decay=0.1, decay_gates=False, learning_rate=1e-3, gate_learning_rate=2e-3)
    given = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(given) == sorted(id(parameter) for parameter in model.parameters())
    named = {group["name"]: group for group in groups}
    assert named["gates"]["weight_decay"] == named["rest"]["weight_decay"] == 0.0
    assert named["matrices"]["weight_decay"] == 0.1
    assert (named["gates"]["lr"], named["rest"]["lr"]) == (2e-3, 1e-3)
    assert len(named["gates"]["params"]) == 3
    assert all(parameter.ndim > 2 for parameter in named.get("cores", {"params": []})["params"])


class OwnGate(nn.Module):
    """A gate of no class of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.logits(x).softmax(dim=-1),)


def test_a_gate_of_your_own_is_among_the_gates() -> None:
    gate = OwnGate()
    model = nn.Sequential(nn.Linear(8, 8), MuMoE(8, 4, [3], rank=2, gate=gate), MuMoE(4, 4, [3], rank=2))
    groups = parameter_groups(model, learning_rate=1e-3, gate_learning_rate=1e-2, decay_gates=False)
    named = {group["name"]: group for group in groups}
    expected = [*gate.parameters(), *model[2].gate.parameters()]
    assert [id(parameter) for parameter in named["gates"]["params"]] == [id(parameter) for parameter in expected]
    assert (named["gates"]["lr"], named["gates"]["weight_decay"]) == (1e-2, 0.0)
    assert [tuple(parameter.shape) for parameter in named["matrices"]["params"]] == [(8, 8)]


def test_an_optimiser_of_matrices_refuses_cores_and_the_rest() -> None:
    model = model_of("tucker")
    groups = {group.pop("name"): group for group in parameter_groups(model)}
    with pytest.raises(ValueError, match="2D"):
        torch.optim.Muon([groups["cores"]])
    with pytest.raises(ValueError, match="Muon"):
        torch.optim.Muon([groups["rest"]])
    muon = torch.optim.Muon([groups["factors"], groups["matrices"]], lr=1e-2)
    adam = torch.optim.AdamW([groups["cores"], groups["gates"], groups["rest"]], lr=1e-2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(3):  # a gate that starts at zero passes on no gradient to itself at first
        model(torch.randn(16, 8)).square().sum().backward()
        muon.step()
        adam.step()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_shared_and_frozen_parameters() -> None:
    model = model_of("cp")
    model[1].second.requires_grad_(False)
    model.append(model[0])
    given = [parameter for group in parameter_groups(model) for parameter in group["params"]]
    assert len(given) == len({id(parameter) for parameter in given})
    assert all(parameter.requires_grad for parameter in given)


def test_refusals() -> None:
    with pytest.raises(TypeError, match=r"model is a torch\.nn\.Module, got int"):
        parameter_groups(3)
    with pytest.raises(TypeError, match="decay_gates"):
        parameter_groups(model_of("cp"), decay_gates="no")
    with pytest.raises(ValueError, match=r"weight_decay is 0 or more and finite, got -1\.0"):
        parameter_groups(model_of("cp"), weight_decay=-1.0)
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(nn.ReLU())


def test_the_learning_rate_stays_at_zero_after_the_last_step() -> None:
    assert [warm_up_and_cosine(step, 100, 10) for step in (100, 101, 150, 1000)] == [0.0] * 4
