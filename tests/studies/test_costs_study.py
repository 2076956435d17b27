"""The study of costs: counts are held to arithmetic written here, and its sentences follow the figures."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from studies.costs import counting, models, run, timing
from studies.costs.formulas import MATERIALISED
from studies.costs.page import page

STORED = Path(__file__).parents[2] / "docs" / "studies" / "costs.json"


@pytest.fixture(scope="module")
def whole_models() -> list[dict[str, Any]]:
    return counting.models()


def test_whole_models_have_the_parameters_of_the_released_scripts(whole_models: list[dict[str, Any]]) -> None:
    by_script = [
        (row["model_name"], row["form"], row["mlps"], row["model"])
        for row in whole_models
        if row["form"] == "mlp" or row.get("rule") == "script"
    ]
    assert by_script == [
        ("Mixer S-16, N = 64", "mlp", 17_604_128, 18_528_264),
        ("Mixer S-16, N = 64", "cp", 17_706_480, 18_630_616),
        ("Mixer S-16, N = 64", "tr", 17_366_656, 18_290_792),
        ("GPT-2, N = 256", "mlp", 56_623_104, 124_373_760),
        ("GPT-2, N = 256", "cp", 57_029_664, 124_789_536),
        ("GPT-2, N = 256", "tr", 57_399_264, 125_159_136),
        ("GPT-2, N = 64", "mlp", 56_623_104, 124_373_760),
        ("GPT-2, N = 64", "cp", 56_728_104, 124_487_976),
        ("GPT-2, N = 64", "tr", 57_031_008, 124_790_880),
    ]


def test_the_library_s_ranks_are_never_over_the_mlps(whole_models: list[dict[str, Any]]) -> None:
    dense = {row["model_name"]: row["model"] for row in whole_models if row["form"] == "mlp"}
    ours = [row for row in whole_models if row.get("rule") == "ours"]
    assert len(ours) == 12
    assert all(0.99 * dense[row["model_name"]] < row["model"] <= dense[row["model_name"]] for row in ours)


def test_dense_experts_take_n_times_the_weights(whole_models: list[dict[str, Any]]) -> None:
    mixer, gpt, _ = [row["mlps"] for row in whole_models if row["form"] == "dense"]
    biases_and_gates = 8 * 64 * (256 + 196 + 2048 + 512) + 8 * 64 * (196 + 512)
    assert mixer - biases_and_gates == 64 * 8 * 2 * (196 * 256 + 512 * 2048) == 1_125_122_048
    assert gpt - 12 * 256 * (3072 + 768 + 768) == 256 * 12 * 2 * 768 * 3072 == 14_495_514_624


@pytest.mark.parametrize("n", [16, 128, 512])
def test_flops_are_those_of_arithmetic(n: int) -> None:
    found = {row["form"]: row for row in counting.forms(n)}
    assert found["dense"]["flops"] == n * 769 + 2 * n * 769 * 1000
    r = found["cp"]["rank"]
    assert found["cp"]["flops"] == 2 * 769 * r + 2 * n * r + r + 2 * r * 1000
    rn, ri, ro = found["tucker"]["rank"]
    assert found["tucker"]["flops"] == 2 * 769 * ri + 2 * n * rn + rn * ri + 2 * rn * ri * ro + 2 * ro * 1000
    _, a, b, _ = found["tt"]["rank"]
    assert found["tt"]["flops"] == 2 * 769 * a * b + 2 * n * a + 2 * a * b + 2 * b * 1000
    *_, b, _ = found["tr"]["rank"]
    assert found["tr"]["flops"] == 2 * 769 * 4 * b + 2 * n * 16 + 2 * 4 * 4 * b + 2 * 4 * b * 1000
    for name, row in found.items():
        assert row["parameters"] == row["formula"]["parameters"], name
        assert row["max_rank"] == row["formula"]["max_rank"], name
        assert row["flops"] in (None, row["formula"]["flops"]), name
    assert found["sparse"]["formula"]["flops"] == 2 * 769 + 2 * 2 * 769 * 1000


def test_ranks_of_the_head_are_those_of_the_released_rule() -> None:
    rows = [row for row in counting.heads([(n,) for n in models.EXPERTS], measured=False) if row["rounding"] == "up"]
    cp = [(row["rank"], row["parameters"]) for row in rows if row["form"] == "cp"]
    sizes = [768 * n for n in models.EXPERTS]
    assert [rank for rank, _ in cp] == [
        -((gate - 769_000) // (768 + 1 + 1000 + n)) for n, gate in zip(models.EXPERTS, sizes, strict=True)
    ]
    assert cp == [(424, 769_128), (414, 770_190), (393, 769_521), (354, 769_842), (283, 769_683), (165, 769_581)]
    ring = [(row["rank"][2], row["parameters"], row["max_rank"]) for row in rows if row["form"] == "tr"]
    assert ring == [
        (107, 769_676, 428),
        (106, 775_144, 424),
        (102, 771_928, 408),
        (95, 772_572, 380),
        (81, 773_860, 324),
        (52, 769_360, 208),
    ]
    assert [row["independent"] for row in rows if row["form"] == "tr"] == [16] * 6


def test_an_expert_with_random_values_has_the_largest_rank() -> None:
    assert counting.measured_rank((8,), "cp", 21) == 21
    assert counting.measured_rank((4, 2), "tr", (2, 3, 4, 5, 2)) == 10  # 5 times the smaller bond beside it


def test_the_orders_of_contraction_are_those_of_arithmetic() -> None:
    cp, ring = counting.contraction(512, 768, 512)
    assert cp["materialised"] == 512 * 769 * 768 * 512 + 512 * 769 * 768 == 155_122_532_352
    assert cp["fast"] == 512 * (512 + 769 + 768) + 768 * 512 == 1_442_304
    assert ring["materialised"] == 622_808_399_872
    assert ring["fast"] == 16 * 512 + 4 * 769 * 512 + 16 * 512 + 4 * 512 * 768 + 768 * 512 == 3_557_376
    for row in (cp, ring):
        assert row["fast_flops"] == row["formula_flops"]
    # left to right, step by step: 2 experts, 3 inputs, 5 outputs, bonds 7, 11, 13
    assert MATERIALISED["tr"](2, 3, 5, (7, 11, 13, 7)) == 7 * 11 * 13 * 2 * 3 + 7 * 13 * 2 * 3 * 5 + 2 * 3 * 5


def test_the_sparse_mixture_is_that_of_its_definition() -> None:
    torch.manual_seed(0)
    layer, x = timing.SparseMoE(timing.TINY), torch.randn(5, timing.TINY.inputs)
    for row, y in zip(x, layer(x), strict=True):
        values, chosen = layer.gate(row).topk(2)
        parts = torch.stack([layer.weight[k] @ row + layer.bias[k] for k in chosen])
        torch.testing.assert_close(y, values.softmax(dim=0) @ parts)


def test_factorised_contenders_have_no_more_parameters_than_the_linear_layer() -> None:
    with torch.device("meta"):
        layers = {name: make() for name, make in timing.contenders(timing.SIZES).items()}
    sizes = {name: sum(parameter.numel() for parameter in layer.parameters()) for name, layer in layers.items()}
    assert sizes["linear"] == 769_000
    assert sizes["CP"] <= 769_000
    assert sizes["tensor ring"] <= 769_000
    assert sizes["dense MoE"] == sizes["sparse MoE, 2 chosen"] == 128 * (768 * 1000 + 1000) + 128 * 768


def test_sentences_follow_the_figures() -> None:
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    text = page(stored)
    assert "to the last digit: dense MoE, CP, Tucker, tensor train, tensor ring." in text
    assert "the ring's is the higher at every number" in text
    changed = copy.deepcopy(stored)
    next(row for row in changed["forms"] if row["form"] == "tt")["flops"] += 1
    ring = [row for row in changed["heads"] if row["form"] == "tr" and row["rounding"] == "up"]
    ring[0]["max_rank"] = 1
    for row in ring:
        row["independent"] = row["experts"][0]
    text = page(changed)
    assert "counts differ from the formulas for tensor train." in text
    assert "the ring's is the higher at 32, 64, 128, 256, 512" in text
    assert "ranks do not fall throughout" in text
    assert "all of a ring's experts can be linearly independent" in text


def test_the_page_is_that_of_the_figures() -> None:
    assert STORED.with_suffix(".md").read_text(encoding="utf-8") == page(json.loads(STORED.read_text(encoding="utf-8")))


@pytest.mark.thorough
def test_it_runs_to_its_page(tmp_path: Path) -> None:
    run.main(["--quick", "--out", str(tmp_path)])
    text = (tmp_path / "costs.md").read_text(encoding="utf-8")
    assert "| 256 | CP | 10 | " in text
    assert (tmp_path / "costs.svg").read_bytes().startswith(b"<?xml")
    run.main(["--page", "--out", str(tmp_path)])
    assert (tmp_path / "costs.md").read_text(encoding="utf-8") == text
