"""Putting layers of experts into a model: what is asked for is replaced and computes the same, or nothing changes."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from factorized_moe import GatedMuMoEBlock, MuMoE, MuMoEBlock
from factorized_moe.surgery import MuMoEConfig, MuMoEDelta, is_mlp, replace

CONFIG = MuMoEConfig(expert_dims=(3,), rank=16)


def make_model(depth: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6)) for _ in range(depth)]
    return nn.Sequential(*blocks, nn.LayerNorm(6), nn.Linear(6, 4))


def snapshot(model: nn.Module) -> dict[str, int]:
    return {path: id(module) for path, module in model.named_modules()}


def test_mlps_become_blocks_that_compute_the_same() -> None:
    model = make_model()
    x = torch.randn(5, 6)
    before = model(x)
    report = replace(model, is_mlp, CONFIG)
    assert [one.path for one in report.replacements] == ["0", "1", "2"]
    assert all(isinstance(model[k], MuMoEBlock) for k in range(3))
    assert torch.allclose(model(x), before, atol=1e-5)
    assert report.parameters_after == sum(p.numel() for p in model.parameters())
    assert max(max(one.errors) for one in report.replacements) < 1e-6


@pytest.mark.parametrize(
    ("target", "paths"),
    [
        ("4", ["4"]),
        ("?", None),
        ("[01]", ["0", "1"]),
        (re.compile(r"[02]\.2"), ["0.2", "2.2"]),
        (nn.Linear, ["0.0", "0.2", "1.0", "1.2", "2.0", "2.2", "4"]),
        (["1", re.compile("4")], ["1", "4"]),
        (lambda path, module: path == "2.0", ["2.0"]),
    ],
    ids=["path", "too wide", "glob", "regex", "class", "several", "function"],
)
def test_targets(target: object, paths: list[str] | None) -> None:
    model = make_model()
    if paths is None:
        with pytest.raises(ValueError, match=r"also means 1 modules .* 3 \(LayerNorm\)"):
            replace(model, target, CONFIG)
    else:
        assert [one.path for one in replace(model, target, CONFIG).replacements] == paths


def test_five_of_many_modules_are_listed() -> None:
    model = nn.Sequential(nn.Linear(3, 3), *(nn.LayerNorm(3) for _ in range(7)))
    with pytest.raises(ValueError, match=r"also means 7 modules") as caught:
        replace(model, "*", CONFIG)
    assert str(caught.value).count("(LayerNorm)") == 5


def test_only_the_last_layers() -> None:
    model = make_model()
    report = replace(model, is_mlp, CONFIG, last=2)
    assert [one.path for one in report.replacements] == ["1", "2"]
    linears = replace(make_model(), re.compile(r"\d\.[02]"), CONFIG, last=1)
    assert [one.path for one in linears.replacements] == ["2.0", "2.2"]


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("7", {}, r"target '7' means no module; what can be replaced is, for instance, 0, "),
        ("3", {}, r"target '3' means 3 \(LayerNorm\): neither a linear layer nor a known MLP"),
        (nn.Conv2d, {}, r"target Conv2d means no module; what can be replaced is of class Linear, Sequential"),
        (["0", "0.0"], {}, r"'0.0' would be replaced twice"),
        (["0", "9"], {}, r"target '9' means no module"),
        ([], {}, r"no target is given"),
        ("", {}, r"target '' means the model \(Sequential\)"),
        (is_mlp, {"last": 4}, r"last is 4, but only 3 layers"),
        (is_mlp, {"last": 0}, r"last is a positive int, got 0"),
    ],
    ids=["no match", "no layer", "class", "twice", "in part", "none", "the model", "too many", "zero"],
)
def test_error_leaves_the_model_untouched(target: object, options: dict[str, int], message: str) -> None:
    model = make_model()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        replace(model, target, CONFIG, **options)
    assert snapshot(model) == before


def test_error_while_making_a_layer_leaves_the_model_untouched() -> None:
    model = make_model()
    with torch.no_grad():
        model[2][2].weight[0, 0] = float("nan")
    before = snapshot(model)
    with pytest.raises(ValueError, match="2: linear layer 1 of what is upcycled has a NaN"):
        replace(model, is_mlp, CONFIG)
    assert snapshot(model) == before


def test_error_while_putting_in_place_leaves_the_model_untouched() -> None:
    class Refusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)
            self.closed = True

        def __setattr__(self, name: str, value: object) -> None:
            if isinstance(value, MuMoE) and self.closed:
                raise RuntimeError("refused")
            super().__setattr__(name, value)

    model = nn.Sequential(nn.Linear(6, 6), Refusing())
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="refused"):
        replace(model, nn.Linear, CONFIG)
    assert snapshot(model) == before


@pytest.mark.parametrize("bad", [None, 3, int], ids=["none", "number", "class"])
def test_wrong_kind_of_target(bad: object) -> None:
    with pytest.raises(TypeError, match="a target is a pattern"):
        replace(make_model(), bad, CONFIG)


def test_wrong_kind_of_model_or_config() -> None:
    with pytest.raises(TypeError, match="model is a torch module, got str"):
        replace("model", "0", CONFIG)
    with pytest.raises(TypeError, match="config is a MuMoEConfig, got dict"):
        replace(make_model(), "0", {"rank": 3})
    with pytest.raises(TypeError, match="delta must be True or False, got 'yes'"):
        replace(make_model(), "0", CONFIG, delta="yes")


def test_a_target_s_function_gives_no_tensor() -> None:
    with pytest.raises(TypeError, match="a target's function returns True or False, got a tensor for ''"):
        replace(make_model(), lambda path, module: torch.ones(3), CONFIG)
    report = replace(make_model(), lambda path, module: re.fullmatch("[02]", path), CONFIG)
    assert [one.path for one in report.replacements] == ["0", "2"]


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_and_quantised_layers_are_no_linear_layers() -> None:
    lazy = nn.LazyLinear(4)
    packed = nn.Linear(4, 4)
    packed.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="this model has nothing that can be replaced"):
        replace(nn.Sequential(lazy, packed), nn.Linear, CONFIG)


@pytest.mark.parametrize("path", ["a.0", "a.2", "b.0"])
def test_module_in_several_places_is_replaced_in_each(path: str) -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    outer = nn.ModuleDict({"a": model, "b": nn.ModuleList([shared])})
    report = replace(outer, [path, nn.Linear], CONFIG)
    assert len(report.replacements) == 1
    assert isinstance(outer["a"][0], MuMoE)
    assert outer["a"][0] is outer["a"][2] is outer["b"][0]


def test_layers_of_experts_are_not_replaced_again() -> None:
    model = make_model()
    replace(model, is_mlp, CONFIG)
    report = replace(model, nn.Linear, CONFIG)  # the gates' projections are linear layers too
    assert [one.path for one in report.replacements] == ["4"]


def test_torch_layers_that_read_weights_are_left_alone() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with pytest.raises(ValueError, match="this model has nothing that can be replaced"):
        replace(nn.Sequential(layer), nn.Linear, CONFIG)


def test_delta_starts_as_the_model_and_trains_alone() -> None:
    model = make_model(1)
    x = torch.randn(5, 6)
    before = model(x)
    report = replace(model, is_mlp, CONFIG, delta=True)
    assert [(one.path, one.kind) for one in report.replacements] == [("0.0", "MuMoE"), ("0.2", "MuMoE")]
    assert torch.equal(model(x), before)
    model(x).square().sum().backward()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith(("0.0.experts.", "0.2.experts.")) for name in trained)
    reached = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    assert reached == ["0.0.experts.experts.weight.output", "0.2.experts.experts.weight.output"]
    assert isinstance(model[0][0], MuMoEDelta)


def test_gated_mlp_becomes_a_gated_block() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(6, 9), nn.Linear(6, 9, bias=False)
            self.down_proj, self.act_fn = nn.Linear(9, 5, bias=False), nn.SiLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    torch.manual_seed(0)
    model, x = nn.ModuleDict({"mlp": Gated().double()}), torch.randn(4, 6, dtype=torch.float64)
    before = model["mlp"](x)
    replace(model, is_mlp, CONFIG)
    assert isinstance(model["mlp"], GatedMuMoEBlock)
    assert torch.allclose(model["mlp"](x), before)


class Adapted(nn.Linear):
    """A linear layer with a matrix of low rank beside its weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x.mean(-1, keepdim=True)


def hooked() -> nn.Linear:
    linear = nn.Linear(6, 4)
    linear.register_forward_hook(lambda module, inputs, output: 2.0 * output)
    return linear


@pytest.mark.parametrize("make", [lambda: Adapted(6, 4), hooked], ids=["subclass", "hook"])
def test_linear_layers_that_compute_more_than_their_weight(make: Callable[[], nn.Linear]) -> None:
    model = nn.Sequential(nn.Sigmoid(), make())
    before, old, x = model[1](torch.ones(2, 6)), model[1], torch.ones(2, 6)
    with pytest.raises(
        ValueError, match=f"1: linear layer 0 .* of class {type(old).__name__}, computes something else"
    ):
        replace(model, "1", CONFIG)
    assert model[1] is old
    assert len(replace(model, "1", CONFIG, delta=True).replacements) == 1
    assert torch.equal(model[1](x), before)


def test_looking_for_targets_leaves_a_spectral_norm_in_training_alone() -> None:
    model = nn.Sequential(nn.ReLU(), nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="means no module"):
        replace(model, "9", CONFIG)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert model[1].training


def test_linear_layer_shared_by_two_mlps_has_one_delta() -> None:
    shared = nn.Linear(6, 9)
    model = nn.ModuleList([nn.Sequential(shared, nn.GELU(), nn.Linear(9, 6)) for _ in range(2)])
    report = replace(model, is_mlp, CONFIG, delta=True)
    assert [one.path for one in report.replacements] == ["0.0", "0.2", "1.2"]
    assert model[0][0] is model[1][0]
    assert report.parameters_after == sum(one.parameters_after for one in report.replacements)
