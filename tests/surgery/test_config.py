"""The config: checked when it is made, and the same after a trip through JSON."""

import json

import numpy as np
import pytest
from torch import nn

from factorized_moe.surgery import MuMoEConfig, replace


@pytest.mark.parametrize(
    "config",
    [
        MuMoEConfig((8,), rank=4),
        MuMoEConfig([8, 4], "tr", rank=[2, 2, 3, 3, 2], gate_norm=None, noise=0),
        MuMoEConfig((8,), "tucker", budget=5000, gate="softmax", pretrained=False, seed=7),
        MuMoEConfig((), "tt", fraction=0.5),
    ],
    ids=["rank", "ranks", "budget", "fraction"],
)
def test_json_round_trip(config: MuMoEConfig) -> None:
    again = MuMoEConfig.from_json(config.to_json())
    assert again == config
    assert hash(again) == hash(config)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rank": None}, ValueError, "give exactly one of rank, budget and fraction, got none"),
        ({"budget": 100}, ValueError, "got rank and budget"),
        ({"expert_dims": (0,)}, ValueError, "expert_dims"),
        ({"decomposition": "cpp"}, ValueError, "unknown decomposition 'cpp'"),
        ({"decomposition": object()}, TypeError, "decomposition of a config is a registered name"),
        ({"rank": None, "budget": 0}, ValueError, "a budget of parameters is a positive int"),
        ({"rank": None, "fraction": 0.0}, ValueError, "fraction is a number above 0"),
        ({"gate": "sigmoid"}, ValueError, "gate of a config is one of .*'entmax15'.*, got 'sigmoid'"),
        ({"gate_norm": "group"}, ValueError, "gate_norm is 'layer', 'batch' or None"),
        ({"noise": float("inf")}, ValueError, "noise is a finite number"),
        ({"pretrained": 1}, TypeError, "pretrained must be True or False"),
        ({"seed": 1.5}, TypeError, "seed is an int"),
        ({"seed": 2**70}, ValueError, "seed is an int from .* got 11805916207"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_errors(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MuMoEConfig(**{"expert_dims": (4,), "rank": 2, **changes})


def test_numpy_s_numbers_go_into_json() -> None:
    config = MuMoEConfig((np.int64(4),), fraction=np.float32(0.5), noise=np.float64(0.25), seed=np.int32(3))
    assert MuMoEConfig.from_json(config.to_json()) == config == MuMoEConfig((4,), fraction=0.5, noise=0.25, seed=3)
    for given, rank in ((np.int64(3), 3), ((1, np.int8(3), 2, 1), (1, 3, 2, 1))):
        config = MuMoEConfig((4,), "cp" if rank == 3 else "tt", rank=given)
        assert MuMoEConfig.from_json(config.to_json()) == config == MuMoEConfig((4,), config.decomposition, rank=rank)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the text is no JSON"),
        ("[1]", "a config is a JSON object, got list"),
        ("{}", "a config needs 'expert_dims'"),
        (json.dumps({"expert_dims": [4], "ranks": 3}), "unknown key 'ranks' in a config; did you mean 'rank'?"),
    ],
    ids=["damaged", "list", "empty", "key"],
)
def test_text_that_is_no_config(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        MuMoEConfig.from_json(text)


def make_model() -> nn.Sequential:
    return nn.Sequential(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)), nn.Linear(32, 10))


@pytest.mark.parametrize("decomposition", ["cp", "tt"])
@pytest.mark.parametrize(("target", "index"), [("0", 0), ("1", 1)], ids=["mlp", "linear"])
def test_budgets_are_kept_and_used(decomposition: str, target: str, index: int) -> None:
    model = make_model()
    dense = sum(p.numel() for p in model[index].parameters())
    config = MuMoEConfig((4,), decomposition, fraction=0.8)
    one = replace(model, target, config).replacements[0]
    after = sum(p.numel() for p in model[index].parameters())
    assert (one.parameters_before, one.parameters_after) == (dense, after)
    assert 0.6 * dense < after <= 0.8 * dense
    same = make_model()
    replace(same, target, MuMoEConfig((4,), decomposition, budget=int(0.8 * dense)))
    assert sum(p.numel() for p in same[index].parameters()) == after


def test_budget_that_the_gate_uses_up() -> None:
    with pytest.raises(
        ValueError, match=r"^1: a budget of 100 parameters is too small for .*: the smallest possible is 175"
    ):
        replace(make_model(), "1", MuMoEConfig((4,), budget=100))


def test_layers_that_start_at_random() -> None:
    first, second, other = make_model(), make_model(), make_model()
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        report = replace(model, "1", MuMoEConfig((4,), rank=3, pretrained=False, seed=seed))
        assert report.replacements[0].errors == ()
    weights = [model[1].experts.weight.input for model in (first, second, other)]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


def test_report_is_a_table() -> None:
    report = replace(make_model(), ["0", "1"], MuMoEConfig((4,), rank=3))
    lines = str(report).splitlines()
    assert lines[0].split() == ["path", "layer", "before", "after", "error"]
    assert [line.split()[0] for line in lines[1:]] == ["0", "1", "model"]
    assert lines[1].split()[2] == "4,192"
