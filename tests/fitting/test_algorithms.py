"""Fits: against the best possible ones, in all types and shapes, and what they leave alone."""

import pytest
import tensorly
import torch

from factorized_moe import Decomposition, FactorizedExpertTensor, Node, TensorNetwork
from factorized_moe.decompositions import GivenNetwork
from factorized_moe.fitting import fit
from factorized_moe.fitting.first_order import improve_by_gradients
from factorized_moe.fitting.least_squares import _conjugate_gradients, _twin, sweep
from factorized_moe.fitting.problem import Problem
from factorized_moe.fitting.starts import best_of_starts
from factorized_moe.testing import Structure, dense_from_nodes

BUILT_IN = ("cp", "tucker", "tt", "tr")


def dense(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("decomposition", "rank", "kept"),
    [("cp", 3, 3), ("tucker", (3, 3), 3), ("tt", (1, 3, 1), 3), ("tr", (1, 3, 1), 3), ("tr", (2, 2, 2), 4)],
)
def test_a_matrix_is_fitted_as_well_as_possible(decomposition: str, rank: int | tuple[int, ...], kept: int) -> None:
    """Eckart and Young: the best approximation of rank k leaves the singular values after the k-th."""
    matrix = dense(8, 9)
    values = torch.linalg.svdvals(matrix)
    best = (values[kept:].norm() / values.norm()).item()
    assert FactorizedExpertTensor.from_dense(matrix, decomposition, rank).relative_error(matrix) == pytest.approx(best)


@pytest.mark.thorough
@pytest.mark.parametrize("decomposition", BUILT_IN)
def test_more_rank_fits_no_worse(decomposition: str) -> None:
    target = dense(4, 5, 6)
    errors = [FactorizedExpertTensor.from_dense(target, decomposition, k).relative_error(target) for k in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 1.0


@pytest.mark.parametrize("decomposition", ["tucker", "tt"])
def test_a_rank_larger_than_useful_is_padded(decomposition: str) -> None:
    target = dense(2, 3, 4)
    w = FactorizedExpertTensor.from_dense(target, decomposition, 30)
    assert w.relative_error(target) < 1e-10
    assert set(w.rank) <= {1, 30}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("decomposition", BUILT_IN)
def test_every_floating_type_is_fitted(decomposition: str, dtype: torch.dtype) -> None:
    """TensorLy's algorithms fail in half precision, so fits are made in double precision."""
    exact = Structure((3,), 4, 5, 2).tensor(decomposition).to_dense().detach()
    w = FactorizedExpertTensor.from_dense(exact.to(dtype), decomposition, 2)
    assert w.weight.operands[0].dtype == dtype
    assert w.double().relative_error(exact) < 20 * torch.finfo(dtype).eps + 1e-3


@pytest.mark.parametrize("decomposition", BUILT_IN)
def test_a_tensor_of_zeros(decomposition: str) -> None:
    w = FactorizedExpertTensor.from_dense(torch.zeros(3, 4, 5), decomposition, 2)
    assert not w.to_dense().any()


@pytest.mark.thorough
@pytest.mark.parametrize("decomposition", BUILT_IN)
def test_nothing_else_changes(decomposition: str) -> None:
    target = dense(3, 4, 5).requires_grad_()
    transposed = target.permute(2, 1, 0)
    backend, state = tensorly.get_backend(), torch.get_rng_state()
    w = FactorizedExpertTensor.from_dense(transposed, decomposition, 2)
    assert tensorly.get_backend() == backend
    assert torch.equal(torch.get_rng_state(), state)
    assert target.grad is None
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in w.parameters())
    again = FactorizedExpertTensor.from_dense(transposed, decomposition, 2)
    for one, two in zip(w.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def from_modes(nodes: dict[str, str], **bonds: int) -> TensorNetwork:
    return TensorNetwork.from_modes((3,), 4, 5, nodes=nodes, bonds=bonds)


NETWORKS = {
    "a bond on three nodes": from_modes({"gate": "expert_0 b", "input": "in b", "output": "b out"}, b=2),
    "a loop": from_modes({"gate": "expert_0 a b", "input": "in b c", "output": "out c a"}, a=2, b=2, c=2),
    "a sum": from_modes({"gate": "expert_0 b", "core": "in b out"}, b=1)
    + TensorNetwork.from_modes((), 4, 5, nodes={"shared": "in out"}, bonds={}),
    "split modes": TensorNetwork.from_modes(
        (3,),
        4,
        6,
        nodes={"left": "expert_0 in_0 out_0 b", "right": "in_1 out_1 b"},
        bonds={"b": 2},
        in_labels={"in_0": 2, "in_1": 2},
        out_labels={"out_0": 2, "out_1": 3},
    ),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_least_squares_fits_any_network(case: str) -> None:
    network = NETWORKS[case]
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in network.parameter_shapes.items()
    }
    target = dense_from_nodes(network, tensors)
    fitted = fit(target, GivenNetwork(network), tuple(network.sizes[bond] for bond in network.bonds)).tensors
    assert {name: tuple(tensor.shape) for name, tensor in fitted.items()} == network.parameter_shapes
    assert (dense_from_nodes(network, fitted) - target).norm() < 1e-9 * target.norm()


class Tied(Decomposition):
    """Input and output share their factor."""

    def network(self, expert_dims: object, in_features: int, out_features: int, rank: int) -> TensorNetwork:
        nodes = [Node("one", ("in", "rank"), parameter="factor"), Node("two", ("out", "rank"), parameter="factor")]
        return TensorNetwork.from_modes((), in_features, out_features, nodes=nodes, bonds={"rank": rank})


def test_shared_parameters_are_fitted() -> None:
    factor = dense(6, 2)
    target = factor @ factor.mT
    fitted = fit(target, Tied(), 2)
    assert set(fitted.tensors) == {"factor"}
    assert fitted.relative_error < 1e-9


def test_a_sweep_keeps_an_exact_fit_of_a_padded_network() -> None:
    """Zeros as the padding's targets would pull it away."""
    network = TensorNetwork.parse("expert_0 a, in_0 a b, in_1 b, a out; expert_0=3 in_0=3 in_1=3 in=7 out=4 a=2 b=2")
    assert network.in_padding == 2
    w = FactorizedExpertTensor(network=network, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in w.weight.tensors.items()
    }
    w.weight.assign(tensors)
    problem = Problem(network, w.to_dense().detach())
    sweep(problem, tensors)
    assert problem.error(tensors) < 1e-9


def test_a_few_conjugate_gradients_come_nearer_to_the_least_squares() -> None:
    """Of the normal equations ``a a^T x = a b``: each step nearer, and there after as many as there are unknowns."""
    torch.manual_seed(0)
    a, b = torch.randn(5, 9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    exact = torch.linalg.solve(a @ a.T, a @ b)
    start = exact + torch.randn(5, dtype=torch.float64)
    twice = [(a, ["r", "sample"]), (a, [_twin("r"), "sample"])]
    found = _conjugate_gradients(twice, a @ b, start, ["r"], [])

    def distance(x: torch.Tensor) -> float:
        return float((a.T @ (x - exact)).norm())

    assert distance(found) < 0.2 * distance(start)


def test_iterations_are_those_that_were_reported() -> None:
    target = dense(4, 5, 6)
    for starts in (1, 3):
        network = TensorNetwork.parse("a: expert_0 r, b: in r, c: out r; expert_0=4 in=5 out=6 r=2")
        problem = Problem(network, target)
        reported: list[float] = []
        found = best_of_starts(problem, GivenNetwork(problem.network), (2,), 0, 0.0, reported.append, starts)
        assert found.iterations == len(reported) > 0


def test_gradients_go_on_while_the_error_falls() -> None:
    network = TensorNetwork.parse("a: expert_0 r, b: in r, c: out r; expert_0=4 in=5 out=6 r=2")
    generator = torch.Generator().manual_seed(0)
    target = Problem(network, dense(4, 5, 6)).dense(Problem(network, dense(4, 5, 6)).random(generator))
    problem = Problem(network, target)
    tensors = problem.random(generator)
    few, many = dict(tensors), dict(tensors)
    after_ten, _ = improve_by_gradients(problem, few, 10, lambda error: None)
    reported: list[float] = []
    error, steps = improve_by_gradients(problem, many, 400, reported.append)
    assert error < 0.01 * after_ten
    assert steps == 10 * len(reported) < 400  # it stood still before
    assert problem.error(many) == pytest.approx(error)
