"""The search for a budget's rank: against all ranks and the ranks of real matrices, and how much it has to ask."""

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest

from factorized_moe.budgets import LayerCosts, rank_for_budget
from factorized_moe.budgets.rank_bounds import bounds_of
from factorized_moe.budgets.rank_search import RankForm
from factorized_moe.decompositions import Decomposition, get_decomposition
from factorized_moe.network import TensorNetwork


class Pairs(Decomposition):
    """Bonds that are no entry of the rank, but made of two: bounds cannot be read from entries."""

    def check_rank(self, rank: Any, shape: tuple[int, ...]) -> Any:
        return (rank, rank) if isinstance(rank, int) else rank

    def network(self, expert_dims: Any, in_features: int, out_features: int, rank: Any) -> TensorNetwork:
        nodes = {"expert_0": "expert_0 a", "input": "in b", "output": "a b out"}
        bonds = {"a": rank[0] + rank[1] - 1, "b": rank[1]}
        return TensorNetwork.from_modes(expert_dims, in_features, out_features, nodes=nodes, bonds=bonds)


class Squares(Decomposition):
    """A sum of two terms, and entries that are the size of two bonds: products that hold a value twice."""

    def check_rank(self, rank: Any, shape: tuple[int, ...]) -> Any:
        return (rank, rank) if isinstance(rank, int) else rank

    def network(self, expert_dims: Any, in_features: int, out_features: int, rank: Any) -> TensorNetwork:
        sizes = {"expert_0": expert_dims[0], "in": in_features, "out": out_features}
        sizes |= {"a": rank[0], "b": rank[0], "c": rank[1], "d": rank[1]}
        return TensorNetwork.parse("expert_0 c, in a b c, a b out + in d, expert_0 d out", sizes)


CASES = [(name, dims) for name in ("block_term", "tr", "tt", "tt_matrix", "tucker") for dims in ((), (5,), (2, 3))]
CASES += [("hierarchical_tucker", dims) for dims in ((5,), (2, 3), (2, 2, 3))]
CASES += [(Pairs(), (4,)), (Squares(), (4,))]


@pytest.mark.parametrize(
    ("decomposition", "dims"),
    CASES,
    ids=lambda given: type(given).__name__ if isinstance(given, Decomposition) else str(given),
)
@pytest.mark.parametrize("linears", [((11, 9),), ((6, 10), (10, 7))], ids=["layer", "block"])
def test_bounds_along_a_rank_are_those_of_its_networks(decomposition: Any, dims: Any, linears: Any) -> None:
    costs = LayerCosts(dims, linears, get_decomposition(decomposition))
    form = RankForm.of(costs)
    found = bounds_of(costs, form.rank, form.filled, (40,) * form.free)
    chance = random.Random(0)
    for _ in range(12):
        values = [chance.randint(1, 12) for _ in range(form.free)]
        one, every = costs.rank_bounds(form.rank(values))
        assert found.reach(values, (one, every))
        assert not found.reach(values, (one + 1, every))
        assert not found.reach(values, (one, every + 1))
        for varied in range(form.free):
            wanted = chance.randint(1, one), chance.randint(1, every)
            least = found.least(values, varied, wanted)
            lower = [[*values[:varied], size, *values[varied + 1 :]] for size in range(1, values[varied] + 1)]
            reached = [costs.rank_bounds(form.rank(some)) for some in lower]
            assert least == 1 + next(
                k for k, some in enumerate(reached) if some[0] >= wanted[0] and some[1] >= wanted[1]
            )


class Counted(Decomposition):
    """Another decomposition that counts the networks that it is asked for."""

    def __init__(self, other: Decomposition) -> None:
        self.other, self.asked = other, 0

    def check_rank(self, rank: Any, shape: tuple[int, ...]) -> Any:
        return self.other.check_rank(rank, shape)

    def useful_rank(self, rank: Any, shape: tuple[int, ...]) -> Any:
        return self.other.useful_rank(rank, shape)

    def network(self, expert_dims: Any, in_features: int, out_features: int, rank: Any) -> TensorNetwork:
        self.asked += 1
        return self.other.network(expert_dims, in_features, out_features, rank)


@pytest.mark.parametrize(
    ("name", "dims"), [("tr", (16, 16, 16)), ("tr", (8, 8, 8, 8)), ("hierarchical_tucker", (16, 16, 16))]
)
def test_a_search_asks_for_few_networks(name: str, dims: tuple[int, ...]) -> None:
    """Those whose parameters it counts; with one for each bound as well they were 32,612, 57,304 and 62,621."""
    counted = Counted(get_decomposition(name))
    rank_for_budget(dims, 256, 256, counted, parameters=257 * 256)
    assert counted.asked < 3000


# What networks are contracted to, written out, and the order in which an int of each rank is a label's size.
EQUATIONS = {
    "tr": ("nab,mbc,icd,oda->nmio", "abcd"),
    "tt": ("nb,mbc,icd,od->nmio", "bcd"),
    "tucker": ("na,mb,ic,od,abcd->nmio", "abcd"),
    "hierarchical_tucker": ("na,mb,abc,id,oe,def,cf->nmio", "abcdef"),
}


def parameters_and_matrix_ranks(name: str, values: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Of random cores: their entries, the rank of an expert's matrix, and how many experts are linearly independent."""
    equation, bonds = EQUATIONS[name]
    sizes = dict(zip("nmio", shape, strict=True)) | dict(zip(bonds, values, strict=True))
    shapes = [tuple(sizes[x] for x in core) for core in equation.partition("->")[0].split(",")]
    chance = np.random.default_rng(0)
    dense = np.einsum(equation, *(chance.standard_normal(shape) for shape in shapes), optimize=True)
    experts = dense.reshape(math.prod(shape[:2]), *shape[2:])
    ranks = np.linalg.matrix_rank(experts[0]), np.linalg.matrix_rank(experts.reshape(len(experts), -1))
    return sum(map(math.prod, shapes)), *map(int, ranks)


@pytest.mark.parametrize(("name", "largest"), [("tr", 6), ("tt", 8), ("tucker", 6), ("hierarchical_tucker", 4)])
def test_no_rank_within_the_budget_has_matrices_of_higher_rank(name: str, largest: int) -> None:
    """Beside all ranks of small entries, by their parameters and the ranks of matrices made of random cores."""
    shape, bonds = (3, 2, 5, 4), len(EQUATIONS[name][1])
    known = [
        parameters_and_matrix_ranks(name, values, shape)
        for values in itertools.product(range(1, largest + 1), repeat=bonds)
    ]
    for budget in (60, 80, 110):
        options: dict[str, Any] = {"parameters": budget, "bias": False, "count_gate": False}
        best = max((one, many, -cost) for cost, one, many in known if cost <= budget and many >= 3)
        found = rank_for_budget(shape[:2], 5, 4, name, **options)
        inner = {"tr": found[:-1], "tt": found[1:-1]}.get(name, found)
        cost, one, many = parameters_and_matrix_ranks(name, inner, shape)
        assert cost <= budget
        assert (one, many >= 3) == (best[0], True)
        uniform = rank_for_budget(shape[:2], 5, 4, name, **options, choice="uniform")
        assert found == uniform or (one, many, -cost) == best
