"""From a dense tensor to a decomposition's parameters: TensorLy's algorithms, or alternating least squares.

This is the only module that imports ``tensorly.decomposition``. Everything runs in float64 without gradients,
whatever the dense tensor's type: TensorLy's algorithms fail in half precision.
"""

from __future__ import annotations

import warnings

import tensorly
import tensorly.decomposition
import torch
from torch import Tensor

from factorized_moe.contraction import dense_tensor
from factorized_moe.decompositions import Decomposition
from factorized_moe.decompositions.base import Rank
from factorized_moe.network import Node, TensorNetwork

__all__ = ["alternating_least_squares", "fit"]

EXACT = 1e-12
SWEEPS = 200
RESTARTS = 3


def fit(dense: Tensor, decomposition: Decomposition, network: TensorNetwork, rank: Rank) -> dict[str, Tensor]:
    """Parameters whose dense tensor approximates a given one.

    Args:
        dense: The tensor to approximate, ``(*expert_dims, I, O)``, of any floating type.
        decomposition: The decomposition, for its algorithm.
        network: Its network of the dense tensor's shape.
        rank: The canonical rank the network was made with.

    Returns:
        The parameters by name, float64, on the dense tensor's device.

    Raises:
        ValueError: If the tensor has a NaN or an infinite entry.
    """
    if not torch.isfinite(dense).all():
        raise ValueError("the dense tensor has a NaN or an infinite entry; a fit needs finite values")
    target = dense.detach().to(torch.float64)
    with torch.no_grad():
        if not target.any():
            return {name: target.new_zeros(shape) for name, shape in network.parameter_shapes.items()}
        if decomposition.tensorly_algorithm is None or target.ndim < 3:
            return alternating_least_squares(target, network)
        return _best_of_tensorly(target, decomposition, network, rank)


def _best_of_tensorly(
    target: Tensor, decomposition: Decomposition, network: TensorNetwork, rank: Rank
) -> dict[str, Tensor]:
    """The best result of TensorLy's algorithm over the decomposition's starts, stopping at an exact one."""
    assert decomposition.tensorly_algorithm is not None  # the caller has checked it
    algorithm = getattr(tensorly.decomposition, decomposition.tensorly_algorithm)
    useful = decomposition.useful_rank(rank, tuple(target.shape))
    best, best_error = None, float("inf")
    for options in decomposition.tensorly_starts:
        with tensorly.backend_context("pytorch", local_threadsafe=True), warnings.catch_warnings():
            # TensorLy warns when a rank exceeds a mode; such ranks are allowed here and only cost parameters.
            warnings.simplefilter("ignore")
            fitted = decomposition.from_tensorly(algorithm(target, rank=useful, **options))
        tensors = {name: _pad(fitted[name], shape) for name, shape in network.parameter_shapes.items()}
        dense = dense_tensor(network, [tensors[node.parameter] for node in network.nodes])
        error = ((dense - target).norm() / target.norm()).item()
        if best is None or error < best_error:
            best, best_error = tensors, error
        if error < EXACT:
            break
    assert best is not None  # every decomposition has a start
    return best


def _pad(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros at the end of axes that are too short: bonds longer than the tensor can use."""
    padding = [
        p for size, wanted in zip(reversed(tensor.shape), reversed(shape), strict=True) for p in (0, wanted - size)
    ]
    return torch.nn.functional.pad(tensor, padding)


def alternating_least_squares(target: Tensor, network: TensorNetwork) -> dict[str, Tensor]:
    """Fit any network: each node in turn is the least-squares solution given the others.

    From a random start this can stop in a local minimum, so the best of a few starts is returned.

    Args:
        target: The dense tensor, float64, ``(*expert_dims, I, O)``.
        network: The network; no two nodes may share a parameter.

    Raises:
        TypeError: If two nodes share a parameter.
    """
    if len(network.parameter_shapes) != len(network.nodes):
        raise TypeError("a network whose nodes share a parameter is not linear in it; fit it by gradient descent")
    target = torch.nn.functional.pad(target, (0, 0, 0, network.in_padding))
    target = target.reshape([network.sizes[label] for label in network.external_labels])
    generator = torch.Generator().manual_seed(0)
    best: tuple[float, dict[str, Tensor]] | None = None
    for _ in range(RESTARTS):
        tensors = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).to(target.device)
            for name, shape in network.parameter_shapes.items()
        }
        error = _sweep(target, network, tensors)
        if best is None or error < best[0]:
            best = error, tensors
        if error < EXACT:
            break
    assert best is not None  # RESTARTS is positive
    return best[1]


def _sweep(target: Tensor, network: TensorNetwork, tensors: dict[str, Tensor]) -> float:
    """Sweep over the nodes until the relative error stands still; the tensors are changed in place."""
    scale = target.norm()
    error = float("inf")
    for _ in range(SWEEPS):
        for term in network.terms:
            for node in term:
                rest = target - sum(
                    (_contract(network, other, tensors) for other in network.terms if other is not term),
                    target.new_zeros(()),
                )
                _solve_node(rest, network, term, node, tensors)
        total = sum((_contract(network, term, tensors) for term in network.terms), target.new_zeros(()))
        previous, error = error, ((target - total * _known(network, target)).norm() / scale).item()
        if previous - error < 1e-13:
            break
    return error


def _contract(network: TensorNetwork, term: tuple[Node, ...], tensors: dict[str, Tensor]) -> Tensor:
    """The dense tensor of one term, with size-1 axes where the term lacks a label."""
    return _environment(network, term, tensors, network.external_labels)


def _known(network: TensorNetwork, like: Tensor) -> Tensor:
    """1 for the entries of the dense tensor, 0 for those that pad the input group; axes as `external_labels`."""
    group = torch.arange(network.size_of(network.in_labels), device=like.device) < network.shape[-2]
    inputs = [network.sizes[x] if x in network.in_labels else 1 for x in network.external_labels]
    return group.to(like.dtype).reshape(inputs)


def _environment(
    network: TensorNetwork, nodes: tuple[Node, ...], tensors: dict[str, Tensor], output: tuple[str, ...]
) -> Tensor:
    """Some nodes contracted, with the axes ``output`` in order; size 1 where no node has the label."""
    if not nodes:
        return next(iter(tensors.values())).new_ones([1] * len(output))
    present = tuple(x for x in output if any(x in node.labels for node in nodes))
    letters = {label: k for k, label in enumerate(network.sizes)}
    arguments: list[object] = []
    for node in nodes:
        arguments += [tensors[node.parameter], [letters[x] for x in node.labels]]
    result = torch.einsum(*arguments, [letters[x] for x in present])
    return result.reshape([network.sizes[x] if x in present else 1 for x in output])


def _solve_node(
    rest: Tensor, network: TensorNetwork, term: tuple[Node, ...], node: Node, tensors: dict[str, Tensor]
) -> None:
    others = tuple(other for other in term if other is not node)
    elsewhere = {label for other in others for label in other.labels}
    external = list(network.external_labels)
    # One system for each value of these; padding leaves the values of an input label with different equations.
    both = [
        x for x in external if x in node.labels and (x in elsewhere or (network.in_padding and x in network.in_labels))
    ]
    own = [x for x in node.labels if x in external and x not in both]  # right-hand sides
    bonds = [x for x in node.labels if x not in external]  # unknowns
    rows = [x for x in external if x not in both and x not in own]  # equations
    size = network.size_of
    matrix = _environment(network, others, tensors, (*both, *rows, *bonds))
    matrix = matrix.expand([network.sizes[x] for x in (*both, *rows, *bonds)])
    matrix = matrix.reshape(size(both), size(rows), size(bonds))
    arranged = [external.index(x) for x in (*both, *rows, *own)]
    right = rest.expand([network.sizes[x] for x in external]).permute(arranged)
    right = right.reshape(size(both), size(rows), size(own))
    if network.in_padding:  # the padding may hold anything: its equations are left out
        known = _known(network, rest).expand([network.sizes[x] for x in external]).permute(arranged)
        known = known.reshape(size(both), size(rows), size(own))
        matrix, right = matrix * known[..., :1], right * known
    solution = torch.linalg.lstsq(matrix, right, driver="gelsd").solution  # (both, bonds, own)
    solution = solution.reshape([network.sizes[x] for x in (*both, *bonds, *own)])
    order = [*both, *bonds, *own]
    tensors[node.parameter] = solution.permute([order.index(x) for x in node.labels]).contiguous()
