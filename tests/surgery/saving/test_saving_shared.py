"""What must not become one, or something else, on its way through a file."""

from pathlib import Path

import pytest
import torch
from torch import nn

from factorized_moe import MuMoE, MuMoEBlock
from factorized_moe.surgery import MuMoEConfig, from_pretrained, is_mlp, load, replace, save, save_pretrained

CONFIG = MuMoEConfig(expert_dims=(3,), rank=4)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.middle = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight


class MLP(nn.Module):
    """GPT-2's, of a first linear layer that others may have too."""

    def __init__(self, first: nn.Linear) -> None:
        super().__init__()
        self.c_fc, self.act, self.c_proj = first, nn.GELU(), nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.act(self.c_fc(x)))


def sharing() -> nn.Sequential:
    shared = nn.Linear(6, 8)
    return nn.Sequential(MLP(shared), MLP(shared))


def test_values_that_differ_do_not_go_into_tied_weights(tmp_path: Path) -> None:
    model = Tied()
    replace(model, "middle", CONFIG)
    model.head.weight = nn.Parameter(torch.zeros(11, 6))
    save(model, tmp_path)
    with pytest.raises(ValueError, match=r"'embedding.weight' and 'head.weight' are one tensor in the model, but"):
        load(Tied(), tmp_path)


def test_blocks_in_place_of_a_shared_part_stay_apart(tmp_path: Path) -> None:
    model, x = sharing(), torch.randn(3, 6)
    replace(model, is_mlp, CONFIG)
    save(model, tmp_path)
    assert torch.equal(load(sharing(), tmp_path)(x), model(x))


def blocks(gate_temperature: float = 2.0) -> nn.Sequential:
    first, second = (
        MuMoEBlock(6, 8, 6, [3], rank=4),
        MuMoEBlock(6, 8, 6, [3], rank=4, gate_temperature=gate_temperature),
    )
    return nn.Sequential(first, second)


@pytest.mark.parametrize("only_experts", [False, True])
def test_a_gate_and_parameters_of_several_layers_stay_one(only_experts: bool, tmp_path: Path) -> None:
    model, x = blocks(), torch.randn(5, 6)
    model[1].gate = model[0].gate
    model[1].first = model[0].first
    model[1].second.weight.output = model[0].second.weight.output
    save(model, tmp_path, only_experts=only_experts)
    loaded = load(blocks(), tmp_path)
    assert loaded[1].gate is loaded[0].gate
    assert loaded[1].first.weight.input is loaded[0].first.weight.input
    assert loaded[1].second.weight.output is loaded[0].second.weight.output
    assert loaded[1].second.weight.input is not loaded[0].second.weight.input
    assert len(list(loaded.parameters())) == len(list(model.parameters()))
    assert torch.equal(loaded.eval()(x), model.eval()(x))


def test_gates_of_one_weight_and_two_temperatures_stay_two(tmp_path: Path) -> None:
    model = blocks(gate_temperature=1.0)
    model[1].gate.projection = model[0].gate.projection
    save(model, tmp_path)
    loaded = load(blocks(), tmp_path)
    assert [block.gate.temperature for block in loaded] == [2.0, 1.0]
    assert loaded[1].gate.projection.weight is loaded[0].gate.projection.weight


def test_tensors_of_one_layer_that_share_a_factor_still_do(tmp_path: Path) -> None:
    block = MuMoEBlock(6, 8, 6, [3], rank=4)
    block.second.weight.expert_0 = block.first.weight.expert_0
    save_pretrained(block, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert loaded.second.weight.expert_0 is loaded.first.weight.expert_0
    assert len(list(loaded.parameters())) == 6


def test_layer_with_a_forward_of_its_own_is_refused(tmp_path: Path) -> None:
    class Doubled(MuMoE):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2.0 * super().forward(x)

    with pytest.raises(ValueError, match="a Doubled has a forward of its own and would come back as a MuMoE"):
        save_pretrained(Doubled(4, 4, [2], rank=2), tmp_path)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="model is a torch module, got int"):
        save(5, tmp_path)
    with pytest.raises(TypeError, match="model is a torch module, got int"):
        load(5, tmp_path)
    with pytest.raises(TypeError, match="only_experts must be True or False, got 'no'"):
        save(nn.Sequential(MuMoE(4, 4, [2], rank=1)), tmp_path, only_experts="no")
    assert not list(tmp_path.iterdir())
