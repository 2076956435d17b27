"""Parameters that several nodes use: the variance that is promised, and fits that recover."""

from typing import Any

import pytest

from factorized_moe import Decomposition, TensorNetwork
from factorized_moe.network import Node
from factorized_moe.testing import LAWS, Structure

STRUCTURES = {
    "initial_variance": Structure((3, 3), 20, 15, rank=4, bias=False),
    "fit_recovers": Structure((3, 3), 3, 4, rank=2, bias=False),
}


class SharedFactors(Decomposition):
    """CP whose expert modes share one factor."""

    def network(self, expert_dims: Any, in_features: int, out_features: int, rank: Any) -> TensorNetwork:
        nodes = [Node(f"expert_{k}", (f"expert_{k}", "rank"), "expert_0") for k in range(len(expert_dims))]
        nodes += [Node("input", ("in", "rank")), Node("output", ("rank", "out"))]
        return TensorNetwork.from_modes(expert_dims, in_features, out_features, nodes=nodes, bonds={"rank": rank})


class SharedTerms(Decomposition):
    """A sum of two products whose second factors are one parameter."""

    def network(self, expert_dims: Any, in_features: int, out_features: int, rank: Any) -> TensorNetwork:
        modes = [f"expert_{k}" for k in range(len(expert_dims))]
        terms = []
        for term in "ab":
            nodes = [Node(f"first_{term}", (*modes, "in", f"rank_{term}"))]
            nodes += [Node(f"second_{term}", (f"rank_{term}", "out"), "second_a")]
            arguments = {"nodes": nodes, "bonds": {f"rank_{term}": rank}}
            terms.append(TensorNetwork.from_modes(expert_dims, in_features, out_features, **arguments))
        return terms[0] + terms[1]


class Twice(Decomposition):
    """The same function in both terms: they are one product, twice as large."""

    def network(self, expert_dims: Any, in_features: int, out_features: int, rank: Any) -> TensorNetwork:
        terms = []
        for term in "ab":
            nodes = [Node(f"whole_{term}", (*(f"expert_{k}" for k in range(len(expert_dims))), "in", "out"), "whole_a")]
            terms.append(TensorNetwork.from_modes(expert_dims, in_features, out_features, nodes=nodes, bonds={}))
        return terms[0] + terms[1]


@pytest.mark.parametrize("decomposition", [SharedFactors(), SharedTerms(), Twice()], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("law", STRUCTURES)
def test_law_holds(law: str, decomposition: Decomposition) -> None:
    LAWS[law].check(decomposition, STRUCTURES[law])
