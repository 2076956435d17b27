"""Dense: the baseline, counted by hand."""

import pytest
import torch

from factorized_moe import Budget, FactorizedExpertTensor
from factorized_moe.layers import MuMoE

INPUTS, OUTPUTS = 17, 32  # 16 features and the bias row


@pytest.mark.parametrize("batch_size", [1, 10])
def test_costs_by_hand(batch_size: int) -> None:
    w = FactorizedExpertTensor((8,), 16, OUTPUTS, "dense", 1, bias=True)
    assert w.num_parameters == 8 * INPUTS * OUTPUTS
    # Coefficients times input, then one product with the weight.
    assert w.plan(batch_size).flops == batch_size * (8 * INPUTS + 2 * 8 * INPUTS * OUTPUTS)
    assert w.expert_rank_bound == INPUTS


def test_the_weight_is_the_dense_tensor() -> None:
    w = FactorizedExpertTensor((3, 2), 4, 5, "dense", 1)
    assert w.to_dense().data_ptr() == w.weight.weight.data_ptr()
    assert torch.equal(w.expert(2, 1), w.weight.weight[2, 1])


@pytest.mark.parametrize("rank", [1, 7, "same", 1.0, Budget(parameters=3 * 2 * 4 * 5)])
def test_every_int_and_every_budget_that_suffices_is_rank_1(rank: int | str | float | Budget) -> None:
    assert FactorizedExpertTensor((3, 2), 4, 5, "dense", rank).rank == 1


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"rank of Dense is one int, got \(2, 3\)"):
        FactorizedExpertTensor((3,), 4, 5, "dense", (2, 3))
    with pytest.raises(
        ValueError, match=r"a budget of 30 parameters is too small for Dense .* smallest possible is 60"
    ):
        FactorizedExpertTensor((3,), 4, 5, "dense", 0.5)


def test_a_layer_takes_it_for_another_name() -> None:
    assert MuMoE(4, 5, [3], "dense", rank=8)(torch.randn(2, 4)).shape == (2, 5)
