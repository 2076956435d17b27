"""What every decomposition gets from the contract: ranks in all their forms, initial variance."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from factorized_moe import Decomposition, FactorizedExpertTensor, Node, TensorNetwork
from factorized_moe.budgets import Budget
from factorized_moe.budgets.ranks import rank_of_tensor
from factorized_moe.decompositions import available_decompositions, get_decomposition

SHAPE = (8, 4, 16, 32)


def parameters(name: str, rank: Any) -> int:
    network = get_decomposition(name).network(SHAPE[:2], SHAPE[2], SHAPE[3], rank)
    return sum(math.prod(shape) for shape in network.parameter_shapes.values())


@pytest.mark.parametrize("name", available_decompositions())
@pytest.mark.parametrize(
    ("asked", "most"),
    [("same", math.prod(SHAPE)), (1.0, math.prod(SHAPE)), (0.05, 819)],
    ids=str,
)
def test_a_budget_is_used_as_far_as_it_goes(name: str, asked: Any, most: int) -> None:
    decomposition = get_decomposition(name)
    if parameters(name, decomposition.check_rank(1, SHAPE)) > most:
        with pytest.raises(ValueError, match="is too small for"):
            decomposition.resolve_rank(asked, SHAPE)
        return
    rank = decomposition.resolve_rank(asked, SHAPE)
    assert parameters(name, rank) <= most
    largest = rank if isinstance(rank, int) else max(rank)
    more = decomposition.useful_rank(decomposition.check_rank(largest + 1, SHAPE), SHAPE)
    assert parameters(name, more) > most or more == rank  # or the rank is as large as is useful


@pytest.mark.parametrize("name", available_decompositions())
def test_the_smallest_budget(name: str) -> None:
    decomposition = get_decomposition(name)
    smallest = parameters(name, decomposition.check_rank(1, SHAPE))
    budget = Budget(parameters=smallest)
    assert rank_of_tensor(budget, SHAPE, name, bias=False) == decomposition.check_rank(1, SHAPE)
    message = (
        rf"a budget of {smallest - 1:,} parameters is too small for '{name}' of shapes \(\(8, 4, 16, 32\),\): "
        rf"the smallest possible is {smallest:,}"
    )
    with pytest.raises(ValueError, match=message):
        rank_of_tensor(Budget(parameters=smallest - 1), SHAPE, name, bias=False)
    with pytest.raises(ValueError, match="is too small for"):
        decomposition.resolve_rank(1e-4, SHAPE)


@pytest.mark.parametrize("rank", [np.int64(3), [2, 3, 4, 5], (np.int32(2), 3, 4, 5)], ids=str)
def test_ints_of_other_types_and_lists_become_plain(rank: Any) -> None:
    resolved = get_decomposition("tucker").resolve_rank(rank, SHAPE)
    assert isinstance(resolved, tuple)
    assert {type(entry) for entry in resolved} == {int}


REFUSED = {
    "zero": (0, ValueError, "rank must be at least 1, got 0"),
    "negative": (-2, ValueError, "rank must be at least 1, got -2"),
    "true": (True, TypeError, "rank is an int, a tuple of ints, 'same', a fraction or a Budget, got True"),
    "none": (None, TypeError, "rank is missing; give an int, a tuple of ints, 'same', a fraction or a Budget"),
    "an object": ({"rank": 3}, TypeError, "rank is an int, a tuple of ints, .* got \\{'rank': 3\\}"),
    "a set": ({3}, TypeError, "rank is an int, a tuple of ints, .* got \\{3\\}"),
    "complex": (1j, TypeError, "rank is an int, a tuple of ints, .* got 1j"),
    "zero share": (0.0, ValueError, "a float rank is a fraction of the dense size, above 0 and at most 1, got 0.0"),
    "a float above 1": (4.0, ValueError, "above 0 and at most 1, got 4.0; give an int for a rank"),
    "negative share": (-0.5, ValueError, "above 0 and at most 1, got -0.5"),
    "not a number": (float("nan"), ValueError, "above 0 and at most 1, got nan"),
    "infinite": (float("inf"), ValueError, "above 0 and at most 1, got inf"),
    "another word": ("full", ValueError, "the only rank given as a word is 'same', got 'full'"),
    "zero in a tuple": ((2, 0, 2, 2), ValueError, r"every entry of a rank tuple is a positive int, got \(2, 0, 2, 2\)"),
    "float in a tuple": ((2, 2.0, 2, 2), ValueError, "every entry of a rank tuple is a positive int"),
    "bool in a tuple": ((2, True, 2, 2), ValueError, "every entry of a rank tuple is a positive int"),
    "empty tuple": ((), ValueError, r"rank of Tucker is one int for each of the 4 modes \(8, 4, 16, 32\), got \(\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_rank(case: str) -> None:
    rank, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        FactorizedExpertTensor(SHAPE[:2], SHAPE[2], SHAPE[3], "tucker", rank)


class SumOfTwo(Decomposition):
    """Two terms of different depth: every one has half the variance."""

    def network(self, expert_dims: Any, in_features: int, out_features: int, rank: Any) -> TensorNetwork:
        own = {"input": "in rank", "expert": "expert_0 rank", "output": "rank out"}
        first = TensorNetwork.from_modes(expert_dims, in_features, out_features, nodes=own, bonds={"rank": rank})
        return first + TensorNetwork.from_modes((), in_features, out_features, nodes={"all": "in out"}, bonds={})


def test_initial_variance_of_a_sum() -> None:
    torch.manual_seed(0)
    w = FactorizedExpertTensor((30,), 40, 50, SumOfTwo(), 60, init="variance_preserving")
    first = torch.einsum("ir,nr,ro->nio", *(w.weight.tensors[name] for name in ("input", "expert", "output")))
    assert first.var().item() == pytest.approx(0.5 / 40, rel=0.1)
    assert w.weight.tensors["all"].var().item() == pytest.approx(0.5 / 40, rel=0.1)


class Plain(Decomposition):
    """No hook at all."""

    def network(self, expert_dims: Any, in_features: int, out_features: int, rank: Any) -> TensorNetwork:
        nodes = [Node("input", ("in", "rank")), Node("output", ("rank", "out"))]
        return TensorNetwork.from_modes(expert_dims, in_features, out_features, nodes=nodes, bonds={"rank": rank})


def test_defaults_of_the_hooks() -> None:
    with pytest.raises(ValueError, match=r"rank of Plain is one int, got \(2, 3\)"):
        FactorizedExpertTensor((), 4, 5, Plain(), (2, 3))
    w = FactorizedExpertTensor((), 4, 5, Plain(), 2)
    with pytest.raises(TypeError, match="TensorLy has no tensor type for Plain"):
        w.to_tensorly()
    with pytest.raises(TypeError, match="TensorLy has no tensor type for Plain"):
        FactorizedExpertTensor.from_tensorly((), Plain(), 2)
    assert Plain().useful_rank(7, (4, 5)) == 7


def test_the_contract_cannot_be_instantiated() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Decomposition()  # type: ignore[abstract]


def test_missing_label_of_a_decomposition_is_told() -> None:
    with pytest.raises(ValueError, match="carries the mode's label 'expert_0'; add it to one"):
        FactorizedExpertTensor((3,), 4, 5, Plain(), 2)
