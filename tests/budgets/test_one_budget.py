"""One budget, one meaning: a layer, a config, the command and the demo give the same rank, which keeps to it."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from factorized_moe import Budget, FactorizedExpertTensor, GatedMuMoEBlock, MuMoE, MuMoEBlock
from factorized_moe.budgets import compare_at_budget, rank_for_budget
from factorized_moe.cli import main
from factorized_moe.decompositions import get_decomposition
from factorized_moe.decompositions.registry import registered_decompositions
from factorized_moe.demo.classifier import FEATURES, fit_head
from factorized_moe.surgery import MuMoEConfig
from factorized_moe.surgery import replace as replace_layers

PARAMETERS = 9000
CLASSES = 12
NAMES = sorted(set(registered_decompositions()) - {"dense", "kronecker"})
"""A dense tensor has one rank; factors of Kronecker's are beyond use before this budget is."""


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "gate_rank"), [*((name, None) for name in NAMES), ("cp", 2)])
def test_all_ways_give_one_rank(name: str, gate_rank: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    layer = MuMoE(FEATURES, CLASSES, [4, 3], name, Budget(parameters=PARAMETERS), gate_rank=gate_rank)
    rank = layer.experts.rank
    assert count(layer) <= PARAMETERS
    budget = {"parameters": PARAMETERS, "gate_rank": gate_rank}
    assert rank_for_budget((4, 3), FEATURES, CLASSES, name, **budget) == rank
    (row,) = compare_at_budget((4, 3), FEATURES, CLASSES, decompositions=[name], **budget)
    assert (row.rank, row.parameters) == (rank, count(layer))

    model = nn.Sequential(nn.Linear(FEATURES, CLASSES))
    config = MuMoEConfig((4, 3), name, budget=PARAMETERS, pretrained=False, gate_rank=gate_rank)
    replace_layers(model, ["0"], config)
    assert isinstance(model[0], MuMoE)
    assert model[0].experts.rank == rank

    sizes = ["--expert-dims", "4x3", "--in-features", str(FEATURES), "--out-features", str(CLASSES)]
    sizes += ["--gate-rank", str(gate_rank)] if gate_rank is not None else []
    main(["params", *sizes, "--decomposition", name, "--budget", str(PARAMETERS), "--bias", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["rank"] == (list(rank) if isinstance(rank, tuple) else rank)
    assert found["weight_parameters"] + found["gate_parameters"] == count(layer)

    if gate_rank is None:
        assert fit_head(CLASSES, (4, 3), name, None, PARAMETERS).rank == rank


@pytest.mark.parametrize("name", NAMES)
def test_one_step_more_exceeds_it(name: str) -> None:
    budget = Budget(parameters=PARAMETERS, choice="uniform")
    rank = MuMoE(FEATURES, CLASSES, [4, 3], name, budget).experts.rank
    more = get_decomposition(name).check_rank(_largest(rank) + 1, (4, 3, FEATURES + 1, CLASSES))
    assert count(MuMoE(FEATURES, CLASSES, [4, 3], name, more)) > PARAMETERS


def _largest(rank: Any) -> int:
    return rank if isinstance(rank, int) else max(rank)


KINDS: dict[str, Any] = {
    "block": lambda rank, **options: MuMoEBlock(16, 40, 12, [4], "tr", rank, **options),
    "gated block": lambda rank, **options: GatedMuMoEBlock(16, 40, 12, [4], "cp", rank, **options),
    "input norm": lambda rank, **options: MuMoE(16, 12, [4, 2], "tucker", rank, input_norm=True, **options),
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_tensors_of_a_layer_and_its_gate_count(kind: str) -> None:
    for gate_counts in (True, False):
        made = KINDS[kind](Budget(parameters=6000, choice="uniform", count_gate=gate_counts))
        first = next(iter(made.expert_tensors.values()))
        more = KINDS[kind](first.decomposition.check_rank(_largest(first.rank) + 1, first.network.shape))
        beside = 0 if gate_counts else count(made.gate)
        assert count(made) - beside <= 6000 < count(more) - beside


def test_a_gate_of_one_s_own_counts_as_it_is() -> None:
    gate = nn.Sequential(nn.Linear(16, 100), nn.Linear(100, 4))
    layer = MuMoE(16, 12, [4], rank=Budget(parameters=count(gate) + 500), gate=gate)
    assert count(layer) <= count(gate) + 500 < count(MuMoE(16, 12, [4], rank=layer.experts.rank + 1, gate=gate))


@pytest.mark.parametrize("kind", [MuMoEBlock, GatedMuMoEBlock])
def test_a_gate_of_low_rank_counts_as_it_is(kind: type[MuMoEBlock]) -> None:
    made = [kind(64, 96, 32, [40], "cp", Budget(parameters=20_000), gate_rank=rank) for rank in (None, 4)]
    full, low = (layer.first.rank for layer in made)
    assert full < low
    assert count(made[1]) <= 20_000
    assert Budget(flops=30_000).rank((40,), [(64, 32)], gate_rank=4) > Budget(flops=30_000).rank((40,), [(64, 32)])


def test_a_gate_of_no_experts_counts_for_nothing() -> None:
    ranks = [MuMoE(16, 12, (), "cp", Budget(parameters=500), gate_rank=rank).experts.rank for rank in (None, 4)]
    assert ranks == [500 // (16 + 1 + 12)] * 2


def test_a_tensor_counts_itself_alone() -> None:
    budget = Budget(parameters=1000)
    rank = FactorizedExpertTensor((8,), 16, 32, "cp", budget).rank
    assert rank == 1000 // (8 + 16 + 32)
    dense = torch.randn(8, 16, 32)
    assert FactorizedExpertTensor.from_dense(dense, "cp", budget).rank == rank


def test_bytes_flops_and_modules_are_budgets_of_a_layer() -> None:
    linear = nn.Linear(32, 32)
    like = MuMoE(32, 32, [4], rank=Budget(like=linear))
    assert count(like) <= count(linear)
    half = MuMoE(32, 32, [4], rank=Budget(bytes=2 * count(linear), dtype=torch.float16))
    assert half.experts.rank == like.experts.rank
    flops = MuMoE(32, 32, [4], rank=Budget(flops=2000))
    assert flops.experts.plan(batch_size=64).flops / 64 + 2 * 32 * 4 <= 2000


def test_budgets_are_given_once() -> None:
    budget = Budget(parameters=4000)
    with pytest.raises(TypeError, match="give it as rank, and no second rank"):
        MuMoEBlock(16, 40, 12, [4], "cp", 3, second_rank=budget)
    with pytest.raises(ValueError, match="a budget gives all ranks of a layer"):
        MuMoEBlock(16, 40, 12, [4], "cp", budget, second_rank=3)
    with pytest.raises(ValueError, match="a positive int"):
        replace(budget, parameters=0)
