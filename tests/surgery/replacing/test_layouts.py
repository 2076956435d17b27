"""MLPs are known by their parts: families of one's own, and parts that no layout knows."""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import nn

from factorized_moe import GatedMuMoEBlock, MuMoEBlock
from factorized_moe.surgery import (
    LAYOUTS,
    MLPLayout,
    MuMoEConfig,
    is_mlp,
    register_layout,
    replace,
    timm_mlp_layer,
    upcycle,
)
from factorized_moe.surgery.replacing import layouts

CONFIG = MuMoEConfig(expert_dims=(3,), rank=12)


class TimmMlp(nn.Module):
    """The parts of timm's MLP, in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.drop1, self.norm = nn.Linear(6, 9), nn.GELU(), nn.Dropout(0.3), nn.LayerNorm(9)
        self.fc2, self.drop2 = nn.Linear(9, 6), nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop2(self.fc2(self.norm(self.drop1(self.act(self.fc1(x))))))


def test_dropouts_within_and_after_an_mlp_stay() -> None:
    model, x = nn.Sequential(TimmMlp()), torch.randn(4, 6)
    torch.manual_seed(0)
    expected = model(x)  # in training
    replace(model, is_mlp, CONFIG)
    torch.manual_seed(0)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_family_of_ones_own() -> None:
    class Channels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grow, self.bend, self.shrink = nn.Linear(6, 9), nn.functional.relu, nn.Linear(9, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.shrink(self.bend(self.grow(x)))

    model, x = nn.ModuleDict({"layer": Channels()}), torch.randn(4, 6)
    expected = model["layer"](x)
    with pytest.raises(ValueError, match="target is_mlp means no module"):
        replace(model, is_mlp, CONFIG)
    register_layout(MLPLayout("test channels", up="grow", activation=("bend",), down="shrink"))
    replace(model, is_mlp, CONFIG)
    assert isinstance(model["layer"], MuMoEBlock)
    torch.testing.assert_close(model["layer"](x), expected)


def test_merged_function_is_put_back_after_an_error() -> None:
    class Split(nn.Module):
        refusing: nn.Module | None = None  # the one in the model, not the copy on which the layout is tried

        def __init__(self) -> None:
            super().__init__()
            self.first_part, self.bent, self.second_part = nn.Linear(6, 9), nn.functional.relu, nn.Linear(9, 6)
            self.left_alone = nn.Dropout(0.1)

        def __setattr__(self, name: str, value: object) -> None:
            if name == "second_part" and not isinstance(value, nn.Linear) and self is Split.refusing:
                raise RuntimeError("refused")
            super().__setattr__(name, value)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.left_alone(self.second_part(self.bent(self.first_part(x))))

    register_layout(
        MLPLayout(
            "test split",
            up="first_part",
            activation=("bent",),
            down="second_part",
            block="first_part",
            kept=("left_alone",),
        )
    )
    model = nn.Sequential(Split())
    Split.refusing = model[0]
    with pytest.raises(RuntimeError, match="refused"):
        replace(model, is_mlp, CONFIG)
    assert model[0].bent is nn.functional.relu
    assert isinstance(model[0].first_part, nn.Linear)


def test_unknown_part_is_no_mlp() -> None:
    mlp = TimmMlp()
    assert is_mlp("", mlp)
    mlp.scale = nn.LayerNorm(9)
    assert not is_mlp("", mlp)
    mlp = TimmMlp()
    mlp.fc2 = nn.Identity()
    assert not is_mlp("", mlp)


def test_module_that_computes_something_else_is_refused() -> None:
    class Scaled(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2.0 * super().forward(x)

    model = nn.ModuleDict({"mlp": Scaled(nn.Linear(6, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 6))})
    register_layout(MLPLayout("test scaled", up="0", activation=("1", "2"), down="3"))
    with pytest.raises(
        ValueError, match="mlp: Scaled has the parts of the layout 'test scaled' but computes something"
    ):
        replace(model, is_mlp, CONFIG)
    assert isinstance(model["mlp"], Scaled)
    assert model["mlp"].training
    report = replace(model, nn.Linear, CONFIG)
    assert [one.path for one in report.replacements] == ["mlp.0", "mlp.3"]


def test_layers_between_two_linear_ones_are_no_activation() -> None:
    inner = nn.Sequential(nn.Linear(8, 9), nn.GELU(), nn.Linear(9, 8))
    model = nn.ModuleDict({"net": nn.Sequential(nn.Linear(6, 8), inner, nn.Linear(8, 4))})
    assert [one.path for one in replace(model, is_mlp, CONFIG).replacements] == ["net.1"]


def test_module_of_two_arguments_is_refused_and_keeps_its_modes() -> None:
    class Masked(nn.Sequential):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * mask

    model = nn.ModuleDict({"mlp": Masked(nn.Linear(6, 9), nn.Dropout(0.5).eval(), nn.Linear(9, 6))})
    modes = [module.training for module in model.modules()]
    with pytest.raises(ValueError, match="mlp: Masked has the parts of the layout 'sequential' but computes something"):
        replace(model, is_mlp, CONFIG)
    assert [module.training for module in model.modules()] == modes


def test_registering_errors() -> None:
    with pytest.raises(TypeError, match="register_layout takes an MLPLayout, got 'llama'"):
        register_layout("llama")
    with pytest.raises(ValueError, match="a layout needs a name of its own, got 'llama'; taken are gpt2, llama"):
        register_layout(next(layout for layout in LAYOUTS if layout.name == "llama"))


@pytest.mark.parametrize("drop", [0.0, 0.2, (0.0, 0.3)], ids=["none", "both", "last"])
@pytest.mark.parametrize("norm", [None, nn.LayerNorm], ids=["plain", "norm"])
def test_timm_calls(drop: object, norm: object) -> None:
    make = timm_mlp_layer(MuMoEConfig(expert_dims=(4,), decomposition="tr", fraction=1.0))
    # As VisionTransformer calls it.
    mlp = make(
        in_features=16,
        hidden_features=40,
        act_layer=nn.GELU,
        norm_layer=norm,
        bias=True,
        drop=drop,
        device="cpu",
        dtype=torch.float64,
    )
    assert mlp(torch.randn(2, 5, 16, dtype=torch.float64)).shape == (2, 5, 16)
    experts = sum(
        p.numel() for name, p in mlp.named_parameters() if "experts" in name or "first" in name or "second" in name
    )
    assert experts <= 17 * 40 + 41 * 16
    # As MlpMixer does for tokens, whose input is (batch, channels, tokens).
    tokens = partial(make, act_layer=nn.ReLU, drop=0.0)(9, 20)
    assert tokens(torch.randn(2, 16, 9)).shape == (2, 16, 9)


def test_timm_errors() -> None:
    with pytest.raises(TypeError, match="config is a MuMoEConfig, got dict"):
        timm_mlp_layer({})
    with pytest.raises(ValueError, match="use_conv: layers of experts are linear"):
        timm_mlp_layer(CONFIG)(16, use_conv=True)


# -- layouts that do not explain a module


class Layer(nn.Module):
    """A layer that does more than its MLP; what exactly is a function of the layer and its input."""

    def __init__(self, compute: Callable[["Layer", torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.norm, self.wide, self.bend, self.narrow = nn.LayerNorm(6), nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6)
        self.compute = compute

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return residual + self.compute(self, x)


def usual(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    return layer.narrow(layer.bend(layer.wide(layer.norm(x))))


def layer_layout(name: str, **changes: object) -> MLPLayout:
    parts = {"up": "wide", "activation": ("bend",), "down": "narrow", "block": "wide", "kept": ("norm",)}
    return MLPLayout(name, **{**parts, **changes})


OTHERS = {
    "scales": (
        lambda layer, x: 2.0 * layer.bend(layer.wide(x)) @ layer.narrow.weight.t(),
        "fails with a block in plac",
    ),
    "reads a bias": (lambda layer, x: usual(layer, x) + layer.narrow.bias, "fails with a block in place of 'wide', as"),
    "adds between": (lambda layer, x: layer.narrow(layer.bend(layer.wide(x)) + 0.1), "the layout 'test other' but"),
    "adds little": (lambda layer, x: 1e-3 * layer.narrow(layer.bend(layer.wide(x)) + 0.1), "layout 'test other' but"),
    "bends twice": (lambda layer, x: layer.narrow(layer.bend(-layer.bend(layer.wide(x)))), "computes something else"),
    "wants three": (
        lambda layer, x: usual(layer, x.reshape(7, 7)),
        "cannot be tried with the layout 'test ot",
    ),
}


@pytest.fixture
def _own_layouts() -> Iterator[None]:
    before = dict(layouts._LAYOUTS)
    yield
    layouts._LAYOUTS.clear()
    layouts._LAYOUTS.update(before)


@pytest.mark.usefixtures("_own_layouts")
@pytest.mark.parametrize("other", OTHERS)
def test_a_layout_that_does_not_explain_a_part_is_refused(other: str) -> None:
    register_layout(layer_layout("test other"))
    compute, message = OTHERS[other]
    model = nn.Sequential(Layer(compute))
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        replace(model, is_mlp, CONFIG)
    assert isinstance(model[0].wide, nn.Linear)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())

    model, x = nn.Sequential(Layer(usual)), torch.randn(4, 6)
    expected = model[0](x, x)
    replace(model, is_mlp, CONFIG)
    torch.testing.assert_close(model[0](x, x), expected)


@pytest.mark.usefixtures("_own_layouts")
def test_a_wrong_block_is_refused_and_any_right_one_taken() -> None:
    register_layout(layer_layout("test norm", block="norm"))
    with pytest.raises(ValueError, match="Layer has the parts of the layout 'test norm' but computes something else"):
        replace(nn.Sequential(Layer(usual)), is_mlp, CONFIG)
    register_layout(layer_layout("test end", block="narrow"))
    model, x = nn.Sequential(Layer(usual)), torch.randn(4, 6)
    expected = model[0](x, x)
    replace(model, is_mlp, CONFIG)
    assert isinstance(model[0].narrow, MuMoEBlock)
    torch.testing.assert_close(model[0](x, x), expected)


@pytest.mark.usefixtures("_own_layouts")
def test_a_part_that_adds_nothing_yet_is_taken() -> None:
    register_layout(layer_layout("test zero"))
    model = nn.Sequential(Layer(usual))
    nn.init.zeros_(model[0].narrow.weight)
    nn.init.zeros_(model[0].narrow.bias)
    assert [one.kind for one in replace(model, is_mlp, CONFIG).replacements] == ["MuMoEBlock"]


class Fused(nn.Module):
    """Gate and up in one layer, the gate first unless it is turned round."""

    def __init__(self, turned: bool = False, outputs: int = 18, bias: bool = True) -> None:
        super().__init__()
        self.both, self.bend, self.narrow = nn.Linear(6, outputs, bias), nn.SiLU(), nn.Linear(9, 6)
        self.turned = turned

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.both(x).chunk(2, dim=-1)
        return self.narrow(self.bend(up) * gate if self.turned else self.bend(gate) * up)


FUSED = MLPLayout("test fused", up="both", gate="both", activation=("bend",), down="narrow")


@pytest.mark.usefixtures("_own_layouts")
@pytest.mark.parametrize("bias", [True, False])
def test_gate_and_up_in_one_layer(bias: bool) -> None:
    register_layout(FUSED)
    model, x = nn.Sequential(Fused(bias=bias)), torch.randn(4, 6)
    expected, before = model(x), sum(parameter.numel() for parameter in model.parameters())
    started = upcycle(model[0], [3], rank=12)
    (report,) = replace(model, is_mlp, CONFIG).replacements
    assert report.parameters_before == before
    assert len(report.errors) == len(started.errors) == 3
    assert isinstance(model[0], GatedMuMoEBlock)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(started.layer(x), expected)
    tuned = nn.Sequential(Fused(bias=bias))
    expected = tuned(x)
    deltas = [one.path for one in replace(tuned, is_mlp, CONFIG, delta=True).replacements]
    assert deltas == ["0.both", "0.narrow"]
    assert torch.equal(tuned(x), expected)


@pytest.mark.usefixtures("_own_layouts")
def test_fused_layers_of_another_kind_are_refused() -> None:
    register_layout(FUSED)
    with pytest.raises(ValueError, match="Fused has the parts of the layout 'test fused' but computes something else"):
        replace(nn.Sequential(Fused(turned=True)), is_mlp, CONFIG)
    with pytest.raises(ValueError, match="Fused has 'both' with an odd number of outputs, which cannot be a gate"):
        replace(nn.Sequential(Fused(outputs=17)), is_mlp, CONFIG)


def test_what_is_nearly_an_mlp_is_named() -> None:
    mlp = TimmMlp()
    mlp.scale = nn.LayerNorm(9)
    with pytest.raises(ValueError, match=r"no module: TimmMlp has the linear layers of the layout 'timm', but scale,"):
        replace(nn.Sequential(mlp), is_mlp, CONFIG)
    del mlp.scale, mlp.act
    with pytest.raises(ValueError, match=r"layout 'timm', but no act; change its linear layers by their paths"):
        replace(nn.Sequential(mlp), is_mlp, CONFIG)
    with pytest.raises(ValueError, match=r"target is_mlp means no module: no part is an MLP of a known layout; wha"):
        replace(nn.Sequential(nn.Linear(2, 2)), is_mlp, CONFIG)
