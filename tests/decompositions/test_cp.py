"""CP: counts by hand, ranks, initialisation."""

import pytest
import torch

from factorized_moe import FactorizedExpertTensor
from factorized_moe.decompositions import CP, get_decomposition


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("expert_dims", [(), (8,), (8, 4), (8, 4, 3)])
@pytest.mark.parametrize("batch_size", [1, 10])
def test_costs_by_hand(expert_dims: tuple[int, ...], bias: bool, batch_size: int) -> None:
    rank, rows, out_features = 3, 16 + bias, 32
    w = FactorizedExpertTensor(expert_dims, 16, out_features, "cp", rank, bias=bias)
    every = sum(expert_dims) + rows + out_features
    assert w.num_parameters == rank * every
    # A product with each factor, and a multiplication of the rank's values for each expert mode.
    assert w.plan(batch_size).flops == batch_size * (2 * rank * every + rank * len(expert_dims))
    assert w.plan(batch_size).largest_intermediate == batch_size * max(rank, out_features)
    assert w.expert_rank_bound == rank


@pytest.mark.parametrize(("rank", "bound"), [(1, 1), (5, 5), (6, 6), (7, 6), (100, 6)])
def test_rank_of_an_expert_is_at_most_each_of_its_sides(rank: int, bound: int) -> None:
    assert FactorizedExpertTensor((8,), 6, 9, "cp", rank).expert_rank_bound == bound


def test_figures_of_the_paper() -> None:
    # uMoE, Appendix B: 512 experts, 768 -> 768 with bias, rank 512: 1,442,304 multiply-adds, 393,216 in the gate.
    w = FactorizedExpertTensor((512,), 768, 768, "cp", 512, bias=True, device="meta")
    assert w.plan(batch_size=1).flops == 2 * (1_442_304 - 393_216) + 512
    # The CLIP head of 64 experts: 769,521 parameters, the gate's 64 * 768 included.
    assert (
        FactorizedExpertTensor((64,), 768, 1000, "cp", 393, bias=True, device="meta").num_parameters == 769_521 - 49_152
    )


def test_refuses_a_tuple_of_ranks() -> None:
    with pytest.raises(ValueError, match=r"rank of CP is one int, got \(2, 3, 4\)"):
        FactorizedExpertTensor((8,), 16, 32, "cp", (2, 3, 4))


@pytest.mark.parametrize("name", ["CP", "parafac", "candecomp-parafac", "Canonical Polyadic"])
def test_names(name: str) -> None:
    assert isinstance(get_decomposition(name), CP)


def test_starts_as_noisy_copies_of_one_matrix() -> None:
    torch.manual_seed(0)
    w = FactorizedExpertTensor((300, 7), 25, 50, "cp", 64, init="paper")
    tensors = w.weight.tensors
    assert tensors["expert_0"].mean().item() == pytest.approx(1.0, abs=0.02)
    assert tensors["expert_0"].std().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(tensors["expert_1"], torch.ones(7, 64))
    for name, bound in (("input", 0.2), ("output", 0.125)):
        largest = tensors[name].abs().max().item()
        assert 0.97 * bound < largest <= bound
        assert tensors[name].std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_weights_of_tensorly_are_folded_into_a_factor() -> None:
    factors = [torch.randn(size, 2, dtype=torch.float64) for size in (3, 4, 5)]
    weights = torch.tensor([2.0, -3.0], dtype=torch.float64)
    tensors = CP().from_tensorly((weights, factors))
    w = FactorizedExpertTensor((3,), 4, 5, "cp", 2, dtype=torch.float64)
    w.weight.assign(tensors)
    expected = torch.einsum("r,nr,ir,or->nio", weights, *factors)
    torch.testing.assert_close(w.to_dense(), expected, rtol=1e-12, atol=1e-12)
