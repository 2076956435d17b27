"""Spectra and similarities through the factors, against those of the experts' matrices."""

import math

import pytest
import torch
from torch import Tensor

from factorized_moe import FactorizedExpertTensor, TensorNetwork, available_decompositions
from factorized_moe.interpret import measure_similarity, measure_spectra
from factorized_moe.interpret.measures import spectra as weights


def matrices(experts: FactorizedExpertTensor) -> Tensor:
    """All experts without their biases, ``(N, I, O)``, float64."""
    dense = experts.to_dense().detach().double()
    return dense.reshape(-1, *dense.shape[-2:])[:, : experts.in_features]


def check(experts: FactorizedExpertTensor) -> None:
    exact = matrices(experts)
    values = torch.linalg.svdvals(exact)  # (N, min(I, O))
    found = measure_spectra(experts).singular_values
    padded = torch.nn.functional.pad(found, (0, values.shape[1] - found.shape[1]))
    torch.testing.assert_close(padded, values, rtol=0, atol=2e-6 * float(values.max()))
    assert (found[:, :-1] >= found[:, 1:]).all()
    largest = measure_spectra(experts).to_pandas()["largest_singular_value"]
    torch.testing.assert_close(torch.tensor(largest), values[:, 0], rtol=0, atol=2e-6 * float(values.max()))
    flat = exact.flatten(1)
    norms = flat.norm(dim=1)
    similarity = measure_similarity(experts)
    torch.testing.assert_close(similarity.norms, norms, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(similarity.cosines, flat @ flat.T / norms[:, None] / norms, rtol=0, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("decomposition", available_decompositions())
@pytest.mark.parametrize("expert_dims", [(), (5,), (3, 2)], ids=str)
def test_every_decomposition(decomposition: str, expert_dims: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(weights, "MATRIX_ELEMENTS", 200)  # some experts at a time
    for sizes, rank, bias in (((6, 9), 1, False), ((10, 4), 2, True)):
        check(FactorizedExpertTensor(expert_dims, *sizes, decomposition, rank, bias=bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_types(dtype: torch.dtype) -> None:
    experts = FactorizedExpertTensor((4,), 9, 8, "tr", rank=2, dtype=torch.float64).to(dtype)
    reference = FactorizedExpertTensor((4,), 9, 8, "tr", rank=2, dtype=torch.float64)
    reference.load_state_dict(experts.state_dict())
    assert torch.equal(measure_spectra(experts).singular_values, measure_spectra(reference).singular_values)
    check(reference)


@pytest.mark.parametrize(
    "text",
    [
        "a: expert_0 r, b: in r, c: in r, d: r out; expert_0=3 in=6 out=7 r=2",  # two nodes carry the input
        "a: expert_0 in r, b: r out; expert_0=3 in=6 out=7 r=2",  # experts' own input factors
        "a: in r, b: r expert_0 out + c: in s, d: s out; expert_0=3 in=8 out=7 r=2 s=3",  # a sum
        "a: expert_0 r, b: in r, c@b: out r; expert_0=3 in=6 out=6 r=2",  # one parameter for both sides
    ],
    ids=["hyper-edge", "own-inputs", "sum", "shared"],
)
@pytest.mark.parametrize("bias", [False, True])
def test_networks_by_hand(text: str, bias: bool) -> None:
    torch.manual_seed(0)
    check(FactorizedExpertTensor(network=TensorNetwork.parse(text), bias=bias))


def test_the_factors_show_how_many_singular_values_there_are() -> None:
    cp = FactorizedExpertTensor((4,), 30, 20, "cp", rank=3)
    assert measure_spectra(cp).singular_values.shape == (4, 3)
    ring = FactorizedExpertTensor((4,), 30, 20, "tr", rank=(2, 3, 4, 2))
    assert measure_spectra(ring).singular_values.shape == (4, 8)
    full = FactorizedExpertTensor((4,), 30, 20, "cp", rank=50)
    assert measure_spectra(full).singular_values.shape == (4, 20)


def test_effective_rank_of_known_matrices() -> None:
    experts = FactorizedExpertTensor((4,), 4, 4, "dense", rank=1)
    (parameter,) = experts.parameters()
    with torch.no_grad():
        parameter.copy_(
            torch.stack([torch.eye(4), torch.zeros(4, 4), torch.ones(4, 4), torch.diag(torch.tensor([3.0, 1, 0, 0]))])
        )
    spectra = measure_spectra(experts)
    mixed = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert spectra.effective_rank.tolist() == pytest.approx([4, 0, 1, mixed], abs=1e-6)
    assert spectra.norms.tolist() == pytest.approx([2, 0, 4, math.sqrt(10)])
    similarity = measure_similarity(experts)
    assert similarity.nearest.tolist() == [3, 0, 0, 0]
    assert similarity.cosines[1].isnan().all()
    assert len(spectra.to_pandas()) == len(similarity.to_pandas()) == 4
    assert similarity.columns()["cosine"][3] == pytest.approx(4 / (2 * math.sqrt(10)))
    alone = measure_similarity(FactorizedExpertTensor((), 4, 4, "cp", rank=1))
    assert alone.nearest.tolist() == [-1]
    assert math.isnan(alone.columns()["cosine"][0])


def test_weights_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = FactorizedExpertTensor((4,), 5, 3, "cp", rank=2)
    monkeypatch.setattr(weights, "MOST_SIMILAR", 3)
    with pytest.raises(ValueError, match="4 experts have 4 x 4 similarities, 3 experts are the most"):
        measure_similarity(experts)
    with torch.no_grad():
        experts.weight.input[0, 0] = torch.nan
    monkeypatch.setattr(weights, "MOST_SIMILAR", 4)
    for measure in (measure_spectra, measure_similarity):
        with pytest.raises(ValueError, match=r"parameter 'input' holds a NaN or an infinite value"):
            measure(experts)
