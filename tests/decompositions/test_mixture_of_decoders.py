"""Mixture of Decoders: the paper's layer is rank 1, counted by hand."""

import pytest
import torch

from factorized_moe import FactorizedExpertTensor
from factorized_moe.decompositions import MixtureOfDecoders

INPUTS, OUTPUTS = 17, 32


@pytest.mark.parametrize("batch_size", [1, 10])
def test_costs_by_hand(batch_size: int) -> None:
    w = FactorizedExpertTensor((100,), 16, OUTPUTS, "mxd", 3, bias=True)
    assert w.num_parameters == 3 * OUTPUTS * (INPUTS + 100)
    # Both products, then their product summed over the rank.
    assert w.plan(batch_size).flops == batch_size * 3 * OUTPUTS * (2 * INPUTS + 2 * 100 + 2)


def test_experts_beyond_the_first_cost_one_row_each() -> None:
    few, many = (FactorizedExpertTensor((n,), 16, OUTPUTS, "mxd", 1) for n in (1, 1001))
    assert many.num_parameters - few.num_parameters == 1000 * OUTPUTS


def test_the_paper_s_layer() -> None:
    """``y = (D^T x) * (C^T a)``; each expert is the shared matrix with its columns scaled."""
    w = FactorizedExpertTensor((7,), 4, 5, "mxd", 1)
    x, a = torch.randn(3, 4), torch.rand(3, 7)
    scales, decoder = w.weight.expert_0[:, 0], w.weight.decoder[:, 0]
    torch.testing.assert_close(w(x, [a]), (x @ decoder) * (a @ scales))
    torch.testing.assert_close(w.expert(6), decoder @ torch.diag(scales[6]))
    assert w.expert_rank_bound == 4
    assert torch.linalg.matrix_rank(w.expert(6)) == 4


def test_several_modes_multiply_their_scales() -> None:
    w = FactorizedExpertTensor((3, 2), 4, 5, "mxd", 1)
    scales = w.weight.expert_0[2, 0] * w.weight.expert_1[1, 0]
    torch.testing.assert_close(w.expert(2, 1), w.weight.decoder[:, 0] * scales)


def test_without_experts_it_is_the_matrix() -> None:
    w = FactorizedExpertTensor((), 4, 5, "mxd", 3)
    assert w.num_parameters == 20
    assert torch.equal(w.to_dense(), w.weight.decoder)


def test_no_rank_beyond_the_number_of_experts_is_useful() -> None:
    assert MixtureOfDecoders().useful_rank(9, (3, 2, 4, 7)) == 6
    dense = torch.randn(3, 4, 5, dtype=torch.float64)
    assert FactorizedExpertTensor.from_dense(dense, "mxd", 3).relative_error(dense) < 1e-9
