"""Tucker: counts by hand, ranks, initialisation."""

import pytest
import torch

from factorized_moe import FactorizedExpertTensor

INPUTS, OUTPUTS = 17, 32  # 16 features and the bias row


def by_hand(expert_dims: tuple[int, ...], rank: tuple[int, ...]) -> tuple[int, int, int]:
    """Parameters, FLOPs a sample of the factors, elements of the core."""
    sizes = (*expert_dims, INPUTS, OUTPUTS)
    factors = sum(size * r for size, r in zip(sizes, rank, strict=True))
    core = 1
    for r in rank:
        core *= r
    return factors + core, 2 * factors, core


@pytest.mark.parametrize("batch_size", [1, 10])
@pytest.mark.parametrize(
    ("expert_dims", "rank", "inner"),
    [
        # The product of the expert's and the input's vectors, then one product with the whole core.
        ((8,), (4, 6, 7), 4 * 6 + 2 * 4 * 6 * 7),
        # The product of the experts' vectors, with the core to a matrix for each sample, which then meets the input.
        ((8, 4), (4, 2, 6, 7), 4 * 2 + 2 * 4 * 2 * 6 * 7 + 2 * 6 * 7),
    ],
)
def test_costs_by_hand(expert_dims: tuple[int, ...], rank: tuple[int, ...], inner: int, batch_size: int) -> None:
    w = FactorizedExpertTensor(expert_dims, 16, OUTPUTS, "tucker", rank, bias=True)
    parameters, factors, _ = by_hand(expert_dims, rank)
    assert w.num_parameters == parameters
    assert w.plan(batch_size).flops == batch_size * (factors + inner)


def test_a_plain_matrix() -> None:
    rank = (3, 4)
    w = FactorizedExpertTensor((), 16, OUTPUTS, "tucker", rank, bias=True)
    parameters, factors, core = by_hand((), rank)
    assert w.num_parameters == parameters
    # The core meets the input's vector, or the output factor once for all samples; the latter is not for one sample.
    assert w.plan(10).flops <= 10 * (factors + 2 * core)


@pytest.mark.parametrize(
    ("rank", "bound"),
    [((4, 2, 6, 7), 6), ((1, 1, 1, 7), 1), ((4, 2, 7, 5), 5), ((4, 2, 100, 100), 17), ((1, 1, 3, 3), 3)],
)
def test_rank_of_an_expert(rank: tuple[int, ...], bound: int) -> None:
    assert FactorizedExpertTensor((8, 4), 16, OUTPUTS, "tucker", rank, bias=True).expert_rank_bound == bound


def test_refuses_a_tuple_of_another_length() -> None:
    message = r"rank of Tucker is one int for each of the 3 modes \(8, 16, 32\), got \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        FactorizedExpertTensor((8,), 16, 32, "tucker", (2, 3))


def test_an_int_is_the_rank_of_every_mode() -> None:
    assert FactorizedExpertTensor((8, 4), 16, 32, "tucker", 5).rank == (5, 5, 5, 5)


def test_a_budget_uses_no_rank_above_a_mode() -> None:
    w = FactorizedExpertTensor((2, 3), 16, 32, "tucker", 0.5)
    assert w.rank[:2] == (2, 3)
    assert w.num_parameters <= 0.5 * 2 * 3 * 16 * 32


def test_starts_as_noisy_copies_of_one_matrix() -> None:
    torch.manual_seed(0)
    w = FactorizedExpertTensor((300, 7), 25, 50, "tucker", (40, 5, 6, 7), init="paper")
    tensors = w.weight.tensors
    assert tensors["expert_0"].mean().item() == pytest.approx(1.0, abs=0.03)
    assert tensors["expert_0"].std().item() == pytest.approx(1.0, abs=0.03)
    assert torch.equal(tensors["expert_1"], torch.ones(7, 5))
    torch.testing.assert_close(tensors["input"].norm(dim=1), torch.ones(25))
    torch.testing.assert_close(tensors["output"].norm(dim=0), torch.ones(50))
    assert tensors["core"].norm().item() == pytest.approx(1.0, abs=1e-5)
