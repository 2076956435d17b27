"""Kronecker products: against `torch.kron`, counted by hand, with and without padding."""

import pytest
import torch

from factorized_moe import FactorizedExpertTensor
from factorized_moe.decompositions import Kronecker


@pytest.mark.parametrize("batch_size", [1, 10])
def test_costs_by_hand(batch_size: int) -> None:
    w = FactorizedExpertTensor((8,), 63, 64, "kronecker", 2, bias=True)  # 64 rows and columns are 8 x 8
    assert w.num_parameters == 2 * (8 + 8 * 8 + 8 * 8)
    # The experts' factor, the right factors, the left ones scaled by the experts' vector, and their product.
    assert w.plan(batch_size).flops == batch_size * (2 * 8 * 2 + 2 * 64 * 2 * 8 + 2 * 64 + 2 * 8 * 2 * 8 * 8)


@pytest.mark.parametrize(
    ("shape", "rank", "bound"),
    [((63, 64), 1, 64), ((63, 16), 1, 16), ((11, 100), 1, 12), ((14, 2), 1, 2), ((14, 3), 1, 3), ((19, 5), 2, 5)],
)
def test_rank_of_an_expert(shape: tuple[int, int], rank: int, bound: int) -> None:
    w = FactorizedExpertTensor((3,), *shape, "kronecker", rank, bias=True, dtype=torch.float64)
    assert w.expert_rank_bound == bound
    assert torch.linalg.matrix_rank(w.to_dense()).max() == bound


def test_an_expert_is_a_sum_of_kronecker_products() -> None:
    w = FactorizedExpertTensor((3, 2), 12, 10, "kronecker", 4)
    scales = w.weight.expert_0[2] * w.weight.expert_1[1]
    products = [torch.kron(w.weight.left[:, r], w.weight.right[:, r]) for r in range(4)]
    expected = sum(scale * product for scale, product in zip(scales, products, strict=True))
    torch.testing.assert_close(w.expert(2, 1), expected)


def test_a_prime_number_of_rows_is_padded() -> None:
    w = FactorizedExpertTensor((3,), 768, 10, "kronecker", 2, bias=True)
    assert w.network.in_padding == 1
    assert w.network.sizes["in_0"], w.network.sizes["in_1"] == (22, 35)
    product = sum(w.weight.expert_0[1, r] * torch.kron(w.weight.left[:, r], w.weight.right[:, r]) for r in range(2))
    torch.testing.assert_close(w.expert(1), product[:769])
    x = torch.randn(4, 768)
    expected = torch.cat([x, torch.ones(4, 1)], dim=1) @ product[:769]
    torch.testing.assert_close(w(x, [torch.eye(3)[1].expand(4, 3)]), expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_has_a_gradient_in_spite_of_padding() -> None:
    w = FactorizedExpertTensor((3,), 12, 10, "kronecker", 2, bias=True)  # 13 rows, padded to 15
    assert w.network.in_padding == 2
    w(torch.randn(50, 12), [torch.rand(50, 3)]).square().sum().backward()
    assert all((parameter.grad != 0).all() for parameter in w.parameters())


def test_a_padded_tensor_is_fitted_exactly() -> None:
    dense = FactorizedExpertTensor((3,), 12, 10, "kronecker", 2, bias=True, dtype=torch.float64).to_dense().detach()
    assert FactorizedExpertTensor.from_dense(dense, "kronecker", 2, bias=True).relative_error(dense) < 1e-6


def test_no_rank_beyond_all_products_is_useful() -> None:
    assert Kronecker().useful_rank(1000, (3, 4, 9)) == 3 * 6  # modes 3, 2 x 3 and 2 x 3
    dense = torch.randn(4, 9, dtype=torch.float64)
    assert FactorizedExpertTensor.from_dense(dense, "kronecker", 6).relative_error(dense) < 1e-9
