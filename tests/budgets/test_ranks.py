"""Ranks for budgets: the paper's numbers, never over budget, and the best shares among a rank's entries."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from factorized_moe import MuMoE, MuMoEBlock
from factorized_moe.budgets import BudgetError, LayerCosts, rank_for_budget
from factorized_moe.decompositions import get_decomposition
from factorized_moe.decompositions.registry import registered_decompositions

# Expert count, CP rank and parameters, ring rank and parameters: the uMoE paper's heads of 769,000 parameters.
PAPER_HEADS = [
    (16, 424, 769_128, 107, 769_676),
    (32, 414, 770_190, 106, 775_144),
    (64, 393, 769_521, 102, 771_928),
    (128, 354, 769_842, 95, 772_572),
    (256, 283, 769_683, 81, 773_860),
    (512, 165, 769_581, 52, 769_360),
]
RING = (4, 4, None, 4)


def chain(features: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple(itertools.pairwise(features))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("experts", "cp", "cp_parameters", "ring", "ring_parameters"), PAPER_HEADS)
def test_paper_heads(experts: int, cp: int, cp_parameters: int, ring: int, ring_parameters: int) -> None:
    for name, fixed, rank, parameters in [
        ("cp", None, cp, cp_parameters),
        ("tr", RING, (4, 4, ring, 4), ring_parameters),
    ]:
        costs = LayerCosts((experts,), ((768, 1000),), get_decomposition(name))
        paper = rank_for_budget((experts,), 768, 1000, name, parameters=769_000, fixed=fixed, rounding="up")
        assert (paper, costs.parameters(paper)) == (rank, parameters)
        ours = rank_for_budget((experts,), 768, 1000, name, parameters=769_000, fixed=fixed)
        assert costs.parameters(ours) <= 769_000


@pytest.mark.parametrize(
    ("name", "rank", "features", "experts", "blocks", "parameters"),
    [
        ("cp", int(0.725 * 768), (768, 3072, 768), 256, 12, 57_029_664),
        ("tr", (4, 4, int(0.195 * 768), 4), (768, 3072, 768), 256, 12, 57_399_264),
    ],
)
def test_paper_gpt2_blocks(
    name: str, rank: int | tuple[int, ...], features: tuple[int, ...], experts: int, blocks: int, parameters: int
) -> None:
    assert blocks * LayerCosts((experts,), chain(features), get_decomposition(name)).parameters(rank) == parameters


@pytest.mark.parametrize(
    ("name", "fraction", "ring", "parameters"), [("cp", 0.75, (), 17_706_480), ("tr", 0.19, (4, 4), 17_366_656)]
)
def test_paper_mixer_blocks(name: str, fraction: float, ring: tuple[int, ...], parameters: int) -> None:
    total = 0
    for features in [(196, 256, 196), (512, 2048, 512)]:
        size = int(fraction * features[0])
        rank = (*ring, size, 4) if ring else size
        total += 8 * LayerCosts((64,), chain(features), get_decomposition(name)).parameters(rank)
    assert total == parameters


@pytest.mark.parametrize("name", registered_decompositions())
def test_costs_are_those_of_real_layers(name: str) -> None:
    source = get_decomposition(name)
    rank = source.resolve_rank(2, (3, 2, 7, 5))
    layer = MuMoE(6, 5, (3, 2), name, rank, input_norm=True)
    costs = LayerCosts((3, 2), ((6, 5),), source, count_input_norm=True)
    assert costs.parameters(rank) == count(layer)
    assert costs.expert_rank_bound(rank) == layer.experts.expert_rank_bound
    flops = layer.experts.plan(batch_size=64).flops
    assert costs.flops(rank) == 2 * 6 * 5 + -(-flops // 64)
    assert LayerCosts((3, 2), ((6, 5),), source, count_gate=False).parameters(rank) == layer.experts.num_parameters
    without = MuMoE(6, 5, (3, 2), name, rank, bias=False)
    assert LayerCosts((3, 2), ((6, 5),), source, count_bias=False).parameters(rank) == count(without)


@pytest.mark.parametrize("name", registered_decompositions())
def test_a_block_has_at_most_the_parameters_of_what_it_replaces(name: str) -> None:
    mlp = nn.Sequential(nn.Linear(24, 96), nn.GELU(), nn.Linear(96, 24))
    try:
        rank = rank_for_budget((4,), 24, 24, name, like=mlp, hidden_features=96)
    except BudgetError as error:
        assert error.smallest > count(mlp)  # noqa: PT017  # too small is an answer too
        return
    block = MuMoEBlock(24, 96, 24, (4,), name, rank)
    assert 0.8 * count(mlp) < count(block) <= count(mlp)


@pytest.mark.thorough
@settings(max_examples=40)
@given(
    name=st.sampled_from(registered_decompositions()),
    experts=st.lists(st.integers(1, 5), max_size=3),
    features=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    unit=st.sampled_from(["parameters", "flops", "bytes"]),
    budget=st.integers(1, 3000),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    choice=st.sampled_from(["expert_rank", "uniform"]),
)
def test_never_over_budget(name, experts, features, unit, budget, flags, choice) -> None:
    bias, gate, biases, norm = flags
    hidden = features[1] if len(features) == 3 else None
    costs = LayerCosts(tuple(experts), chain(features), get_decomposition(name), bias, gate, biases, norm)
    measure = {"parameters": costs.parameters, "flops": costs.flops, "bytes": lambda rank: 8 * costs.parameters(rank)}
    options = {"bias": bias, "count_gate": gate, "count_bias": biases, "input_norm": norm, "dtype": torch.float64}
    try:
        rank = rank_for_budget(
            experts,
            features[0],
            features[-1],
            name,
            hidden_features=hidden,
            choice=choice,
            **{unit: budget},
            **options,
        )
    except BudgetError as error:
        smallest = error.smallest * (8 if unit == "bytes" else 1)
        assert smallest > budget  # too small is an answer too
        return
    assert measure[unit](rank) <= budget
    assert costs.decomposition.check_rank(rank, costs.shapes()[0]) == rank


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "entries", "largest"), [("tucker", 3, 11), ("tt", 2, 11), ("tr", 3, 11), ("hierarchical_tucker", 4, 6)]
)
@pytest.mark.parametrize("budget", [260, 420])
def test_the_best_share_is_found(name: str, entries: int, largest: int, budget: int) -> None:
    """Beside all ranks of small entries: none has a larger bound with as many independent experts."""
    costs = LayerCosts((6,), ((11, 9),), get_decomposition(name), count_gate=False)
    best = 0
    for values in itertools.product(range(1, largest + 1), repeat=entries):
        rank = {"tt": (1, *values, 1), "tr": (*values, values[0])}.get(name, values)
        if costs.parameters(rank) <= budget and costs.independent_experts(rank) >= 3:
            best = max(best, costs.expert_rank_bound(rank))
    found = rank_for_budget((6,), 11, 9, name, parameters=budget, count_gate=False)
    assert costs.independent_experts(found) >= 3
    assert costs.expert_rank_bound(found) >= best
    uniform = rank_for_budget((6,), 11, 9, name, parameters=budget, count_gate=False, choice="uniform")
    assert costs.expert_rank_bound(uniform) <= costs.expert_rank_bound(found)


@pytest.mark.parametrize("name", ["cp", "tucker", "tr", "kronecker"])
def test_the_uniform_choice_is_the_largest_int(name: str) -> None:
    shape = (8, 16, 12)
    fraction = 900.5 / (8 * 16 * 12)
    rank = rank_for_budget((8,), 15, 12, name, parameters=900, count_gate=False, choice="uniform")
    assert rank == get_decomposition(name).resolve_rank(fraction, shape)


def test_independent_experts_are_kept() -> None:
    ranks = [rank_for_budget((16,), 32, 32, "tt", parameters=2000, independent_experts=n) for n in (1, 4, 16)]
    assert [rank[1] for rank in ranks] == [1, 4, 16]
    assert ranks[0][2] > ranks[1][2] > ranks[2][2]


def test_like_counts_biases_as_asked() -> None:
    linear = nn.Linear(32, 32)
    whole = rank_for_budget((4,), 32, 32, like=linear)
    assert whole == rank_for_budget((4,), 32, 32, parameters=32 * 33)
    weights = rank_for_budget((4,), 32, 32, like=linear, count_bias=False)
    assert weights == rank_for_budget((4,), 32, 32, parameters=32 * 32, count_bias=False)


@pytest.mark.parametrize("module", [nn.MultiheadAttention(16, 2), nn.LSTM(16, 16)], ids=["attention", "recurrent"])
def test_biases_are_known_by_torch_s_names(module: nn.Module) -> None:
    weights = sum(p.numel() for p in module.parameters() if p.ndim == 2)
    assert rank_for_budget((4,), 8, 6, like=module, count_bias=False) == rank_for_budget(
        (4,), 8, 6, parameters=weights, count_bias=False
    )


def test_too_few_bytes_are_named_in_bytes() -> None:
    with pytest.raises(BudgetError, match=r"a budget of 185 bytes .*: the smallest possible is 186$") as caught:
        rank_for_budget((4,), 16, 8, bytes=185, dtype=torch.float16)
    assert rank_for_budget((4,), 16, 8, bytes=caught.value.smallest, dtype=torch.float16) == 1


ERRORS = {
    "bias in words": ({"parameters": 999, "bias": "no"}, TypeError, "bias must be True or False, got 'no'"),
    "gate in words": ({"parameters": 999, "count_gate": "no"}, TypeError, "count_gate must be True or False, got 'no'"),
    "biases in words": ({"parameters": 999, "count_bias": 0}, TypeError, "count_bias must be True or False, got 0"),
    "norm in words": ({"parameters": 999, "input_norm": "no"}, TypeError, "input_norm must be True or False, got 'no'"),
    "lazy": ({"like": nn.LazyLinear(4)}, ValueError, "like has parameters without a size yet; call the module once"),
    "experts in words": (
        {"parameters": 999, "independent_experts": "all"},
        TypeError,
        "independent_experts must be an int, got 'all'",
    ),
    "fixed number": (
        {"parameters": 999, "fixed": 4, "decomposition": "tr"},
        ValueError,
        "fixed has one positive int or None for each of the 4 entries of a rank, got 4$",
    ),
    "none": ({}, TypeError, "give one budget: parameters, flops, bytes or like; got none"),
    "two": ({"parameters": 9, "flops": 9}, TypeError, r"give one budget: .* got \['parameters', 'flops'\]"),
    "zero": ({"parameters": 0}, ValueError, "a budget of parameters is a positive int, got 0"),
    "a float": ({"flops": 1e6}, ValueError, "a budget of flops is a positive int, got 1000000.0"),
    "nothing to match": ({"like": nn.ReLU()}, ValueError, "^like is a module without parameters: ReLU; give what is"),
    "biases alone": (
        {"like": nn.ParameterDict({"bias": torch.zeros(3)}), "count_bias": False},
        ValueError,
        "^like is a module without parameters but biases, which count_bias=False leaves out: ",
    ),
    "no module": ({"like": 7}, TypeError, "like is a module, for instance the nn.Linear to be replaced, got int"),
    "too small": (
        {"parameters": 60},
        ValueError,
        r"a budget of 60 parameters is too small for 'cp' of shapes \(\(4, 17, 8\),\): the smallest possible is 93",
    ),
    "choice": ({"parameters": 999, "choice": "best"}, ValueError, "choice is one of .*, got 'best'"),
    "rounding": ({"parameters": 999, "rounding": "near"}, ValueError, "rounding is one of .*, got 'near'"),
    "rounding up several": (
        {"parameters": 999, "rounding": "up", "decomposition": "tucker"},
        ValueError,
        "rounding='up' is for a rank with one entry to be found; give fixed or choice='uniform'",
    ),
    "fixed int": ({"parameters": 999, "fixed": (4,)}, ValueError, "fixed is for a rank of several entries"),
    "fixed length": (
        {"parameters": 999, "fixed": (4,), "decomposition": "tr"},
        ValueError,
        r"fixed has one positive int or None for each of the 4 entries of a rank, got \(4,\)",
    ),
    "fixed all": (
        {"parameters": 999, "fixed": (4, 4, 4), "decomposition": "tucker"},
        ValueError,
        "fixed leaves no entry to be found",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    options, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        rank_for_budget((4,), 16, 8, **options)
