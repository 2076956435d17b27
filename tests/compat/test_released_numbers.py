"""The released numbers: outputs, gradients and states of the released code, through compat and native copies."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import factorized_moe
from factorized_moe import compat, layers

pytestmark = pytest.mark.thorough

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-9}

V1 = {"cp": compat.CPMMoE, "tucker": compat.TuckerMMoE, "tt": compat.TTMMoE}
NEURIPS = {"cp": compat.CPMuMoE, "tr": compat.TRMuMoE}


@dataclass(frozen=True)
class Golden:
    """One file of tests/data/golden; its README says what each array is."""

    config: dict[str, Any]
    arrays: dict[str, Tensor]

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in self.arrays.items() if name.startswith(prefix)}

    def state(self) -> dict[str, Tensor]:
        """The state dict of `y_eval` and the gradients.

        The one in the file was taken after the call in train mode that gave `y_train`: its running statistics have
        moved by that batch, 0.9 of them to 0.1 of the batch's own. This takes them back.
        """
        state = self.group("state/")
        for mode, weight in enumerate(value for name, value in state.items() if name.startswith("projs.")):
            if f"bn.{mode}.num_batches_tracked" in state:
                logits = self.arrays["x"].flatten(0, -2) @ weight
                for name, batch in (("running_mean", logits.mean(0)), ("running_var", logits.var(0))):
                    state[f"bn.{mode}.{name}"] = (state[f"bn.{mode}.{name}"] - 0.1 * batch) / 0.9
                state[f"bn.{mode}.num_batches_tracked"] = torch.tensor(0)
        return state

    def layer(self) -> nn.Module:
        """The released layer with the released values: nothing but the import line has changed."""
        config = self.config
        sizes = {"input_dim": config["in_features"], "output_dim": config["out_features"]}
        options = {"expert_dims": config["expert_dims"], "use_bias": config["bias"]}
        options["hierarchy"] = len(config["expert_dims"])
        if config["source"] == "v1":
            rank = {"rank" if config["decomposition"] == "cp" else "ranks": config["ranks"]}
            layer: nn.Module = V1[config["decomposition"]](**sizes, **options, **rank)
        else:
            layer = compat.MuMoE(
                MuMoE_layer=NEURIPS[config["decomposition"]],
                ranks=config["ranks"],
                second_dim=config["second_dim"],
                normalization=config["normalization"],
                apply_ln=config["input_layer_norm"],
                **sizes,
                **options,
            )
        layer = layer.double()
        layer.load_state_dict(self.state(), strict=True)
        return layer


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    with np.load(GOLDEN / f"{request.param}.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    config = json.loads(str(arrays.pop("config_json")))
    return Golden(config, {name: torch.from_numpy(value) for name, value in arrays.items()})


def released(layer: nn.Module) -> nn.Module:
    return layer


def native(layer: Any) -> nn.Module:
    result: nn.Module = layer.to_native()
    return result


BOTH_WAYS = pytest.mark.parametrize("way", [released, native])


# -- the released numbers


def test_there_are_golden_cases_of_every_kind() -> None:
    kinds = {"_".join(case.split("_")[:2]) for case in CASES}
    assert kinds == {"v1_cp", "v1_tucker", "v1_tt", "neurips_cp", "neurips_tr"}


@BOTH_WAYS
def test_outputs_are_the_released_ones(golden: Golden, way: Any) -> None:
    module = way(golden.layer())
    x = golden.arrays["x"]
    assert module.training  # the copy is in the mode of its source
    torch.testing.assert_close(module.eval()(x), golden.arrays["y_eval"], **EXACT)
    torch.testing.assert_close(module.train()(x), golden.arrays["y_train"], **EXACT)


def test_state_after_a_call_in_train_mode_is_the_released_one(golden: Golden) -> None:
    layer = golden.layer()
    layer(golden.arrays["x"])
    expected = golden.group("state/")
    assert list(layer.state_dict()) == list(expected)
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(value, expected[name], **EXACT)


@BOTH_WAYS
def test_gradients_are_the_released_ones(golden: Golden, way: Any) -> None:
    module = way(golden.layer()).eval()
    x = golden.arrays["x"].clone().requires_grad_()
    (module(x) * golden.arrays["cotangent"]).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, golden.arrays["grad_x"], **EXACT)
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    # Gradients are laid out like parameters: a layer that holds them as values says where each belongs.
    holder = golden.layer()
    holder.load_state_dict(golden.group("grad/"), strict=False)
    expected = dict(way(holder).named_parameters())
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value.detach(), **EXACT)


def test_parameters_have_the_released_names_and_order(golden: Golden) -> None:
    names = [name for name in golden.group("state/") if not name.startswith("bn.")]
    assert set(names) == set(golden.group("grad/"))
    assert [name for name, _ in golden.layer().named_parameters()] == names  # an optimiser's state goes by order


def test_released_state_dict_loads_as_it_is(golden: Golden) -> None:
    layer = golden.layer()
    layer.load_state_dict(golden.group("state/"), strict=True)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, golden.arrays[f"state/{name}"]), name


def test_native_copy_shares_no_memory(golden: Golden) -> None:
    layer = golden.layer().eval()
    twin = layer.to_native()
    assert not twin.training
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.zero_()
    for name, value in golden.state().items():
        assert torch.equal(layer.state_dict()[name], value), name


def test_native_copy_trains_alike(golden: Golden) -> None:
    layer = golden.layer()
    twin = layer.to_native()
    x, target = golden.arrays["x"], golden.arrays["cotangent"]
    for module in (layer, twin):
        optimiser = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
        for _ in range(4):
            optimiser.zero_grad()
            (module(x) - target).square().sum().backward()
            optimiser.step()
    assert not torch.allclose(layer(x), golden.arrays["y_train"])
    twin(x)  # that call in train mode counts
    torch.testing.assert_close(twin(x), layer(x), **EXACT)
    torch.testing.assert_close(twin.eval()(x), layer.eval()(x), **EXACT)  # so the running statistics moved alike
    torch.testing.assert_close(layer.to_native()(x), layer(x), **EXACT)


def test_native_copy_is_of_the_native_classes(golden: Golden) -> None:
    twin = golden.layer().to_native()
    assert type(twin) is (layers.MuMoEBlock if golden.config["second_dim"] else layers.MuMoE)
    assert (twin.input_norm is not None) == golden.config["input_layer_norm"]
    weight = twin.experts if isinstance(twin, layers.MuMoE) else twin.first
    assert factorized_moe.decompositions.name_of(weight.decomposition) == golden.config["decomposition"]


def test_released_state_of_another_shape_is_refused(golden: Golden) -> None:
    state = golden.group("state/")
    name = next(iter(state))
    with pytest.raises(RuntimeError, match="size mismatch"):
        golden.layer().load_state_dict({**state, name: state[name][1:]})
    with pytest.raises(RuntimeError, match="Missing key"):
        golden.layer().load_state_dict({key: value for key, value in state.items() if key != name})
