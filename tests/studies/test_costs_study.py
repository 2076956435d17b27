"""The study of costs: counts are held to arithmetic written here, and its sentences follow the figures."""

import copy
import json
from itertools import product
from pathlib import Path
from typing import Any

import opt_einsum
import pytest
import torch

from studies.costs import counting, models, run, timing
from studies.costs.formulas import FORMULAS, value
from studies.costs.page import page
from studies.costs.verdicts import verdicts

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


NODES = {"cp": ("nr", "ir", "or"), "tr": ("anb", "bic", "coa")}
"""The nodes of a layer from left to right."""


def priced(operands: tuple[str, ...], result: str, sizes: dict[str, int], path: list[tuple[int, ...]]) -> int:
    """The FLOPs of a contraction in a given order, by opt_einsum's count: products alone count once there, too."""
    shapes = [tuple(sizes[label] for label in operand) for operand in operands]
    _, info = opt_einsum.contract_path(f"{','.join(operands)}->{result}", *shapes, shapes=True, optimize=path)
    return int(info.opt_cost)


def least(operands: tuple[str, ...], result: str, sizes: dict[str, int]) -> int:
    """The fewest FLOPs of all orders of three operands."""
    return min(priced(operands, result, sizes, [pair, (0, 1)]) for pair in ((0, 1), (0, 2), (1, 2)))


def test_all_columns_of_the_orders_of_contraction_count_by_one_rule() -> None:
    for row in counting.contraction(512, 768, 512):
        sizes = {"n": 512, "i": 769, "o": 768, "r": 512, "a": 4, "b": 4, "c": 512}
        nodes = NODES[row["form"]]
        applied = least(("nio", "n", "i"), "o", sizes)
        assert row["dense_first"] == priced(nodes, "nio", sizes, [(0, 1), (0, 1)]) + applied
        assert row["best"] == least(nodes, "nio", sizes) + applied
        assert row["fast"] == row["formula"]
        assert row["fast"] < row["best"] <= row["dense_first"]
    cp, ring = counting.contraction(512, 768, 512)
    assert cp["fast"] == 2 * 512 * (512 + 769 + 768) + 512 + 2 * 768 * 512 == 2_885_120
    assert ring["fast"] == 2 * (16 * 512 + 4 * 769 * 512 + 16 * 512 + 4 * 512 * 768 + 768 * 512) == 7_114_752


def test_a_dense_tensor_built_step_by_step_takes_the_flops_of_the_formula() -> None:
    """Every multiplication and addition of a small layer is counted where it happens: sums of k terms add k times."""
    n, i, o, r = 2, 3, 5, 7
    flops = 0
    for _ in product(range(n), range(i), range(r)):
        flops += 1  # experts with inputs: a product alone
    for _ in product(range(n), range(i), range(o), range(r)):
        flops += 2
    for _ in product(range(n), range(i)):
        flops += 1  # coefficients with inputs
    for _ in product(range(n), range(i), range(o)):
        flops += 2
    cp = FORMULAS["cp"]
    assert value(cp.built, cp.sizes(n, i, o, (r,))) == flops
    # step by step: 2 experts, 3 inputs, 5 outputs, bonds 7, 11, 13
    ring = FORMULAS["tr"]
    built = value(ring.built, ring.sizes(2, 3, 5, (7, 11, 13, 7)))
    assert built == 2 * 7 * 11 * 13 * 2 * 3 + 2 * 7 * 13 * 2 * 3 * 5 + 2 * 3 + 2 * 2 * 3 * 5


def test_printed_formulas_give_the_printed_numbers() -> None:
    """Read from the page: each formula's text, with the sizes in the place of names, comes to the cell after it."""
    lines = page(json.loads(STORED.read_text(encoding="utf-8"))).splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("| layer | rank |"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[start + 2 : start + 8]]
    names = {"CP": ["R"], "Tucker": ["Rₙ", "Rᵢ", "Rₒ"], "tensor train": ["R₁", "R₂", "R₃", "R₄"]}
    names["tensor ring"] = names["tensor train"]
    for layer, rank, parameters, number, _, flops, operations, *_ in rows:
        entries = [int(entry) for entry in rank.strip("()").split(",") if entry]
        sizes = {"N": 128, "I": 769, "O": 1000, "K": 2}
        sizes |= dict(zip(names.get(layer.partition(",")[0], []), entries, strict=True))
        for text, printed in ((parameters, number), (flops, operations)):
            found = 0
            for term in text.split("+"):
                size = 1
                for factor in term.split():
                    size *= sizes.get(factor) or int(factor)
                found += size
            assert f"{found:,}" == printed, layer


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


@pytest.fixture
def stored() -> dict[str, Any]:
    return json.loads(STORED.read_text(encoding="utf-8"))


def test_sentences_follow_the_figures(stored: dict[str, Any]) -> None:
    text = page(stored)
    assert "to the last digit, for dense MoE, CP, Tucker, tensor train, tensor ring." in text
    assert "the ring's is the higher at every number" in text
    assert ": the bound in 12 of 12." in text
    changed = copy.deepcopy(stored)
    next(row for row in changed["forms"] if row["form"] == "tt")["flops"] += 1
    ring = [row for row in changed["heads"] if row["form"] == "tr" and row["rounding"] == "up"]
    ring[0]["max_rank"] = 1
    for row in ring:
        row["independent"] = row["experts"][0]
    text = page(changed)
    assert "they differ from hand-written formulas for tensor train." in text
    assert "the ring's is the higher at 32, 64, 128, 256, 512" in text
    assert "largest rank does not fall throughout from 16" in text
    assert "all of a ring's experts can be linearly independent" in text
    assert ": the bound in 11 of 12." in text


def test_costs_over_the_layer_s_are_named(stored: dict[str, Any]) -> None:
    lines = verdicts(stored)
    assert lines[1].startswith(
        "- **Parameters of heads, and of all blocks of a model together: reproduced.** By the released rule -1.35% to "
        "+1.39%"
    )
    flops = lines[2]
    assert flops.startswith(
        "- **FLOPs of heads and of each block: reproduced in part.** By the released rule -3.43% to +64.11%"
    )
    assert "over +2% in 2 of 20: Mixer S-16, N = 64, CP, block over patches +64%; " in flops
    assert "over +2% in none of 28. Both bound parameters, not FLOPs." in flops
    changed = copy.deepcopy(stored)
    changed["heads"][1]["flops"] = 2 * 768 * 1000 * 3 // 2
    assert "over +2% in 1 of 28: head of 16 experts, CP +50%. Both" in verdicts(changed)[2]
    for row in changed["models"]:
        if row["form"] == "mlp":
            row["flops"] = [1 for _ in row["flops"]]
    for row in changed["heads"]:
        row["flops"] = 10**9
    assert verdicts(changed)[2].startswith("- **FLOPs of heads and of each block: not reproduced.**")


def test_both_numbers_of_inputs_get_a_verdict_of_time_and_of_memory(stored: dict[str, Any]) -> None:
    for row in stored["latency"]:
        row["ratio"], row["bytes"] = {
            ("tensor ring", 1): ([1.1, 2.0, 3.0], 101),
            ("CP", 1): ([0.5, 0.6, 0.9], 101),
            ("tensor ring", 256): ([0.9, 1.0, 1.2], 113),
            ("CP", 256): ([1.0, 1.5, 2.0], 100),
        }.get((row["layer"], row["inputs"]), ([1.0, 1.0, 1.0], 100))
    one, many, memory_of_one, memory_of_many = verdicts(stored)[3:7]
    assert "**Time, one input**" in one
    assert "tensor ring 2.00 [1.10, 3.00], slower: **not reproduced**; CP 0.60 [0.50, 0.90], faster: **rep" in one
    assert "128 experts, 768 to 1,000 features" in one
    assert "**Time, 256 inputs**" in many
    assert many.count("undecided: the middle half of rounds contains 1") == 2
    assert memory_of_one.startswith("- **Memory, one input: reproduced.** Beside the linear layer's: tensor ring +1.0%")
    assert memory_of_many.startswith("- **Memory, 256 inputs: reproduced in part.**")
    assert "tensor ring +13.0%; CP +0.0%" in memory_of_many


def test_stored_counts_are_those_of_the_library(stored: dict[str, Any], whole_models: list[dict[str, Any]]) -> None:
    fresh = {
        "models": whole_models,
        "forms": counting.forms(run.FORMS_EXPERTS),
        "contraction": counting.contraction(*run.CONTRACTION),
        "at_one_rank": counting.at_one_rank(models.EXPERTS),
    }
    assert json.loads(json.dumps(fresh)) == {name: stored[name] for name in fresh}


def test_counts_are_made_anew_beside_stored_times(tmp_path: Path, stored: dict[str, Any]) -> None:
    wrong = stored | {"contraction": [], "seconds": 60.0}
    (tmp_path / "costs.json").write_text(json.dumps(wrong), encoding="utf-8")
    run.main(["--counts", "--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "costs.json").read_text(encoding="utf-8"))
    assert found["contraction"] == stored["contraction"]
    assert (found["latency"], found["seconds"]) == (stored["latency"], 60.0)


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
