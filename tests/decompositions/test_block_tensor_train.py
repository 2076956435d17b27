"""Block tensor train: two block-diagonal matrices and a permutation for each expert, counted by hand."""

import pytest
import torch

from factorized_moe import FactorizedExpertTensor
from factorized_moe.decompositions import BlockTensorTrain


@pytest.mark.parametrize("batch_size", [1, 10])
def test_costs_by_hand(batch_size: int) -> None:
    w = FactorizedExpertTensor((8,), 63, 64, "block_tensor_train", 2, bias=True)  # 64 rows and columns are 8 x 8
    assert w.num_parameters == 8 * 2 * (64 * 8 + 64 * 8)
    # The first core of all experts, their coefficients, the second core.
    assert w.plan(batch_size).flops == batch_size * (2 * 8 * 2 * 64 * 8 + 8 * 8 * 8 * 2 + 2 * 8 * 2 * 64 * 8)


def test_a_monarch_matrix() -> None:
    """R = 1: block-diagonal, permuted, block-diagonal, each expert its own."""
    w = FactorizedExpertTensor((3,), 12, 10, "monarch", 1)  # 3 x 4 rows, 2 x 5 columns
    first, second = w.weight.operands
    assert first.shape == (3, 4, 3, 5, 1)
    assert second.shape == (5, 3, 3, 1, 2)
    right = torch.block_diag(*first[:, :, 2, :, 0])  # (12, 3 * 5), a block for each i_0
    permuted = right.reshape(12, 3, 5).transpose(1, 2).reshape(12, 15)
    left = torch.block_diag(*second[:, 2, :, 0])  # (5 * 3, 5 * 2), a block for each o_1
    expected = (permuted @ left).reshape(12, 5, 2).transpose(1, 2).reshape(12, 10)
    torch.testing.assert_close(w.expert(2), expected)


@pytest.mark.parametrize(("rank", "bound"), [(1, 15), (2, 20)])
def test_rank_of_an_expert(rank: int, bound: int) -> None:
    """Of 3 x 9 rows and 4 x 5 columns: 3 x 5 blocks of rank 1 each, or the columns."""
    w = FactorizedExpertTensor((2,), 27, 20, "btt", rank, dtype=torch.float64)
    assert w.expert_rank_bound == bound
    assert torch.linalg.matrix_rank(w.to_dense()).max() == bound


def test_experts_share_nothing() -> None:
    w = FactorizedExpertTensor((3, 2), 12, 10, "btt", 2)
    w.expert(2, 1).sum().backward()
    gradients = [parameter.grad for parameter in w.parameters()]
    for node, gradient in zip(w.network.nodes, gradients, strict=True):
        axes = [axis for axis, label in enumerate(node.labels) if not label.startswith("expert")]
        assert (gradient.abs().sum(axes) != 0).nonzero().tolist() == [[2, 1]]


def test_no_rank_beyond_a_block_is_useful() -> None:
    assert BlockTensorTrain().useful_rank(50, (3, 12, 10)) == 2  # blocks of 4 x 2
    dense = torch.randn(3, 12, 10, dtype=torch.float64)
    assert FactorizedExpertTensor.from_dense(dense, "btt", 2).relative_error(dense) < 1e-9
