"""A fit from end to end: checks, starts, improvement, and the measured result.

Legend: ``N_k`` experts of mode k, ``I`` in_features (one more with a bias), ``O`` out_features.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from factorized_moe._scalars import is_number
from factorized_moe._validation import (
    check_countable,
    check_dense,
    check_dtype,
    check_flag,
    check_network,
    check_seed,
    check_size,
)
from factorized_moe.budgets import SizeLike
from factorized_moe.budgets.ranks import rank_of_tensor
from factorized_moe.decompositions import Decomposition, get_decomposition
from factorized_moe.decompositions.base import Rank
from factorized_moe.fitting.bounds import error_bound
from factorized_moe.fitting.problem import Problem, Report
from factorized_moe.fitting.progress import progress_bar
from factorized_moe.fitting.result import Fit, measure_errors
from factorized_moe.fitting.smallest_rank import smallest_rank_fit
from factorized_moe.fitting.starts import Found, best_of_starts, improve_start
from factorized_moe.fitting.whitening import Roots, absorbs, divide, input_moment, moment_roots, output_moment
from factorized_moe.network import TensorNetwork

__all__ = ["fit"]

SMALLEST, LARGEST = 1e-150, 1e150
"""Limits of the largest entry: errors are sums of squares in float64."""


@torch.no_grad()
def fit(
    dense: Tensor,
    decomposition: str | Decomposition = "cp",
    rank: SizeLike | None = None,
    *,
    error: float | None = None,
    bias: bool = False,
    activations: Tensor | None = None,
    input_covariance: Tensor | None = None,
    output_covariance: Tensor | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    starts: int | None = None,
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
        input_covariance: The same from the inputs' second moment ``E[x x^T]``, symmetric, ``(I, I)``; with a bias it
            may be ``(I + 1, I + 1)``, the constant 1 as the last input; inputs of mean zero are assumed if it is not.
        output_covariance: How much errors of the outputs count, symmetric, ``(O, O)``: an error ``e`` as ``e^T D e``.
            Given the second moment ``E[g g^T]`` of a loss's gradients at the outputs, what the loss hardly feels may be
            lost.
        dtype: The parameters' type; the dense tensor's by default.
        seed: Where random starts come from.
        starts: The most random starts, beside TensorLy's algorithm; chosen by the tensor's size by default.
        progress: Whether to show a progress bar.

    Returns:
        The parameters, their errors and how they were found.

    Raises:
        TypeError: If the tensor is not of a real floating type, or neither or both of rank and error are given.
        ValueError: If the tensor is empty, on the meta device, has an entry that is not finite or is beyond 1e150 or
            below 1e-150 as a whole; if a covariance is of another shape, not symmetric or has a negative eigenvalue; if
            the parameters overflow their type; or if no rank reaches the error.

    Examples:
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
    for name, flag in (("bias", bias), ("progress", progress)):
        check_flag(name, flag)
    seed = check_seed(seed)
    starts = None if starts is None else check_size("starts", starts)
    target = dense.detach().to(torch.float64)
    _check_values(target)
    if (rank is None) == (error is None):
        raise TypeError("give a rank, or to fit() an error in its place; got " + ("none" if rank is None else "both"))
    moment = input_moment(dense.shape[-2], bias, activations, input_covariance, dense.device)
    weights = output_moment(dense.shape[-1], output_covariance, dense.device)
    roots = Roots(*(None if given is None else moment_roots(given) for given in (moment, weights)))
    if target.any() and not roots.weigh(target).any():
        raise ValueError("the dense tensor's outputs on these inputs are all zero: no error of the outputs to minimise")
    source = get_decomposition(decomposition)
    job = _Job(source, target, roots, bias, dtype or dense.dtype, seed, starts, begun)
    with progress_bar(progress) as report:
        if rank is not None:
            return job.fit(rank_of_tensor(rank, tuple(dense.shape), source, bias=bias), report)
        return job.fit_to_error(error, report)


@dataclass(frozen=True, eq=False)
class _Job:
    """What stays the same for all ranks of one call."""

    source: Decomposition
    target: Tensor
    roots: Roots
    bias: bool
    dtype: torch.dtype
    seed: int
    starts: int | None
    begun: float

    def fit(self, rank: Rank, report: Report) -> Fit:
        network, useful = self.network(rank), self.source.useful_rank(rank, tuple(self.target.shape))
        for name, size in network.parameter_shapes.items():
            check_countable(f"parameter {name!r}", size)
        found = self.parameters(self.network(useful), useful, report)
        tensors = {name: _pad(found.tensors[name], size) for name, size in network.parameter_shapes.items()}
        tensors = {name: tensor.to(self.dtype).contiguous() for name, tensor in tensors.items()}
        if not all(torch.isfinite(tensor.to(torch.float64)).all() for tensor in tensors.values()):
            raise ValueError(f"the fitted parameters overflow {self.dtype}; give a wider dtype")
        total, experts = measure_errors(network, tensors, self.target, self.roots)
        bound, seconds = self.bound(network), time.perf_counter() - self.begun
        return Fit(
            self.source,
            rank,
            network,
            self.bias,
            tensors,
            total,
            experts,
            bound,
            found.iterations,
            seconds,
            found.method,
        )

    def fit_to_error(self, error: float | None, report: Report) -> Fit:
        if not is_number(error) or not 0.0 < float(error) < 1.0:
            raise ValueError(f"error is a number above 0 and below 1, got {error!r}")
        shape = tuple(self.target.shape)

        def rank(size: int) -> Rank:
            return self.source.useful_rank(self.source.check_rank(size, shape), shape)

        return smallest_rank_fit(
            float(error),
            max(1, self.target.numel() // max(shape)),
            lambda size: self.fit(rank(size), report),
            lambda size: self.bound(self.network(rank(size))),
        )

    def network(self, rank: Rank) -> TensorNetwork:
        shape = tuple(self.target.shape)
        network = self.source.network(shape[:-2], shape[-2], shape[-1], rank)
        check_network(network, shape, self.source)
        return network

    def bound(self, network: TensorNetwork) -> float:
        whole = self.roots.input is None and self.roots.output is None
        return error_bound(self.roots.weigh(self.target), network, split=whole)

    def parameters(self, network: TensorNetwork, rank: Rank, report: Report) -> Found:
        """The parameters that fit best, from a target of norm 1."""
        if not self.target.any():
            shapes = network.parameter_shapes.items()
            return Found({name: self.target.new_zeros(shape) for name, shape in shapes}, 0.0, 0, "zeros")
        scale = self.target.new_ones(()) if network.shares_parameters else self.target.norm()
        target, bound = self.target / scale, self.bound(network)
        roots = {"root": self.roots.input, "output_root": self.roots.output}
        sides = {"root": network.in_labels, "output_root": network.out_labels}
        taken = {side: root for side, root in roots.items() if root is not None and absorbs(network, sides[side])}
        if "root" in taken:
            target = taken["root"].regular @ target
        if "output_root" in taken:
            target = target @ taken["output_root"].regular
        left = {side: root.regular for side, root in roots.items() if root is not None and side not in taken}
        problem = Problem(network, target)
        found = best_of_starts(problem, self.source, rank, self.seed, 0.0 if left else bound, report, self.starts)
        if left:
            weighted = Problem(network, target, left.get("root"), left.get("output_root"))
            found = improve_start(weighted, found, report)
        for side, root in taken.items():
            found = replace(found, tensors=divide(network, found.tensors, sides[side][0], root.inverse))
        firsts = {next(node.parameter for node in term if node.fixed is None) for term in network.terms}
        tensors = {name: tensor * scale if name in firsts else tensor for name, tensor in found.tensors.items()}
        return replace(found, tensors=tensors)


def _check_values(dense: Tensor) -> None:
    if not dense.numel():
        raise ValueError(f"the dense tensor of shape {tuple(dense.shape)} is empty; every mode needs an entry")
    if not torch.isfinite(dense).all():
        raise ValueError("the dense tensor has a NaN or an infinite entry; a fit needs finite values")
    largest = float(dense.abs().max())
    if largest and not SMALLEST < largest < LARGEST:
        raise ValueError(
            f"the dense tensor's largest entry is {largest:.3g}, whose square float64 cannot hold; scale the tensor"
        )


def _pad(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros at the end of axes that are too short: bonds longer than the tensor can use."""
    padding = [
        p for size, wanted in zip(reversed(tensor.shape), reversed(shape), strict=True) for p in (0, wanted - size)
    ]
    return torch.nn.functional.pad(tensor, padding)
