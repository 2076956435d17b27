"""Block terms: a sum of Tucker decompositions in one network, counted by hand."""

import pytest
import torch

from factorized_moe import FactorizedExpertTensor, TensorNetwork
from factorized_moe.contraction import forward_request, make_plan
from factorized_moe.decompositions import get_decomposition

INPUTS, OUTPUTS = 17, 32
TERMS, RANKS = 3, (2, 4, 5)


@pytest.mark.parametrize("batch_size", [1, 10])
def test_costs_by_hand(batch_size: int) -> None:
    w = FactorizedExpertTensor((8,), 16, OUTPUTS, "block_term", (TERMS, *RANKS), bias=True)
    factors = 8 * 2 + INPUTS * 4 + 5 * OUTPUTS
    assert w.num_parameters == TERMS * (factors + 2 * 4 * 5)
    # The factors, the product of the expert's and the input's vectors, and that with the core.
    assert w.plan(batch_size).flops == batch_size * TERMS * (2 * factors + 2 * 4 + 2 * 2 * 4 * 5)
    assert w.expert_rank_bound == TERMS * 4


def test_it_is_the_sum_of_its_terms() -> None:
    w = FactorizedExpertTensor((8,), 6, 7, "block_term", (TERMS, *RANKS))
    tucker = FactorizedExpertTensor((8,), 6, 7, "tucker", RANKS)
    total = torch.zeros(8, 6, 7)
    for term in range(TERMS):
        own = {
            name: value.select(node.labels.index("term"), term)
            for node, (name, value) in zip(w.network.nodes, w.weight.tensors.items(), strict=True)
        }
        tucker.weight.assign(own)
        total += tucker.to_dense().detach()
    torch.testing.assert_close(w.to_dense(), total)


@pytest.mark.parametrize("terms", [2, 8])
def test_one_network_plans_better_than_a_sum(terms: int) -> None:
    """As a bond, the terms take five steps whatever their number; a sum takes as many steps for each."""
    together = FactorizedExpertTensor((8,), 64, 64, "block_term", (terms, 4, 8, 8)).plan()
    one = get_decomposition("tucker").network((8,), 64, 64, (4, 8, 8))
    apart = renamed(one, 0)
    for term in range(1, terms):
        apart = apart + renamed(one, term)
    plan = make_plan(apart, forward_request(apart, bias=False))
    assert len(together.steps) == 5
    assert len(plan.steps) == 5 * terms + terms - 1
    assert together.flops < plan.flops


def renamed(network: TensorNetwork, term: int) -> TensorNetwork:
    nodes = {f"{node.name}_{term}": node.labels for node in network.nodes}
    bonds = {bond: network.sizes[bond] for bond in network.bonds}
    return TensorNetwork.from_modes(network.expert_dims, *network.shape[-2:], nodes=nodes, bonds=bonds)


def test_one_term_is_tucker_and_ranks_of_one_are_cp() -> None:
    sizes = ((8, 4), 16, 32)
    assert (
        FactorizedExpertTensor(*sizes, "btd", (1, 2, 3, 4, 5)).num_parameters
        == FactorizedExpertTensor(*sizes, "tucker", (2, 3, 4, 5)).num_parameters
    )
    cp = FactorizedExpertTensor(*sizes, "cp", 6).num_parameters
    assert FactorizedExpertTensor(*sizes, "btd", (6, 1, 1, 1, 1)).num_parameters == cp + 6  # a core of 1 for each term


def test_ranks() -> None:
    w = FactorizedExpertTensor((2,), 16, 32, "block_term", 5)
    assert w.rank == (5, 5, 5, 5)
    assert w.decomposition.useful_rank(w.rank, (2, 16, 32)) == (5, 2, 5, 5)
    message = (
        r"rank of BlockTerm is the number of terms and one int for each of the 3 modes \(2, 16, 32\), got \(2, 3\)"
    )
    with pytest.raises(ValueError, match=message):
        FactorizedExpertTensor((2,), 16, 32, "block_term", (2, 3))
