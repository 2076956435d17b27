"""Activations as JSON and back, and what cannot be written, which is refused before a model is changed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers.activations import ACT2CLS, ACT2FN
from transformers.models.bloom.modeling_bloom import BloomGelu

from factorized_moe.surgery import MuMoEConfig, is_mlp, load, register_nonlinearity, replace, save
from factorized_moe.surgery.replacing import nonlinearities
from factorized_moe.surgery.replacing.nonlinearities import ScaledSiLU, build_nonlinearity, describe_nonlinearity

OTHERS = {
    "bloom": BloomGelu,
    "scaled": lambda: ScaledSiLU(1.5),
    "norm": lambda: nn.Sequential(nn.GELU(), nn.LayerNorm(8, eps=1e-3), nn.Dropout(0.1)).eval(),
    "norm without bias": lambda: nn.LayerNorm(8, bias=False),
    "plain norm": lambda: nn.LayerNorm((8,), elementwise_affine=False),
    "prelu in bfloat16": lambda: nn.PReLU(dtype=torch.bfloat16),
}
CONFIG = MuMoEConfig(expert_dims=(3,), rank=6)


@pytest.fixture(autouse=True)
def _own_names() -> Iterator[None]:
    before = dict(nonlinearities._REGISTERED)
    nonlinearities._REGISTERED.clear()
    yield
    nonlinearities._REGISTERED.clear()
    nonlinearities._REGISTERED.update(before)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # xIELU says that it is written in Python
    yield
    transformers.logging.set_verbosity(level)


@pytest.mark.parametrize("name", [*ACT2CLS, *OTHERS])
def test_written_and_built_again(name: str) -> None:
    made = OTHERS[name]() if name in OTHERS else ACT2FN[name]
    built = build_nonlinearity(describe_nonlinearity(made))
    assert type(built) is type(made)
    state = made.state_dict()
    assert {key: one.dtype for key, one in built.state_dict().items()} == {key: one.dtype for key, one in state.items()}
    built = built.to_empty(device="cpu").train(made.training)
    built.load_state_dict(state)
    x = torch.randn(3, 8, dtype=torch.bfloat16 if name == "prelu in bfloat16" else torch.float32)
    assert torch.equal(built(x), made(x))


@pytest.mark.parametrize(
    "description",
    [
        {"xielu": 1},
        {"scaled_silu": True},
        {"of_model": "os"},
        {"dtype": "float32"},
        {"dtype": "nn", "xielu": False},
        {"layer_norm": [8], "eps": 0.0, "elementwise_affine": True, "bias": True},
        {"layer_norm": [8], "eps": 1e-5, "elementwise_affine": 1, "bias": True},
        {"layer_norm": [8], "eps": 1e-5, "bias": True},
        {"layer_norm": [-8], "eps": 1e-5, "elementwise_affine": True, "bias": True},
        {"layer_norm": [True], "eps": 1e-5, "elementwise_affine": True, "bias": True},
        {"layer_norm": [2**31, 2**31], "eps": 1e-5, "elementwise_affine": True, "bias": True},
        {"module": "PReLU", "arguments": {"num_parameters": 2}},
    ],
    ids=str,
)
def test_descriptions_of_nothing_are_refused(description: object) -> None:
    with pytest.raises(ValueError, match=r"unknown activation|is none|of more elements|PReLU with"):
        build_nonlinearity(description)


def own(x: torch.Tensor) -> torch.Tensor:
    return x.relu() ** 2


class OwnMLP(nn.Module):
    def __init__(self, activation: object = own) -> None:
        super().__init__()
        self.fc1, self.activation_fn, self.fc2 = nn.Linear(6, 9), activation, nn.Linear(9, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(x)))


def test_what_cannot_be_saved_is_refused_before_and_a_name_helps(tmp_path: Path) -> None:
    model, x = nn.Sequential(OwnMLP()), torch.randn(4, 6)
    with pytest.raises(ValueError, match=r"0: activation <function own .* give yours a name with register_nonlin"):
        replace(model, is_mlp, CONFIG)
    assert isinstance(model[0], OwnMLP)
    register_nonlinearity("test own", own)
    replace(model, is_mlp, CONFIG)
    save(model, tmp_path)
    assert torch.equal(load(nn.Sequential(OwnMLP()), tmp_path).eval()(x), model.eval()(x))
    nonlinearities._REGISTERED.clear()
    with pytest.raises(ValueError, match="activation 'test own' is not registered; call register_nonlinearity first"):
        load(nn.Sequential(OwnMLP()), tmp_path)


def test_parameters_of_an_activation_are_saved(tmp_path: Path) -> None:
    model, x = nn.Sequential(OwnMLP(nn.PReLU())), torch.randn(4, 6)
    replace(model, is_mlp, CONFIG)
    nn.init.constant_(model[0].activation.weight, 0.7)
    save(model, tmp_path)
    loaded = load(nn.Sequential(OwnMLP(nn.PReLU())), tmp_path)
    assert torch.equal(loaded.eval()(x), model.eval()(x))
    with pytest.raises(ValueError, match=r"PReLU with {'num_parameters': 9}"):
        replace(nn.Sequential(OwnMLP(nn.PReLU(9))), is_mlp, CONFIG)


def test_names_that_are_refused() -> None:
    register_nonlinearity("test own", own)
    with pytest.raises(ValueError, match="an activation needs a name of its own, got 'test own'; taken are test own"):
        register_nonlinearity("test own", torch.relu)
    with pytest.raises(TypeError, match="register_nonlinearity takes a function of a tensor or a module, got <class"):
        register_nonlinearity("class", nn.ReLU)
    with pytest.raises(ValueError, match="PReLU has parameters, which all layers would share"):
        register_nonlinearity("prelu", nn.PReLU())
