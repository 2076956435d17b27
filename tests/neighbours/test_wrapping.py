"""Models with layers of experts inside other libraries' tools: `make neighbours` installs those that are not here.

What each tool does to a module is also tried without the tool, so the ordinary suite notices a change of ours.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from factorized_moe import FactorizedExpertTensor, GatedMuMoEBlock, MuMoE, MuMoEBlock
from factorized_moe.storage import NetworkTensor, Operands

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: MuMoE(8, 8, [4, 3], "tr", rank=3, gate_norm="layer"),
    "block": lambda: MuMoEBlock(8, 16, 8, [4], "cp", rank=5, gate_norm="layer"),
    "gated block": lambda: GatedMuMoEBlock(8, 16, 8, [4], "tucker", rank=5, gate_norm="layer"),
}
EVERY_LAYER = pytest.mark.parametrize("layer", LAYERS)


class Model(nn.Module):
    """A layer of experts with a residual, between two linear layers."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.experts = LAYERS[layer]()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.experts(x))


def model(layer: str) -> Model:
    """With a gate that is not uniform."""
    torch.manual_seed(0)
    made = Model(layer)
    nn.init.normal_(made.experts.gate.projection.weight)
    return made.eval()


def inputs() -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def expert_tensors(module: nn.Module) -> Iterator[tuple[str, FactorizedExpertTensor]]:
    return ((name, part) for name, part in module.named_modules() if isinstance(part, FactorizedExpertTensor))


# What the tools do to modules, without them.


@EVERY_LAYER
def test_every_module_of_a_model_can_be_given_a_name(layer: str) -> None:
    """TransformerLens' ``setup`` does so."""
    changed = model(layer)
    expected, keys = changed(inputs()), list(changed.state_dict())
    for name, module in changed.named_modules():
        module.name = name
    assert [module.name for module in changed.modules()] == [name for name, _ in changed.named_modules()]
    assert torch.equal(changed(inputs()), expected)
    assert list(changed.state_dict()) == keys
    assert copy.deepcopy(changed).experts.name == "experts"


class Wrapper(nn.Module):
    """What PEFT puts around a module whose parameter is a target."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Any:
        return self.wrapped(x, *arguments, **options)


class Transparent(Wrapper):
    """What passes on any arguments may stand around a container."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return self.wrapped(*arguments, **options)


def test_a_wrapper_that_needs_an_input_is_refused_around_a_container() -> None:
    tensor = model("block").experts.first
    with pytest.raises(
        TypeError, match=r"is called without arguments, but Wrapper needs \['x'\]: it cannot take its pl"
    ):
        tensor.weight = Wrapper(tensor.weight)
    assert isinstance(tensor.weight, NetworkTensor)
    x, coefficients = torch.randn(5, 8), [torch.rand(5, 4)]
    expected = tensor(x, coefficients)
    tensor.weight = Transparent(tensor.weight)
    assert torch.equal(tensor(x, coefficients), expected)


# The tools themselves.


@EVERY_LAYER
def test_transformer_lens_sets_up_caches_and_edits(layer: str) -> None:
    lens = pytest.importorskip("transformer_lens")
    points = pytest.importorskip("transformer_lens.hook_points")

    class Hooked(lens.HookedRootModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model(layer)
            self.hook_experts = points.HookPoint()
            self.setup()

        def forward(self, x: Tensor) -> Tensor:
            x = self.model.embed(x)
            return self.model.head(x + self.hook_experts(self.model.experts(x)))

    hooked, x = Hooked(), inputs()
    output, cache = hooked.run_with_cache(x)
    assert torch.equal(output, hooked.model(x))
    assert torch.equal(cache["hook_experts"], hooked.model.experts(hooked.model.embed(x)))
    ablated = hooked.run_with_hooks(x, fwd_hooks=[("hook_experts", lambda value, hook: torch.zeros_like(value))])
    assert torch.equal(ablated, hooked.model.head(hooked.model.embed(x)))
    for name, tensor in expert_tensors(hooked):
        assert tensor.weight.name == f"{name}.weight"


@EVERY_LAYER
def test_nnsight_reads_and_edits_gate_experts_and_output(layer: str) -> None:
    nnsight = pytest.importorskip("nnsight")
    plain, x = model(layer), inputs()
    name, tensor = next(expert_tensors(plain.experts))
    hidden = plain.embed(x)
    coefficients = plain.experts.gate(hidden)
    traced = nnsight.NNsight(model(layer))
    inner = getattr(traced.experts, name)
    with traced.trace(x):
        gate = traced.experts.gate.output.save()
        first = inner.output.save()
        output = traced.output.save()
    assert all(torch.equal(a, b) for a, b in zip(gate, coefficients, strict=True))
    torch.testing.assert_close(first, tensor(hidden, coefficients))
    assert torch.equal(output, plain(x))
    uniform = tuple(torch.full_like(a, 1 / a.shape[-1]) for a in coefficients)
    with traced.trace(x):
        traced.experts.gate.output = uniform
        edited = traced.experts.output.save()
    nn.init.zeros_(plain.experts.gate.projection.weight)
    torch.testing.assert_close(edited, plain.experts(hidden))


@EVERY_LAYER
def test_captum_attributes_through_a_layer(layer: str) -> None:
    attr = pytest.importorskip("captum.attr")
    plain, x = model(layer), inputs()
    _, gap = attr.IntegratedGradients(plain).attribute(x, target=1, n_steps=200, return_convergence_delta=True)
    assert gap.abs().max() < 1e-3
    tensor = next(tensor for _, tensor in expert_tensors(plain))
    hidden = plain.embed(x)
    found = attr.LayerActivation(plain, tensor).attribute(x)
    torch.testing.assert_close(found, tensor(hidden, plain.experts.gate(hidden)))
    gates = attr.LayerActivation(plain, plain.experts.gate).attribute(x)
    coefficients = plain.experts.gate(hidden)
    for one, other in zip(gates if isinstance(gates, tuple) else (gates,), coefficients, strict=True):
        torch.testing.assert_close(one, other)
    through = attr.LayerIntegratedGradients(plain, plain.experts).attribute(x, target=1)
    assert through.shape == hidden.shape
    assert through.abs().max() > 0


@EVERY_LAYER
def test_peft_lora_beside_the_experts_and_on_the_gate(layer: str) -> None:
    peft = pytest.importorskip("peft")
    plain, x = model(layer), inputs()
    config = peft.LoraConfig(r=2, target_modules=["embed", "head", "gate.projection"], init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(plain), config).eval()
    adapted(x).sum().backward()
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert {name for name, p in adapted.named_parameters() if p.grad is not None} == trained
    assert {name.rpartition(".lora_")[0].rpartition("model.")[2] for name in trained} == {
        "embed",
        "head",
        "experts.gate.projection",
    }
    changed = adapted(x)
    assert not torch.allclose(changed, plain(x), atol=1e-2)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(x), changed)
    assert list(merged.state_dict()) == list(plain.state_dict())


@EVERY_LAYER
def test_peft_target_parameters_are_refused_with_help(layer: str) -> None:
    peft = pytest.importorskip("peft")
    plain = model(layer)
    name, tensor = next(expert_tensors(plain))
    factor = next(key for key, value in tensor.weight.named_parameters() if value.ndim in (2, 3))
    config = peft.LoraConfig(r=2, target_parameters=[f"{name}.weight.{factor}"])
    with pytest.raises(
        TypeError, match=r"ParamWrapper needs .*target_parameters reaches no factors; name linear layers"
    ):
        peft.get_peft_model(plain, config)


@EVERY_LAYER
def test_peft_trains_a_copy_of_the_whole_layer(layer: str) -> None:
    """What the refusal of ``target_parameters`` advises."""
    peft = pytest.importorskip("peft")
    plain, x = model(layer), inputs()
    expected = plain(x)
    adapted = peft.get_peft_model(plain, peft.LoraConfig(r=2, target_modules=["embed"], modules_to_save=["experts"]))
    torch.testing.assert_close(adapted(x), expected)
    optimiser = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    adapted(x).square().sum().backward()
    optimiser.step()
    assert not torch.allclose(adapted(x), expected, atol=1e-2)
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(x), expected)


@pytest.mark.filterwarnings("default")  # torchao's own, at its import
@EVERY_LAYER
def test_torchao_int8_leaves_factors_as_they_are(layer: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    plain, x = model(layer), inputs()
    expected = plain(x)
    quantization.quantize_(plain, quantization.Int8WeightOnlyConfig())
    kinds = {name: type(p).__name__ for name, p in plain.named_parameters()}
    assert {name for name, kind in kinds.items() if kind == "Int8Tensor"} == {
        "embed.weight",
        "head.weight",
        "experts.gate.projection.weight",
    }
    assert 0 < (plain(x) - expected).abs().max() < 0.05 * expected.abs().max()


def dequantised(module: nn.Module, arguments: Any, tensor: NetworkTensor) -> Operands:
    """A forward hook of a container: its factors as float tensors, for this call."""
    return Operands(tuple(factor.dequantize() for factor in tensor.operands))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("layer", ["block", "gated block"])
def test_torchao_int8_factors_with_a_hook(layer: str) -> None:
    """Weights of one byte; without the hook torchao says which operation it lacks."""
    quantization = pytest.importorskip("torchao.quantization")
    plain, x = model(layer), inputs()
    expected, int8 = plain(x), quantization.Int8WeightOnlyConfig()
    factors = [
        f"{name}.weight.{key}"
        for name, tensor in expert_tensors(plain)
        for key, value in tensor.weight.named_parameters()
        if value.ndim == 2
    ]
    quantization.quantize_(plain, quantization.FqnToConfig(dict.fromkeys(factors, int8)), filter_fn=None)
    assert all(type(p).__name__ == "Int8Tensor" for name, p in plain.named_parameters() if name in factors)
    with pytest.raises(NotImplementedError, match="Int8Tensor dispatch"):
        plain(x)
    for _, tensor in expert_tensors(plain):
        tensor.weight.register_forward_hook(dequantised)
    assert 0 < (plain(x) - expected).abs().max() < 0.05 * expected.abs().max()
