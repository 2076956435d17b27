"""Low-rank experts: a pair of thin matrices for each, counted by hand."""

import pytest
import torch

from factorized_moe import FactorizedExpertTensor
from factorized_moe.decompositions import LowRank

INPUTS, OUTPUTS = 17, 32


@pytest.mark.parametrize("batch_size", [1, 10])
@pytest.mark.parametrize(("expert_dims", "outer"), [((8,), 0), ((8, 4), 8 * 4)])
def test_costs_by_hand(expert_dims: tuple[int, ...], outer: int, batch_size: int) -> None:
    """The coefficients' product, all experts' inputs, a product with the coefficients, all experts' outputs."""
    w = FactorizedExpertTensor(expert_dims, 16, OUTPUTS, "low_rank", 3, bias=True)
    experts = 8 if len(expert_dims) == 1 else 32
    assert w.num_parameters == experts * 3 * (INPUTS + OUTPUTS)
    flops = outer + 2 * INPUTS * experts * 3 + experts * 3 + 2 * experts * 3 * OUTPUTS
    assert w.plan(batch_size).flops == batch_size * flops
    assert w.expert_rank_bound == 3


def test_an_expert_is_the_product_of_its_pair() -> None:
    w = FactorizedExpertTensor((3, 2), 4, 5, "lora", 2)
    inputs, outputs = w.weight.operands
    assert inputs.shape == (4, 3, 2, 2)
    assert outputs.shape == (3, 2, 2, 5)
    torch.testing.assert_close(w.expert(2, 1), inputs[:, 2, 1] @ outputs[2, 1])


def test_no_rank_beyond_the_matrix_is_useful() -> None:
    assert LowRank().useful_rank(9, (3, 4, 7)) == 4
    w = FactorizedExpertTensor.from_dense(torch.randn(3, 4, 5), "low_rank", 4)
    assert w.relative_error(w.to_dense()) == 0.0
