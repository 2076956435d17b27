"""Tensor ring: counts by hand, ranks, initialisation."""

import pytest
import torch

from factorized_moe import FactorizedExpertTensor


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("expert_dims", "rank"), [((), (2, 3, 2)), ((8,), (2, 3, 4, 2)), ((8, 4), (2, 3, 4, 5, 2))])
@pytest.mark.parametrize("batch_size", [1, 10])
def test_costs_by_hand(expert_dims: tuple[int, ...], rank: tuple[int, ...], bias: bool, batch_size: int) -> None:
    w = FactorizedExpertTensor(expert_dims, 16, 32, "tr", rank, bias=bias)
    sizes = (*expert_dims, 16 + bias, 32)
    cores = sum(rank[k] * size * rank[k + 1] for k, size in enumerate(sizes))
    assert w.num_parameters == cores
    # A vector times each core; then the first bond's rows run through the matrices of the cores after the first.
    chain = sum(rank[0] * rank[k] * rank[k + 1] for k in range(1, len(expert_dims) + 1))
    assert w.plan(batch_size).flops == batch_size * 2 * (cores + chain)
    assert w.expert_rank_bound == rank[-2] * min(rank[:-2])


@pytest.mark.parametrize(
    ("rank", "bound"), [((4, 4, 3, 4), 12), ((1, 4, 6, 1), 6), ((4, 2, 3, 4), 6), ((9, 9, 9, 9), 16)]
)
def test_rank_of_an_expert(rank: tuple[int, ...], bound: int) -> None:
    # What leaves the input core: its bond to the output, and the thinnest bond of the way round.
    assert FactorizedExpertTensor((8,), 16, 32, "tr", rank).expert_rank_bound == bound


def test_figures_of_the_paper() -> None:
    # uMoE, Appendix B: 512 experts, 768 -> 768 with bias, ranks (4, 4, 512): 3,164,160 multiply-adds without the gate.
    w = FactorizedExpertTensor((512,), 768, 768, "tr", (4, 4, 512, 4), bias=True, device="meta")
    assert w.plan(batch_size=1).flops == 2 * 3_164_160
    # The CLIP head of 64 experts: 771,928 parameters, the gate's 64 * 768 included, and experts of rank 408.
    head = FactorizedExpertTensor((64,), 768, 1000, "tr", (4, 4, 102, 4), bias=True, device="meta")
    assert head.num_parameters == 771_928 - 49_152
    assert head.expert_rank_bound == 408


def test_an_int_is_the_rank_of_every_bond() -> None:
    assert FactorizedExpertTensor((8, 4), 16, 32, "tensor_ring", 5).rank == (5, 5, 5, 5, 5)


def test_refuses_ranks_that_do_not_fit() -> None:
    message = (
        r"rank of TensorRing is one int for each of the 4 bonds of \(8, 16, 32\), first and last included, "
        r"got \(2, 3\)"
    )
    with pytest.raises(ValueError, match=message):
        FactorizedExpertTensor((8,), 16, 32, "tr", (2, 3))
    message = r"first and last rank of TensorRing are the same bond and must be equal, got \(2, 3, 4, 5\)"
    with pytest.raises(ValueError, match=message):
        FactorizedExpertTensor((8,), 16, 32, "tr", (2, 3, 4, 5))


def test_starts_as_noisy_copies_of_one_matrix() -> None:
    torch.manual_seed(0)
    w = FactorizedExpertTensor((2000, 7), 25, 50, "tr", (4, 4, 4, 16, 4), init="paper")
    first, second, inputs, outputs = w.weight.tensors.values()
    diagonal = first.diagonal(dim1=1, dim2=2)
    assert diagonal.mean().item() == pytest.approx(1.0, abs=0.05)
    assert diagonal.std().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(first, torch.diag_embed(diagonal))
    assert torch.equal(second, torch.eye(4).expand(7, 4, 4))
    for tensor, bound in ((inputs, 0.2), (outputs, 0.125)):
        assert 0.97 * bound < tensor.abs().max().item() <= bound
