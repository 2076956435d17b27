"""Hierarchical Tucker: the tree over the modes, counted by hand."""

import pytest
import torch

from factorized_moe import FactorizedExpertTensor

INPUTS, OUTPUTS = 17, 32


@pytest.mark.parametrize("batch_size", [1, 10])
def test_costs_by_hand(batch_size: int) -> None:
    w = FactorizedExpertTensor((8,), 16, OUTPUTS, "hierarchical_tucker", (2, 4, 5, 3), bias=True)
    factors = 8 * 2 + INPUTS * 4 + 5 * OUTPUTS
    assert w.num_parameters == factors + 4 * 5 * 3 + 2 * 3
    assert w.expert_rank_bound == 4
    # The factors; root and transfer tensor go together or one after the other, whichever is less.
    together = (2 * 2 * 3 * 4 * 5) // batch_size + 2 * 4 + 2 * 2 * 4 * 5
    one_by_one = 2 * 2 * 3 + 4 * 3 + 2 * 4 * 3 * 5
    flops = w.plan(batch_size).flops
    assert flops <= batch_size * (2 * factors + max(together, one_by_one))
    assert flops >= batch_size * (2 * factors + min(2 * 4 + 2 * 2 * 4 * 5, one_by_one))


def test_the_tree_halves_the_modes() -> None:
    w = FactorizedExpertTensor((2, 3, 4), 5, 6, "ht", 2)
    assert [node.name for node in w.network.nodes] == [
        "expert_0",
        "expert_1",
        "transfer_expert_0_expert_1",
        "expert_2",
        "input",
        "output",
        "transfer_in_out",
        "transfer_expert_2_in_out",
        "root",
    ]
    assert dict(zip(w.network.bonds, w.rank, strict=True)) == dict.fromkeys(w.network.bonds, 2)


def test_it_is_the_product_of_its_tree() -> None:
    w = FactorizedExpertTensor((7,), 5, 6, "htucker", (2, 3, 4, 5))
    expert, inputs, outputs, transfer, root = w.weight.operands
    expected = torch.einsum("na,ad,bcd,ib,co->nio", expert, root, transfer, inputs, outputs)
    torch.testing.assert_close(w.to_dense(), expected)


@pytest.mark.thorough
def test_many_modes_stay_small() -> None:
    """Tucker's core has 4**8 entries for six expert modes, the tree's tensors at most 4**3 each."""
    sizes = ((2,) * 6, 16, 16)
    assert FactorizedExpertTensor(*sizes, "tucker", 4).num_parameters > 4**8
    assert FactorizedExpertTensor(*sizes, "ht", 4).num_parameters == 6 * 2 * 4 + 2 * 16 * 4 + 6 * 4**3 + 4**2


def test_ranks() -> None:
    w = FactorizedExpertTensor((2,), 16, 32, "ht", 40)
    assert w.rank == (40, 40, 40, 40)
    # No factor beyond its mode; no whole beyond its halves or what is outside it.
    assert w.decomposition.useful_rank(w.rank, (2, 16, 32)) == (2, 16, 32, 2)
    message = r"rank of HierarchicalTucker is one int for each of the 4 vertices .*, got \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        FactorizedExpertTensor((2,), 16, 32, "ht", (2, 3))
