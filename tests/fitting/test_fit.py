"""`fit`: exact recovery, TensorLy's own results as a limit, true errors, output errors, an error in place of a rank."""

import re
import sys

import numpy as np
import pytest
import tensorly
import tensorly.decomposition
import torch

from factorized_moe import FactorizedExpertTensor
from factorized_moe.decompositions.registry import registered_decompositions
from factorized_moe.fitting import error_bound, fit
from factorized_moe.testing import Structure


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.thorough
@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize("name", registered_decompositions())
def test_what_can_be_exact_is(name: str, seed: int) -> None:
    target = Structure((3, 2), 4, 6, 2, bias=True, seed=seed).tensor(name).to_dense().detach()
    fitted = fit(target, name, 2, bias=True)
    assert fitted.relative_error < 1e-9
    assert fitted.error_bound == 0.0
    w = FactorizedExpertTensor.from_fit(fitted)
    assert w.bias
    assert w.relative_error(target) == pytest.approx(fitted.relative_error, abs=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_no_worse_than_tensorly(seed: int) -> None:
    target = gaussian(5, 9, 8, seed=seed)
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        (core, factors), _ = tensorly.decomposition.partial_tucker(target, rank=[4, 3], modes=[1, 2])
        dense = torch.einsum("nab,ia,ob->nio", core, *factors)
        partial = float((dense - target).norm() / target.norm())
        cp = tensorly.cp_to_tensor(tensorly.decomposition.parafac(target, 4, random_state=0))
        parafac = float((cp - target).norm() / target.norm())
    assert fit(target, "tucker", (5, 4, 3)).relative_error <= partial + 1e-12
    assert fit(target, "cp", 4).relative_error <= parafac + 1e-12


@pytest.mark.parametrize("name", registered_decompositions())
def test_errors_are_true_and_above_the_bound(name: str) -> None:
    target = gaussian(4, 5, 6, seed=1)
    fitted = fit(target, name, 1)
    difference = fitted.to_dense() - target
    assert fitted.relative_error == pytest.approx(float(difference.norm() / target.norm()), abs=1e-12)
    expected = difference.norm(dim=(1, 2)) / target.norm(dim=(1, 2))
    torch.testing.assert_close(fitted.expert_errors, expected, atol=1e-12, rtol=1e-9)
    assert fitted.error_bound <= fitted.relative_error + 1e-12
    assert fitted.num_parameters == sum(tensor.numel() for tensor in fitted.tensors.values())


def test_the_bound_is_the_best_of_a_matrix_and_of_every_cut() -> None:
    matrix = gaussian(6, 7)
    assert fit(matrix, "low_rank", 2).relative_error == pytest.approx(fit(matrix, "low_rank", 2).error_bound)
    target = gaussian(4, 5, 6)
    network = FactorizedExpertTensor((4,), 5, 6, "tt", (1, 2, 3, 1)).network
    first = torch.linalg.svdvals(target.reshape(4, 30))[2:].norm() / target.norm()
    second = torch.linalg.svdvals(target.reshape(20, 6))[3:].norm() / target.norm()
    assert error_bound(target, network) == pytest.approx(float(max(first, second)))


def test_the_bound_of_odd_targets() -> None:
    network = FactorizedExpertTensor((2,), 3, 4, "cp", 1).network
    assert error_bound(torch.zeros(2, 3, 4), network) == 0.0
    with pytest.raises(ValueError, match=r"dense has shape \(2, 2, 2\), expected .* \(2, 3, 4\)"):
        error_bound(torch.ones(2, 2, 2), network)
    with pytest.raises(ValueError, match="the target has a NaN or an infinite entry; a bound needs finite values"):
        error_bound(torch.full((2, 3, 4), float("nan")), network)


@pytest.mark.parametrize("name", ["cp", "tt", "kronecker", "shared_private"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_error_of_the_outputs(name: str, bias: bool) -> None:
    """Better on the inputs than a fit of the weights; told truly; inputs of a few directions are no obstacle."""
    target = gaussian(3, 6 + bias, 5)
    inputs = gaussian(40, 3, seed=1) @ gaussian(3, 6, seed=2) * 2.0 + 0.5
    rows = torch.nn.functional.pad(inputs, (0, int(bias)), value=1.0)
    outputs = rows @ target
    plain, fitted = fit(target, name, 1, bias=bias), fit(target, name, 1, bias=bias, activations=inputs)

    def output_error(dense: torch.Tensor) -> float:
        return float((rows @ dense - outputs).norm() / outputs.norm())

    assert fitted.relative_error == pytest.approx(output_error(fitted.to_dense()), rel=1e-6)
    assert fitted.relative_error < output_error(plain.to_dense())
    assert fitted.error_bound <= fitted.relative_error
    moment = rows.mT @ rows / len(rows)
    same = fit(target, name, 1, bias=bias, input_covariance=moment)
    assert same.relative_error == pytest.approx(fitted.relative_error, rel=1e-3)


@pytest.mark.parametrize("name", ["cp", "tt", "kronecker", "shared_private", "tt_matrix", "mixture_of_decoders"])
@pytest.mark.parametrize("both", [False, True])
def test_errors_of_outputs_weighed_by_their_gradients(name: str, both: bool) -> None:
    """Better in that norm than a fit of the weights, whether or not a node can take the root; told truly."""
    target = gaussian(3, 6, 4)
    inputs = gaussian(40, 3, seed=1) @ gaussian(3, 6, seed=2)
    gradients = gaussian(40, 2, seed=3) @ gaussian(2, 4, seed=4) + 0.1 * gaussian(40, 4, seed=5)
    moments = {"input_covariance": inputs.mT @ inputs / 40} if both else {}
    weights = gradients.mT @ gradients / 40
    plain, fitted = fit(target, name, 1, **moments), fit(target, name, 1, **moments, output_covariance=weights)

    def size(matrices: torch.Tensor) -> torch.Tensor:
        """The root mean square of ``g^T M^T x``, over all pairs of an input and a gradient."""
        return ((inputs if both else torch.eye(6).double()) @ matrices @ gradients.mT).norm(dim=(-2, -1))

    def error(dense: torch.Tensor) -> float:
        return float(size(dense - target).norm() / size(target).norm())

    assert fitted.relative_error == pytest.approx(error(fitted.to_dense()), rel=1e-6)
    torch.testing.assert_close(fitted.expert_errors, size(fitted.to_dense() - target) / size(target))
    assert fitted.relative_error < 0.98 * error(plain.to_dense())
    assert fitted.error_bound <= fitted.relative_error
    layer = FactorizedExpertTensor.from_dense(target, name, 1, **moments, output_covariance=weights)
    torch.testing.assert_close(layer.to_dense(), fitted.to_dense())


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["cp", "tt", "dense"])
def test_an_error_in_place_of_a_rank(name: str) -> None:
    target = Structure((4,), 7, 6, 3, seed=2).tensor(name).to_dense().detach()
    target = target + 0.01 * target.norm() * gaussian(4, 7, 6) / gaussian(4, 7, 6).norm()
    fitted = fit(target, name, error=0.05)
    assert fitted.relative_error <= 0.05
    if name != "dense":
        smaller = max(fitted.rank) if isinstance(fitted.rank, tuple) else fitted.rank
        assert smaller <= 3
        assert fit(target, name, smaller - 1).relative_error > 0.05


def test_half_precision_errors_count_the_rounding() -> None:
    target = Structure((3,), 4, 5, 2).tensor("cp").to_dense().detach()
    fitted = fit(target.bfloat16(), "cp", 2)
    assert all(tensor.dtype == torch.bfloat16 for tensor in fitted.tensors.values())
    assert 1e-4 < fitted.relative_error < 2e-2


def test_types_of_eight_bits_are_fitted() -> None:
    target = Structure((3,), 4, 5, 2).tensor("cp").to_dense().detach()
    fitted = fit(target.to(torch.float8_e5m2), "cp", 2, dtype=torch.float32)
    assert all(tensor.dtype == torch.float32 for tensor in fitted.tensors.values())
    assert 1e-3 < fitted.relative_error < 0.5
    with pytest.raises(TypeError, match="of 16 bits or more"):  # no layer computes in less
        fit(target, "cp", 2, dtype=torch.float8_e5m2)


def test_a_seed_may_be_numpy_s() -> None:
    target = gaussian(3, 4, 5)
    one, other = fit(target, "cp", 2, seed=3), fit(target, "cp", 2, seed=np.int64(3))
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def test_the_scale_does_not_matter() -> None:
    target = gaussian(3, 4, 5)
    error = fit(target, "cp", 2).relative_error
    for scale in (1e-100, 1e100):
        assert fit(target * scale, "cp", 2).relative_error == pytest.approx(error, rel=1e-4)


def test_progress_is_shown_and_tqdm_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("tqdm")
    fit(gaussian(3, 4, 5), "kronecker", 1, progress=True)
    assert "fit" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("a progress bar needs tqdm")):
        fit(gaussian(3, 4, 5), "cp", 1, progress=True)


ONES = torch.ones(2, 3, 4)
ERRORS = {
    "neither": ({"rank": None}, TypeError, r"give a rank, or to fit\(\) an error in its place; got none"),
    "both": ({"error": 0.1}, TypeError, r"give a rank, or to fit\(\) an error in its place; got both"),
    "meta": ({"dense": ONES.to("meta")}, ValueError, "the meta device holds no values to fit"),
    "empty": ({"dense": ONES[:, :0]}, ValueError, r"shape \(2, 0, 4\) is empty; every mode needs an entry"),
    "infinite": ({"dense": ONES / 0}, ValueError, "has a NaN or an infinite entry; a fit needs finite values"),
    "too large": ({"dense": ONES.double() * 1e200}, ValueError, "largest entry is 1e[+]200, whose square float64"),
    "too small": ({"dense": ONES.double() * 1e-200}, ValueError, "largest entry is 1e-200, whose square float64"),
    "sparse": ({"dense": ONES.to_sparse()}, TypeError, r"got a tensor of layout torch.sparse_coo; call to_dense\(\)"),
    "bias in words": ({"bias": "no"}, TypeError, "bias must be True or False, got 'no'"),
    "progress in words": ({"progress": "no"}, TypeError, "progress must be True or False, got 'no'"),
    "seed in words": ({"seed": "one"}, TypeError, "seed is an int, got 'one'"),
    "seed too large": ({"seed": 2**70}, ValueError, r"seed is an int from -2\*\*63 to 2\*\*64 - 1, got 11805916207"),
    "large inputs": (
        {"activations": ONES[0].double().mT[:, :3] * 1e200},
        ValueError,
        "second moment has entries of up to inf; scale the inputs",
    ),
    "two norms": (
        {"activations": ONES[0, :, :3], "input_covariance": torch.eye(3)},
        TypeError,
        "give activations or input_covariance, not both",
    ),
    "no tensor": ({"activations": 3}, TypeError, "activations must be a tensor of a real floating type, got int"),
    "NaN inputs": ({"activations": ONES[0, :, :3] * float("nan")}, ValueError, "activations has a NaN"),
    "width": ({"activations": ONES}, ValueError, r"activations have shape \(2, 3, 4\), expected \(\*samples, 3\)"),
    "covariance": ({"input_covariance": torch.eye(4)}, ValueError, r"expected \(3, 3\)$"),
    "zero inputs": ({"activations": torch.zeros(5, 3)}, ValueError, "the inputs are all zero"),
    "asymmetric": ({"input_covariance": torch.ones(3, 3).tril()}, ValueError, "input_covariance is not symmetric"),
    "output": ({"output_covariance": torch.eye(3)}, ValueError, r"has shape \(3, 3\), expected \(4, 4\)"),
    "output ints": (
        {"output_covariance": torch.eye(4).int()},
        TypeError,
        "output_covariance must be a tensor of a real",
    ),
    "output asymmetric": ({"output_covariance": torch.ones(4, 4).tril()}, ValueError, r"symmetric; give E\[g g\^T\]"),
    "output zero": (
        {"output_covariance": torch.zeros(4, 4)},
        ValueError,
        "all zero: no error of an output would count",
    ),
    "negative": ({"input_covariance": -torch.eye(3)}, ValueError, "has a negative eigenvalue"),
    "no outputs": (
        {"activations": torch.tensor([[1.0, -1.0, 0.0]])},
        ValueError,
        "outputs on these inputs are all zero",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    options, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        fit(**{"dense": ONES, "decomposition": "cp", "rank": 1, **options})


@pytest.mark.parametrize("error", [0, 1.0, True, "small"])
def test_an_error_is_a_fraction(error: object) -> None:
    with pytest.raises(ValueError, match=f"error is a number above 0 and below 1, got {error!r}"):
        fit(ONES, "cp", error=error)  # type: ignore[arg-type]


def test_an_error_out_of_reach() -> None:
    target = gaussian(4, 3, 3)
    with pytest.raises(ValueError, match=r"no rank up to \d+ reaches a relative error of 0.0001"):
        fit(target.half(), "cp", error=1e-4)  # rounding alone makes more


def test_starts_and_seed_reach_from_dense() -> None:
    """More starts find a better tensor ring here, and the result is that of `fit` with the same arguments."""
    dense = torch.randn(6, 7, 8, generator=torch.Generator().manual_seed(0))
    errors = {}
    for starts, seed in ((1, 0), (10, 0), (10, 1)):
        w = FactorizedExpertTensor.from_dense(dense, "tr", 2, starts=starts, seed=seed)
        fitted = fit(dense, "tr", 2, starts=starts, seed=seed)
        assert all(torch.equal(a, b) for a, b in zip(w.weight.operands, fitted.operands, strict=True))
        errors[starts, seed] = w.relative_error(dense)
    assert errors[10, 0] < errors[1, 0]
    ways = [fit(dense, "block_term", (2, 2, 2, 2), starts=1, seed=seed) for seed in range(2)]
    assert not torch.equal(ways[0].operands[0], ways[1].operands[0])


@pytest.mark.parametrize("starts", [0, -1])
def test_starts_are_positive(starts: int) -> None:
    with pytest.raises(ValueError, match=rf"starts is a positive int, got {starts}|starts must be .*{starts}"):
        fit(gaussian(3, 4, 5), "cp", 1, starts=starts)
