"""The face of layers: what a subclass of a user's own gets, and that all of ours take the same options."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from factorized_moe import ExpertLayer, GatedMuMoEBlock, MuMoE, MuMoEBlock, TensorNetwork, parameter_groups
from factorized_moe.interpret import Ablate, Bias, counterfactuals, find_layers, intervene, measure_usage, record
from factorized_moe.surgery import from_pretrained, is_mlp, load, replace, save, save_pretrained
from factorized_moe.surgery.saving.describing import describe, kinds


class Residual(ExpertLayer):
    """``x + scale * second(relu(first(x)))``, made by a user of the library."""

    first: Any
    second: Any

    def __init__(
        self,
        features: int,
        expert_dims: Any,
        decomposition: Any = "cp",
        rank: Any = None,
        *,
        scale: float,
        **options: Any,
    ) -> None:
        shapes = {"first": (features, 2 * features), "second": (2 * features, features)}
        super().__init__(shapes, expert_dims, decomposition, rank, **options)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        coefficients = self.gate(x)
        x = x if self.input_norm is None else self.input_norm(x)
        y: Tensor = x + self.scale * self.second(torch.relu(self.first(x, coefficients)), coefficients)
        return y

    def own_arguments(self) -> dict[str, Any]:
        return {"features": self.in_features, "scale": self.scale}


def trained_gate(layer: ExpertLayer) -> ExpertLayer:
    nn.init.normal_(layer.gate.projection.weight)
    return layer.eval()


@pytest.fixture
def residual() -> ExpertLayer:
    torch.manual_seed(0)
    return trained_gate(Residual(6, [4, 3], "tr", 2, scale=0.5, input_norm=True, gate="softmax", gate_norm="layer"))


def test_its_face(residual: ExpertLayer) -> None:
    assert residual.expert_dims == (4, 3)
    assert list(residual.expert_tensors) == ["first", "second"]
    assert (residual.in_features, residual.out_features) == (6, 6)
    assert {group["name"] for group in parameter_groups(residual)} == {"cores", "gates", "rest"}
    assert [mode.num_experts for mode in measure_usage(residual, torch.randn(9, 6))] == [4, 3]


def test_it_is_recorded_and_intervened_on(residual: ExpertLayer) -> None:
    model, x = nn.Sequential(nn.Linear(6, 6), residual).eval(), torch.randn(5, 6)
    assert list(find_layers(model)) == ["1"]
    with record(model) as log:
        plain = model(x)
    assert torch.equal(log.recording.coefficients("1"), residual.gate(model[0](x))[0])
    with intervene(model, Ablate(range(4))):
        torch.testing.assert_close(model(x), residual.input_norm(model[0](x)))
    with intervene(model, Bias(0, 1.0, outputs=[2])):
        changed = model(x)
    (first, _) = residual.gate(model[0](x))
    torch.testing.assert_close(changed[:, 2], plain[:, 2] + first[:, 0])
    assert torch.equal(model(x), plain)


def test_its_counterfactuals_are_those_of_single_ablations(residual: ExpertLayer) -> None:
    model, x, labels = nn.Sequential(nn.Linear(6, 6), residual).eval(), torch.randn(40, 6), torch.randint(6, (40,))
    found = counterfactuals(model, [(x, labels)])
    for expert in range(4):
        with intervene(model, Ablate(expert)):
            right = model(x).argmax(-1) == labels
        expected = torch.stack([right[labels == label].sum() for label in range(6)])
        assert torch.equal(found.correct_without[expert], expected)


def test_it_is_saved_alone_and_in_a_model(residual: ExpertLayer, tmp_path: Path) -> None:
    x = torch.randn(5, 6)
    save_pretrained(residual, tmp_path / "layer")
    again = from_pretrained(tmp_path / "layer").eval()
    assert type(again) is Residual
    assert torch.equal(again(x), residual(x))

    def base() -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 6), nn.Identity())

    model = base()
    model[1] = residual
    save(model, tmp_path / "model")
    assert torch.equal(load(base(), tmp_path / "model").eval()(x), model.eval()(x))


@pytest.mark.thorough
def test_a_file_names_a_class_and_imports_nothing(residual: ExpertLayer, tmp_path: Path) -> None:
    save_pretrained(residual, tmp_path / "layer")
    kind = json.loads((tmp_path / "layer" / "config.json").read_text())["layer"]["kind"]
    assert kind.endswith(":Residual")
    assert kind in kinds()
    script = f"from factorized_moe.surgery import from_pretrained\nfrom_pretrained({str(tmp_path / 'layer')!r})"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "known are" in result.stderr
    assert "import the module that defines it first" in result.stderr


def test_a_subclass_without_its_arguments_is_told_so() -> None:
    class Forgetful(ExpertLayer):
        def __init__(self) -> None:
            super().__init__({"experts": (3, 2)}, [2], "cp", 1)

    with pytest.raises(TypeError, match="Forgetful does not say its own_arguments"):
        describe(Forgetful())


@pytest.mark.parametrize("kind", [MuMoEBlock, GatedMuMoEBlock])
def test_blocks_take_the_same_options(kind: type[ExpertLayer]) -> None:
    options = {"input_norm": True, "checkpoint": True, "sparse_coefficients": False, "init": "variance_preserving"}
    block = kind(4, 6, 4, [3], rank=2, **options)
    assert all(tensor.checkpoint for tensor in block.expert_tensors.values())
    y = block(torch.randn(5, 4))
    y.sum().backward()
    assert block.input_norm.weight.grad is not None
    with pytest.raises(TypeError, match=r"activation is a module or a function of a tensor, .* got <class"):
        kind(4, 6, 4, [3], rank=2, activation=nn.SiLU)
    with pytest.raises(TypeError, match=r"activation is a module .* got 'gelu'"):
        kind(4, 6, 4, [3], rank=2, activation="gelu")


@pytest.mark.parametrize(
    "kind", [lambda **o: MuMoE(4, 4, [3], rank=2, **o), lambda **o: MuMoEBlock(4, 6, 4, [3], rank=2, **o)]
)
def test_input_norm_is_true_or_false(kind: Any) -> None:
    with pytest.raises(TypeError, match="input_norm"):
        kind(input_norm="no")


def test_a_layer_of_a_network() -> None:
    network = TensorNetwork.parse("expert_0 a, in a b, b out; expert_0=3 in=5 out=2 a=2 b=2")
    layer = MuMoE(network=network)
    assert (layer.expert_dims, layer.in_features, layer.out_features) == ((3,), 4, 2)
    assert layer(torch.randn(7, 4)).shape == (7, 2)
    with pytest.raises(ValueError, match="a network describes one expert tensor"):
        Residual(4, None, network=network, scale=1.0)


def test_a_gate_of_one_s_own_is_reset_where_it_can_be() -> None:
    class Counting(nn.Linear):
        resets = 0

        def reset_parameters(self) -> None:
            super().reset_parameters()
            self.resets += 1

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (torch.softmax(super().forward(x), -1),)

    for make in (
        lambda gate: MuMoE(4, 4, [3], rank=2, gate=gate),
        lambda gate: GatedMuMoEBlock(4, 5, 4, [3], rank=2, gate=gate),
    ):
        gate = Counting(4, 3)
        before = gate.resets
        make(gate).reset_parameters()
        assert gate.resets == before + 1


def test_replace_leaves_a_layer_of_experts_alone(residual: ExpertLayer) -> None:
    from factorized_moe.surgery import MuMoEConfig

    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)), residual)
    report = replace(model, is_mlp, MuMoEConfig((2,), rank=3))
    assert model[1] is residual
    assert isinstance(model[0], MuMoEBlock)
    assert report is not None


@pytest.mark.parametrize("names", [[], ["gate"], ["input_norm"], ["forward"], ["first.weight"]], ids=str)
def test_names_of_tensors_are_free(names: list[str]) -> None:
    class Named(ExpertLayer):
        def __init__(self) -> None:
            super().__init__(dict.fromkeys(names, (4, 4)), [3], "cp", 2)

        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(ValueError, match=r"Named: shapes has one entry or more, .* such as 'experts'; got (none|\[)"):
        Named()


def test_arguments_that_do_not_make_a_layer_are_named(tmp_path: Path) -> None:
    class Forgotten(MuMoE):
        def own_arguments(self) -> dict[str, Any]:
            return {"features": 4}

    with pytest.raises(
        ValueError, match=r"Forgotten could not be made again of .* unexpected keyword argument 'features'"
    ):
        save_pretrained(Forgotten(4, 4, [3], rank=2), tmp_path)
