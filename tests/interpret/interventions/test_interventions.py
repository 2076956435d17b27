"""Interventions do what their definitions say, compose, and leave nothing behind."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from factorized_moe import CPMuMoE, GatedMuMoEBlock, MuMoE, MuMoEBlock
from factorized_moe.interpret import (
    Ablate,
    Add,
    Bias,
    Force,
    Intervention,
    Scale,
    Swap,
    intervene,
    record,
)


def trained_like(layer: MuMoE | MuMoEBlock) -> MuMoE | MuMoEBlock:
    """Weights of the gate that are not zero, as after training."""
    for parameter in layer.gate.parameters():
        nn.init.normal_(parameter)
    return layer


def make_model(decomposition: str = "cp") -> nn.Sequential:
    torch.manual_seed(0)
    layer = MuMoE(6, 5, expert_dims=[4, 3], decomposition=decomposition, rank=2, dtype=torch.float64)
    block = MuMoEBlock(5, 7, 5, expert_dims=[4], rank=3, gate="softmax", gate_norm="layer", dtype=torch.float64)
    return nn.Sequential(trained_like(layer), trained_like(block)).eval()


def state_of(model: nn.Module) -> dict[str, object]:
    """Everything an intervention might leave: parameters, buffers, attributes and hooks of every module."""
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = {
        f"{name}.{key}": dict(value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if "hooks" in key
    }
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    return {"tensors": tensors, "hooks": hooks, "attributes": attributes}


def assert_same_state(first: dict[str, object], second: dict[str, object]) -> None:
    assert first["hooks"] == second["hooks"]
    assert first["attributes"] == second["attributes"]
    mine, theirs = first["tensors"], second["tensors"]
    assert isinstance(mine, dict)
    assert isinstance(theirs, dict)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


COEFFICIENTS = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]])


@pytest.mark.parametrize(
    ("intervention", "expected"),
    [
        (Ablate(torch.tensor([0, 3])), [[0.0, 0.5, 0.0, 0.0], [0.0, 0.2, 0.3, 0.0]]),
        (Scale(1, -2), [[0.5, -1.0, 0.0, 0.0], [0.1, -0.4, 0.3, 0.4]]),
        (Force([2]), [[0.5, 0.5, 1.0, 0.0], [0.1, 0.2, 1.0, 0.4]]),
        (Add([0, 1], 1), [[1.5, 1.5, 0.0, 0.0], [1.1, 1.2, 0.3, 0.4]]),
        (Swap((3, 1)), [[0.5, 0.0, 0.0, 0.5], [0.1, 0.4, 0.3, 0.2]]),
    ],
    ids=["ablate", "scale", "force", "add", "swap"],
)
def test_change_of_coefficients(intervention: Ablate, expected: list[list[float]]) -> None:
    kept = COEFFICIENTS.clone()
    torch.testing.assert_close(intervention.change(COEFFICIENTS), torch.tensor(expected))
    assert torch.equal(COEFFICIENTS, kept)
    half = intervention.change(COEFFICIENTS.bfloat16())
    assert half.dtype == torch.bfloat16
    assert intervention.change(COEFFICIENTS[0]).shape == (4,)
    assert intervention.change(torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("decomposition", ["cp", "tucker", "tt", "tr", "shared_private"])
@pytest.mark.parametrize("mode", [0, 1])
def test_ablation_is_zero_weights_of_that_expert(decomposition: str, mode: int) -> None:
    layer = make_model(decomposition)[0]
    x = torch.randn(8, 6, dtype=torch.float64)
    dense = layer.experts.to_dense().clone()
    dense.select(mode, 2).zero_()
    a, b = layer.gate(x)
    with intervene(layer, Ablate(2, mode=mode)):
        y = layer(x)
    ones = torch.cat([x, torch.ones(8, 1, dtype=torch.float64)], dim=-1)
    torch.testing.assert_close(y, torch.einsum("bm, bn, bi, mnio -> bo", a, b, ones, dense))


def test_bias_adds_to_chosen_outputs_alone() -> None:
    layer = make_model()[0]
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    amounts = torch.randn(2, 3)
    with intervene(layer, Bias((0, 3), amounts, [4, 0, 1])):
        changed = layer(x)
    a = layer.gate(x)[0][..., [0, 3]]
    expected = layer(x).clone()
    expected[..., [4, 0, 1]] += a @ amounts.double()
    torch.testing.assert_close(changed, expected)
    with intervene(layer, Bias(range(3), 1.5, mode=1)):  # coefficients sum to 1
        shifted = layer(x)
    torch.testing.assert_close(shifted, layer(x) + 1.5)


def test_bias_sees_the_coefficients_that_the_layer_computes_with() -> None:
    block = make_model()[1]
    x = torch.randn(4, 5, dtype=torch.float64)
    with intervene(block, Bias(1, 3.0), Ablate(1)):
        biased = block(x)
    with intervene(block, Ablate(1)):
        torch.testing.assert_close(biased, block(x), rtol=0, atol=0)


def test_block_is_ablated_in_both_of_its_layers() -> None:
    block = make_model()[1]
    x = torch.randn(4, 5, dtype=torch.float64)
    (a,) = block.gate(x)
    without = a.clone()
    without[:, 2] = 0
    expected = block.second(block.activation(block.first(x, [without])), [without])
    with intervene(block, Ablate(2)):
        assert torch.equal(block(x), expected)


def test_gated_block_is_changed_in_all_of_its_layers_and_recorded() -> None:
    block = GatedMuMoEBlock(5, 7, 5, expert_dims=[4], rank=3, gate_norm="layer", dtype=torch.float64)
    nn.init.normal_(block.gate.get_parameter("projection.weight"))
    model = nn.Sequential(nn.Identity(), block)
    x = torch.randn(4, 5, dtype=torch.float64)
    a = [block.gate(x)[0].index_fill(-1, torch.tensor([2]), 0.0)]
    expected = block.second(block.activation(block.first(x, a)) * block.multiplier(x, a), a) + 2 * a[0][:, :1]
    with intervene(model, Ablate(2), Bias(0, 2.0)), record(model, dtype=torch.float64) as log:
        assert torch.equal(model(x), expected)
    assert torch.equal(log.recording.coefficients("1"), a[0].detach())


def test_order_is_that_of_the_arguments_and_of_nesting() -> None:
    model = make_model()
    x = torch.randn(4, 6, dtype=torch.float64)
    one = [Force(1, 2.0, layer="0"), Scale([1, 2], 3.0, layer="0")]
    with intervene(model, *one):
        together = model[0].gate(x)[0]
    with intervene(model, one[0]), intervene(model, one[1]):
        nested = model[0].gate(x)[0]
    assert torch.equal(together, nested)
    assert together[:, 1].tolist() == [6.0] * 4
    with intervene(model, *one[::-1]):
        assert model[0].gate(x)[0][:, 1].tolist() == [2.0] * 4


def test_a_pattern_names_several_layers() -> None:
    model = make_model()
    x = torch.randn(4, 6, dtype=torch.float64)
    with intervene(model, Force(0, 0.5, layer="*")):
        assert model[0].gate(x)[0][:, 0].tolist() == [0.5] * 4
        assert model[1].gate(model[0](x))[0][:, 0].tolist() == [0.5] * 4


EVERY = [
    Ablate(0, layer="0", mode=1),
    Scale(1, 2.0, layer="1"),
    Force(2, layer="0"),
    Add(3, 0.5, layer="1"),
    Swap((0, 1), layer="0"),
    Bias(0, 1.0, [1], layer="1"),
]


def test_nothing_is_left_on_the_model() -> None:
    model = make_model()
    x = torch.randn(4, 6, dtype=torch.float64)
    model[0].gate.register_forward_hook(lambda module, inputs, output: None)
    before, y = state_of(model), model(x)
    with intervene(model, *EVERY):
        assert not torch.equal(model(x), y)
        assert len(model[0].gate._forward_hooks) == 4
    assert_same_state(before, state_of(model))
    assert torch.equal(model(x), y)
    handle = intervene(model, *EVERY)
    assert not torch.equal(model(x), y)
    handle.undo()
    handle.undo()
    assert_same_state(before, state_of(model))


def test_handles_are_undone_in_any_order() -> None:
    model = make_model()
    x = torch.randn(4, 6, dtype=torch.float64)
    before, y = state_of(model), model(x)
    first, second = intervene(model, EVERY[0]), intervene(model, EVERY[5])
    first.undo()
    with intervene(model, EVERY[5]):
        assert not torch.equal(model(x), y)
    second.undo()
    assert_same_state(before, state_of(model))


def test_an_exception_undoes_them() -> None:
    model = make_model()
    before = state_of(model)
    with pytest.raises(ValueError, match="must have shape"), intervene(model, *EVERY):
        model(torch.randn(4, 5, dtype=torch.float64))
    assert_same_state(before, state_of(model))


def test_a_wrong_one_among_several_touches_nothing() -> None:
    model = make_model()
    before = state_of(model)
    with pytest.raises(ValueError, match="expert 4 is out of range"):
        intervene(model, EVERY[0], Ablate(4, layer="1"))
    assert_same_state(before, state_of(model))


def test_gradients_flow_and_a_layer_need_not_run() -> None:
    model = make_model()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    with intervene(model, *EVERY):
        model[0](x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def compiled() -> nn.Module:
    return torch.compile(make_model(), backend="eager")


def compiled_in_place() -> nn.Module:
    model = make_model()
    model[0].compile(backend="eager")
    return model


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Ablate([]), ValueError, r"Ablate: experts are one or several different numbers, got \[\]"),
        (lambda: Ablate([1, 1]), ValueError, r"one or several different numbers, got \[1, 1\]"),
        (lambda: Ablate("3"), TypeError, "expert '3' is not an int; it is a number counted from 0"),
        (lambda: Ablate(torch.tensor([True, False])), TypeError, "expert True is not an int"),
        (lambda: Ablate([0.5]), TypeError, "expert 0.5 is not an int"),
        (lambda: Ablate(0, mode=True), TypeError, "mode True is not an int"),
        (lambda: Scale(0, float("nan")), ValueError, "Scale: factor must be finite, got nan"),
        (lambda: Force(0, "1"), TypeError, "Force: value is a number, got '1'"),
        (lambda: Add(0, float("inf")), ValueError, "Add: amount must be finite, got inf"),
        (lambda: Swap((0, 1, 2)), ValueError, r"Swap: experts are the two to exchange, got \[0, 1, 2\]"),
        (lambda: Bias(0, float("inf")), ValueError, "Bias: amount must be finite, got inf"),
        (lambda: Bias(0, 1.0, [0.0]), TypeError, r"Bias: outputs are ints counted from 0, got \[0.0\]"),
        (lambda: Bias(0, 1.0, []), ValueError, r"Bias: outputs are one or several different numbers, got \[\]"),
        (lambda: intervene(make_model()), ValueError, "no intervention is given; give one or several"),
        (lambda: intervene(3, Ablate(0)), TypeError, "model is a torch.nn.Module, got int"),
        (lambda: intervene(make_model(), "ablate"), TypeError, "expected interventions such as .*, got 'ablate'"),
        (
            lambda: intervene(make_model(), Ablate(0)),
            ValueError,
            "the model has 2 uMoE layers; give layer=, one of '0'",
        ),
        (lambda: intervene(make_model(), Ablate(0, layer="O")), ValueError, "no uMoE layer of the model is called"),
        (
            lambda: intervene(make_model(), Ablate(0, layer="0", mode=2)),
            ValueError,
            r"layer '0' has expert modes of sizes \(4, 3\), counted from 0; there is no mode 2",
        ),
        (
            lambda: intervene(make_model(), Ablate(3, layer="0", mode=1)),
            ValueError,
            "expert 3 is out of range for the 3 experts of mode 1 of layer '0', counted from 0",
        ),
        (
            lambda: intervene(make_model(), Bias(0, 1.0, [5], layer="1")),
            ValueError,
            "output 5 is out of range for the 5 outputs of layer '1', counted from 0",
        ),
        (
            lambda: intervene(make_model(), Bias((0, 1), torch.ones(3), [0, 1], layer="1")),
            ValueError,
            r"amount has shape \(3,\), which does not broadcast to \(2, 2\): experts, then outputs",
        ),
        (lambda: intervene(compiled(), EVERY[0]), ValueError, "OptimizedModule is compiled, and torch ignores hooks"),
        (lambda: intervene(compiled_in_place(), EVERY[0]), ValueError, "MuMoE is compiled, and torch ignores hooks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_single_layer_is_a_model_of_its_own() -> None:
    layer = CPMuMoE(4, 3, [2], rank=2, gate_norm=None)
    with intervene(layer, Ablate([0, 1])):
        assert layer(torch.randn(5, 4)).tolist() == [[0.0] * 3] * 5


def test_third_party_interventions_are_taken() -> None:
    class Sharpen(Ablate):
        def change(self, coefficients: torch.Tensor) -> torch.Tensor:
            return (coefficients == coefficients.amax(dim=-1, keepdim=True)).to(coefficients)

    assert issubclass(Sharpen, Intervention)
    layer = CPMuMoE(4, 3, [2], rank=2, gate_norm=None)
    with intervene(layer, Sharpen(0)):
        assert layer.gate(torch.randn(5, 4))[0].tolist() == [[1.0, 1.0]] * 5
