"""A fit from end to end: checks, starts, improvement, and the measured result.

Legend: ``N_k`` experts of mode k, ``I`` in_features (one more with a bias), ``O`` out_features.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from factorized_moe.decompositions import Decomposition, get_decomposition
from factorized_moe.decompositions.base import RankLike
from factorized_moe.fitting.bounds import error_bound
from factorized_moe.fitting.result import Fit, measure_errors
from factorized_moe.fitting.starts import best_of_starts
from factorized_moe.network import TensorNetwork
from factorized_moe.validation import check_dense, check_dtype, check_network

__all__ = ["fit"]


@torch.no_grad()
def fit(
    dense: Tensor,
    decomposition: str | Decomposition = "cp",
    rank: RankLike | None = None,
    *,
    error: float | None = None,
    bias: bool = False,
    activations: Tensor | None = None,
    input_covariance: Tensor | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Fit:
    """Approximate a dense tensor by a decomposition of a given rank, or of the smallest that reaches an error.

    TensorLy's algorithm, where it has one, and least squares derived from the network; the best result of several
    starts. Computed in float64 whatever the type, and the same for the same arguments.

    Args:
        dense: The tensor, ``(*expert_dims, I, O)``, with one more row of each matrix if ``bias``.
        decomposition: A registered name or an instance.
        rank: As for `FactorizedExpertTensor`.
        error: In place of a rank, the largest ``relative_error``; the smallest int rank that reaches it is searched.
        bias: Whether the last row of each expert's matrix is its bias, which meets an input of 1.
        activations: Inputs of the layer, ``(*samples, I)`` without the bias's 1: the error of the outputs on them is
            minimised and reported, in place of the weights' own.
        input_covariance: The same from the inputs' second moment ``E[x x^T]``, ``(I, I)``; with a bias it may
            count the constant 1 as the last input, and inputs of mean zero are assumed if it does not.
        dtype: The parameters' type; the dense tensor's by default.
        seed: Where random starts come from.
        progress: Whether to show a progress bar.

    Returns:
        The parameters, their errors and how they were found.

    Raises:
        TypeError: If the tensor is not of a real floating type, or neither or both of rank and error are given.
        ValueError: If the tensor is empty, on the meta device or has an entry that is not finite; if the parameters
            overflow their type; or if no rank reaches the error.

    Example:
        >>> experts = torch.randn(8, 16, 12, generator=torch.Generator().manual_seed(0))
        >>> fitted = fit(experts, "tucker", rank=(6, 10, 8))
        >>> fitted.error_bound <= fitted.relative_error < 0.7
        True
        >>> fit(experts, "tt", error=0.5).rank
        (1, 8, 8, 1)
    """
    begun = time.perf_counter()
    check_dense(dense)
    check_dtype(dtype)
    _check_values(dense)
    source = get_decomposition(decomposition)
    if rank is None:
        raise TypeError("rank is missing")
    shape = tuple(dense.shape)
    resolved = source.resolve_rank(rank, shape)
    network = _network(source, shape, resolved)
    if len(network.parameter_shapes) != len(network.nodes):
        raise TypeError("a network whose nodes share a parameter is not linear in it; fit it by gradient descent")
    useful = source.useful_rank(resolved, shape)
    target = dense.detach().to(torch.float64)
    kind = dtype or dense.dtype
    if target.any():
        found = best_of_starts(target, source, _network(source, shape, useful), useful, seed)
        tensors = {name: _pad(found.tensors[name], size).to(kind) for name, size in network.parameter_shapes.items()}
        iterations, method = found.iterations, found.method
        bound = error_bound(target, network)
    else:
        tensors = {name: target.new_zeros(size, dtype=kind) for name, size in network.parameter_shapes.items()}
        iterations, method, bound = 0, "zeros", 0.0
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise ValueError(f"the fitted parameters overflow {kind}; give a wider dtype")
    total, experts = measure_errors(network, tensors, target, None)
    seconds = time.perf_counter() - begun
    return Fit(source, resolved, network, bias, tensors, total, experts, bound, iterations, seconds, method)


def _check_values(dense: Tensor) -> None:
    if dense.is_meta:
        raise ValueError("the dense tensor is on the meta device and has no values; a fit needs them")
    if not dense.numel():
        raise ValueError(f"the dense tensor of shape {tuple(dense.shape)} is empty; every mode needs an entry")
    if not torch.isfinite(dense).all():
        raise ValueError("the dense tensor has a NaN or an infinite entry; a fit needs finite values")


def _network(source: Decomposition, shape: tuple[int, ...], rank: object) -> TensorNetwork:
    network = source.network(shape[:-2], shape[-2], shape[-1], rank)
    check_network(network, shape, source)
    return network


def _pad(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros at the end of axes that are too short: bonds longer than the tensor can use."""
    padding = [
        p for size, wanted in zip(reversed(tensor.shape), reversed(shape), strict=True) for p in (0, wanted - size)
    ]
    return torch.nn.functional.pad(tensor, padding)
