"""TT-matrix: cores with a part of the input and of the output, counted by hand."""

import pickle

import pytest
import torch

from factorized_moe import FactorizedExpertTensor
from factorized_moe.contraction import paths_of
from factorized_moe.decompositions import TTMatrix


def test_costs_by_hand() -> None:
    w = FactorizedExpertTensor((8,), 63, 64, "tt_matrix", (1, 2, 3, 5, 1), bias=True)  # 64 is 4 x 4 x 4
    assert w.num_parameters == 8 * 2 + 2 * 4 * 4 * 3 + 3 * 4 * 4 * 5 + 5 * 4 * 4
    # For few samples the input meets one core after the other, then the experts' vector; or it goes cheaper still.
    vector, chain = 2 * 8 * 2, 2 * 64 * (5 * 4) + 2 * (4 * 4 * 5 * 4) * (3 * 4) + 2 * (4 * 3 * 4 * 4) * (2 * 4)
    assert w.plan(1).flops <= vector + chain + 2 * 2 * 64
    # For more the last two cores are multiplied once for all samples, while the experts' vector meets the first.
    experts, others = vector + 2 * 2 * 4 * 4 * 3, 2 * (4 * 4 * 3) * 5 * (4 * 4)
    inputs = 2 * 64 * (3 * 4 * 4) + 2 * (4 * 3) * 4 * (4 * 4)
    assert w.plan(100).flops == 100 * (experts + inputs) + others
    assert w.plan(1).runs_until == w.plan(100).runs_from - 1
    assert w.plan(1).steps != w.plan(1, path=paths_of(w.plan(100))[0]).steps


def test_it_is_a_product_of_matrices() -> None:
    w = FactorizedExpertTensor((3,), 8, 27, "ttm", (1, 2, 3, 4, 1))
    expert, *cores = w.weight.operands
    assert [tuple(core.shape) for core in cores] == [(2, 3, 2, 3), (2, 4, 3, 3), (2, 4, 3)]
    expected = torch.einsum("na,ibax,jcby,kcz->nijkxyz", expert, *cores).reshape(3, 8, 27)
    torch.testing.assert_close(w.to_dense(), expected)


@pytest.mark.parametrize(
    ("rank", "bound"),
    [((1, 1, 1, 1, 1), 18), ((1, 5, 1, 1, 1), 18), ((1, 1, 1, 2, 1), 18), ((1, 1, 2, 2, 1), 27), ((1, 2, 9, 9, 1), 27)],
)
def test_rank_of_an_expert(rank: tuple[int, ...], bound: int) -> None:
    """Of 3 x 3 x 3 rows and 2 x 3 x 5 columns a single Kronecker product has rank 2 x 3 x 3."""
    w = FactorizedExpertTensor((5,), 27, 30, "tt_matrix", rank, dtype=torch.float64)
    assert w.expert_rank_bound == bound
    assert torch.linalg.matrix_rank(w.to_dense()).max() == bound


def test_the_number_of_cores_is_a_choice() -> None:
    two, four = TTMatrix(cores=2), TTMatrix(cores=4)
    assert FactorizedExpertTensor((3,), 16, 16, two, 2).rank == (1, 2, 2, 1)
    w = FactorizedExpertTensor((3,), 16, 16, four, 2)
    assert [tuple(tensor.shape) for tensor in w.weight.operands][1:] == [(2, 2, 2, 2)] * 3 + [(2, 2, 2)]
    assert pickle.loads(pickle.dumps(four)) == four
    assert w(torch.randn(5, 16), [torch.rand(5, 3)]).shape == (5, 16)


def test_ranks() -> None:
    w = FactorizedExpertTensor((3,), 8, 8, "mpo", 50)
    assert w.rank == (1, 50, 50, 50, 1)
    assert w.decomposition.useful_rank(w.rank, (3, 8, 8)) == (1, 3, 12, 4, 1)
    message = (
        r"rank of TTMatrix is one int for each of the 5 bonds of 1 expert modes and 3 cores, the first and last 1, got "
    )
    for rank in ((1, 2, 1), (2, 2, 2, 2, 1), (1, 2, 2, 2, 2)):
        with pytest.raises(ValueError, match=message):
            FactorizedExpertTensor((3,), 8, 8, "tt_matrix", rank)
