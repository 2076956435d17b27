"""Tensor train: counts by hand, ranks, initialisation."""

import pytest
import torch

from factorized_moe import FactorizedExpertTensor


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("expert_dims", "rank"),
    [((), (1, 3, 1)), ((8,), (1, 3, 4, 1)), ((8, 4), (1, 3, 4, 5, 1)), ((8, 4, 3), (1, 2, 3, 4, 5, 1))],
)
@pytest.mark.parametrize("batch_size", [1, 10])
def test_costs_by_hand(expert_dims: tuple[int, ...], rank: tuple[int, ...], bias: bool, batch_size: int) -> None:
    w = FactorizedExpertTensor(expert_dims, 16, 32, "tt", rank, bias=bias)
    sizes = (*expert_dims, 16 + bias, 32)
    cores = sum(rank[k] * size * rank[k + 1] for k, size in enumerate(sizes))
    assert w.num_parameters == cores
    # A vector times each core; then the first expert's vector runs through the matrices of the cores after it.
    chain = sum(rank[k] * rank[k + 1] for k in range(1, len(expert_dims) + 1))
    assert w.plan(batch_size).flops == batch_size * 2 * (cores + chain)
    assert w.expert_rank_bound == rank[-2]


@pytest.mark.parametrize(("rank", "bound"), [((1, 2, 3, 1), 3), ((1, 1, 3, 1), 3), ((1, 9, 100, 1), 6)])
def test_rank_of_an_expert_is_the_last_bond(rank: tuple[int, ...], bound: int) -> None:
    assert FactorizedExpertTensor((8,), 6, 9, "tt", rank).expert_rank_bound == bound


def test_an_int_is_the_rank_of_every_inner_bond() -> None:
    assert FactorizedExpertTensor((8, 4), 16, 32, "tensor_train", 5).rank == (1, 5, 5, 5, 1)


def test_refuses_ranks_that_do_not_fit() -> None:
    message = (
        r"rank of TensorTrain is one int for each of the 4 bonds of \(8, 16, 32\), first and last included, "
        r"got \(2, 3\)"
    )
    with pytest.raises(ValueError, match=message):
        FactorizedExpertTensor((8,), 16, 32, "tt", (2, 3))
    message = r"first and last rank of TensorTrain must be 1, got \(2, 3, 4, 2\); TensorRing allows others"
    with pytest.raises(ValueError, match=message):
        FactorizedExpertTensor((8,), 16, 32, "tt", (2, 3, 4, 2))


def test_a_budget_uses_no_bond_longer_than_needed() -> None:
    w = FactorizedExpertTensor((2, 3), 16, 32, "tt", 0.9)
    assert w.rank[1] == 2  # the first mode has two values
    assert w.rank[2] <= 6
    assert w.num_parameters <= 0.9 * 2 * 3 * 16 * 32


def test_starts_as_noisy_copies_of_one_matrix() -> None:
    torch.manual_seed(0)
    w = FactorizedExpertTensor((2000, 7), 25, 50, "tt", (1, 4, 4, 64, 1), init="paper")
    first, second, inputs, outputs = w.weight.tensors.values()
    assert first[:, 0].mean().item() == pytest.approx(1.0, abs=0.1)
    assert first[:, 0].std().item() == pytest.approx(1.0, abs=0.1)
    assert not first[:, 1:].any()
    assert torch.equal(second, torch.eye(4).expand(7, 4, 4))
    for tensor, bound in ((inputs, 0.2), (outputs, 0.125)):
        assert 0.97 * bound < tensor.abs().max().item() <= bound
