"""What earlier versions saved loads equal: the folders in `tests/data/saved`, written before the defaults changed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from factorized_moe import MuMoE
from factorized_moe.surgery import MuMoEConfig, from_pretrained, load, replace, save, save_pretrained

SAVED = Path(__file__).parents[2] / "data" / "saved"
OUTPUTS = load_file(SAVED / "outputs.safetensors")
LAYERS = sorted(folder.name for folder in SAVED.iterdir() if folder.is_dir() and not folder.name.startswith("model-"))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_saved_earlier_give_what_they_gave(name: str) -> None:
    layer = from_pretrained(SAVED / name).eval()
    torch.testing.assert_close(layer(OUTPUTS["x"]), OUTPUTS[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["model-whole", "model-experts"])
def test_models_saved_earlier_give_what_they_gave(name: str) -> None:
    torch.manual_seed(1)  # the base model of the file with experts alone
    model = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 4))
    torch.testing.assert_close(load(model, SAVED / name).eval()(OUTPUTS["x"]), OUTPUTS[name], rtol=1e-5, atol=1e-6)


CONFIGS = {
    "cp": MuMoEConfig((3,), rank=2, gate_norm="layer", gate_temperature=1.0, init="paper"),
    "tr": MuMoEConfig(
        (3, 2),
        "tr",
        budget=300,
        gate="softmax",
        gate_norm="batch",
        gate_temperature=1.0,
        init="paper",
        noise=0.2,
        pretrained=False,
        seed=3,
    ),
    "fraction": MuMoEConfig((4,), "tucker", fraction=2.0, gate_norm="layer", gate_temperature=1.0, init="paper"),
}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_configs_saved_earlier_mean_what_they_meant(name: str) -> None:
    assert MuMoEConfig.from_json((SAVED / f"config-{name}.json").read_text(encoding="utf-8")) == CONFIGS[name]


def test_configs_before_the_temperature_had_none() -> None:
    second = '{"version": 2, "expert_dims": [3], "rank": 2}'
    assert MuMoEConfig.from_json(second) == MuMoEConfig((3,), rank=2, gate_temperature=1.0)
    assert MuMoEConfig.from_json(second.replace("2,", "3,", 1)) == MuMoEConfig((3,), rank=2)


@pytest.mark.parametrize("temperature", [1.0, 1.5, 2.0])
def test_a_temperature_is_saved(tmp_path: Path, temperature: float) -> None:
    layer = MuMoE(5, 4, [3], rank=2, gate_temperature=temperature)
    nn.init.normal_(layer.gate.projection.weight)
    save_pretrained(layer.eval(), tmp_path / "layer")
    again = from_pretrained(tmp_path / "layer").eval()
    assert again.gate.temperature == temperature
    torch.testing.assert_close(again(OUTPUTS["x"]), layer(OUTPUTS["x"]))


def test_a_gate_s_rank_is_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(5, 4))
    config = MuMoEConfig((3,), rank=2, gate_rank=2)
    assert MuMoEConfig.from_json(config.to_json()) == config
    replace(model, ["0"], config)
    assert model[0].gate.rank == 2
    nn.init.normal_(model[0].gate.projection.weight)
    save(model.eval(), tmp_path)
    again = load(nn.Sequential(nn.Linear(5, 4)), tmp_path).eval()
    torch.testing.assert_close(again(OUTPUTS["x"]), model(OUTPUTS["x"]))
