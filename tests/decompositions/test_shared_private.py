"""One matrix for all and CP differences: a sum of two networks, counted by hand."""

import pytest
import torch

from factorized_moe import FactorizedExpertTensor

INPUTS, OUTPUTS = 17, 32


@pytest.mark.parametrize("batch_size", [1, 10])
def test_costs_by_hand(batch_size: int) -> None:
    w = FactorizedExpertTensor((8,), 16, OUTPUTS, "shared_private", 3, bias=True)
    assert w.num_parameters == INPUTS * OUTPUTS + 3 * (8 + INPUTS + OUTPUTS)
    shared = 2 * INPUTS * OUTPUTS + 8 + OUTPUTS  # the matrix, then the sum of the coefficients scales it
    private = 2 * INPUTS * 3 + 2 * 8 * 3 + 3 + 2 * 3 * OUTPUTS
    assert w.plan(batch_size).flops == batch_size * (shared + private + OUTPUTS)


def test_experts_differ_by_their_own_parts() -> None:
    w = FactorizedExpertTensor((3, 2), 6, 7, "shared_private", 2, dtype=torch.float64)
    assert w.expert_rank_bound == 6
    difference = w.expert(2, 1) - w.weight.shared
    assert torch.linalg.matrix_rank(difference) == 2
    factors = w.weight.expert_0[2] * w.weight.expert_1[1]
    torch.testing.assert_close(difference, w.weight.input @ torch.diag(factors) @ w.weight.output)


def test_coefficients_that_sum_to_one_leave_a_linear_layer() -> None:
    w = FactorizedExpertTensor((3, 2), 6, 7, "shared_private", 2)
    with torch.no_grad():
        w.weight.output.zero_()
    x, a = torch.randn(5, 6), [torch.softmax(torch.randn(5, n), dim=-1) for n in (3, 2)]
    torch.testing.assert_close(w(x, a), x @ w.weight.shared)
    torch.testing.assert_close(w(x, [2.0 * a[0], a[1]]), 2.0 * x @ w.weight.shared)


def test_both_terms_start_with_half_of_the_variance() -> None:
    torch.manual_seed(0)
    w = FactorizedExpertTensor((50,), 200, 300, "shared_private", 20, init="variance_preserving")
    assert w.weight.shared.var().item() == pytest.approx(0.5 / 200, rel=0.05)
    assert w.to_dense().var().item() == pytest.approx(1.0 / 200, rel=0.1)
