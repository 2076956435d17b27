"""Errors of a layer's outputs in place of its weights: second moments of inputs and outputs, and their square roots.

For inputs ``x`` with ``C = E[x x^T]``, the expected squared error of the outputs is ``E||(W - V)^T x||^2 =
||S (W - V)||^2`` with ``S S = C``. An output's error ``e`` changes a loss of gradient ``g`` by ``g^T e``; where ``g``
and ``x`` are independent, the mean of its square is ``||S (W - V) R||^2`` with ``R R = E[g g^T]``. So a fit of
``S W R`` is followed by a division by ``S`` and ``R``, where the network has the mode on one node that can take it.

Source of the outputs' side: Xu et al. 2026, "TD-MoE: Tensor Decomposition for MoE Models", ICLR 2026.

Legend: ``I`` the rows of an expert's matrix, its bias included, ``O`` out_features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factorized_moe.fitting.problem import Tensors
from factorized_moe.network import TensorNetwork

__all__ = ["MomentRoot", "Roots", "absorbs", "divide", "input_moment", "moment_roots", "output_moment"]

FLOOR = 1e-8
"""Of the largest eigenvalue: the weight that a fit gives to directions in which no input was seen. It decides between
equals there, and changes the error that is minimised by as little."""


SMALLEST, LARGEST = 1e-290, 1e290
"""Limits of a second moment's largest entry: beyond them its eigenvalues leave float64."""


@dataclass(frozen=True, eq=False)
class MomentRoot:
    """Square roots of a second moment.

    Attributes:
        exact: The root, symmetric: errors are measured with it.
        regular: The same with small eigenvalues raised, so that it has an inverse: fits are made with it.
        inverse: Its inverse.
    """

    exact: Tensor
    regular: Tensor
    inverse: Tensor


@dataclass(frozen=True, eq=False)
class Roots:
    """The roots on both sides of an expert's matrix, where there are any.

    Attributes:
        input: Of the inputs' second moment, ``(I, I)``.
        output: Of the outputs', ``(O, O)``.
    """

    input: MomentRoot | None
    output: MomentRoot | None

    def weigh(self, matrices: Tensor) -> Tensor:
        """``S M R`` of matrices ``(.., I, O)``, with the exact roots."""
        matrices = matrices if self.input is None else self.input.exact @ matrices
        return matrices if self.output is None else matrices @ self.output.exact


def input_moment(
    rows: int, bias: bool, activations: Tensor | None, covariance: Tensor | None, device: torch.device
) -> Tensor | None:
    """The inputs' second moment, checked, ``(I, I)``, float64; ``None`` if neither inputs nor a moment are given.

    Everything that takes ``activations`` or an ``input_covariance`` reads them here.

    Args:
        rows: ``I``.
        bias: Whether the last row is a bias, which meets a constant input of 1.
        activations: Inputs, ``(*samples, I)`` without the constant.
        covariance: The second moment, ``(I, I)``, with or without the constant.
        device: Where to compute.

    Raises:
        TypeError: If both are given, or one is not a real floating tensor.
        ValueError: If a shape does not fit, values are not finite or all zero, or the moment is not symmetric or has a
            negative eigenvalue.
    """
    if activations is not None and covariance is not None:
        raise TypeError("give activations or input_covariance, not both")
    given = activations if covariance is None else covariance
    if given is None:
        return None
    width = rows - bias
    wide = _checked_values("activations" if covariance is None else "input_covariance", given, device)
    if covariance is None:
        if wide.ndim < 1 or wide.shape[-1] != width or not wide.numel():
            raise ValueError(f"activations have shape {tuple(given.shape)}, expected (*samples, {width}), one or more")
        samples = torch.nn.functional.pad(wide.reshape(-1, width), (0, int(bias)), value=1.0)
        moment = samples.mT @ samples / len(samples)
    else:
        if wide.shape not in {(width, width), (rows, rows)}:
            expected = f"({width}, {width})" + (f" or, with the constant 1, ({rows}, {rows})" if bias else "")
            raise ValueError(f"input_covariance has shape {tuple(given.shape)}, expected {expected}")
        moment = wide if len(wide) == rows else torch.block_diag(wide, wide.new_ones(1, 1))
    return _checked_moment("input", moment)


def output_moment(columns: int, covariance: Tensor | None, device: torch.device) -> Tensor | None:
    """The outputs' second moment, checked, ``(O, O)``, float64; ``None`` if none is given.

    Args:
        columns: ``O``.
        covariance: The second moment.
        device: Where to compute.

    Raises:
        TypeError: If it is not a real floating tensor.
        ValueError: If its shape does not fit, values are not finite or all zero, or it is not symmetric or has a
            negative eigenvalue.
    """
    if covariance is None:
        return None
    wide = _checked_values("output_covariance", covariance, device)
    if wide.shape != (columns, columns):
        raise ValueError(f"output_covariance has shape {tuple(wide.shape)}, expected ({columns}, {columns})")
    return _checked_moment("output", wide)


def _checked_values(name: str, given: Tensor, device: torch.device) -> Tensor:
    if not isinstance(given, Tensor) or not given.is_floating_point():
        kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(f"{name} must be a tensor of a real floating type, got {kind}")
    if given.is_meta or not torch.isfinite(given).all():
        raise ValueError(f"{name} has a NaN or an infinite entry, or no values at all")
    return given.detach().to(device, torch.float64)


def _checked_moment(side: str, moment: Tensor) -> Tensor:
    largest = moment.abs().max()
    if not largest > 0:
        rest = "every tensor has the same outputs on them" if side == "input" else "no error of an output would count"
        raise ValueError(f"the {side}s are all zero: {rest}")
    if not SMALLEST < largest < LARGEST:
        raise ValueError(f"the {side}s' second moment has entries of up to {float(largest):.3g}; scale the {side}s")
    what = "E[x x^T]" if side == "input" else "E[g g^T]"
    if (moment - moment.mT).abs().max() > 1e-6 * largest:
        raise ValueError(f"{side}_covariance is not symmetric; give {what}")
    moment = (moment + moment.mT) / 2.0
    values = torch.linalg.eigvalsh(moment)
    if values[0] < -1e-6 * values[-1].abs():
        raise ValueError(f"{side}_covariance has a negative eigenvalue, {float(values[0]):.3g}; give {what}")
    return moment


def moment_roots(moment: Tensor) -> MomentRoot:
    """The square roots of a second moment.

    Args:
        moment: What `input_moment` gives, or a part of it, symmetric.
    """
    values, vectors = torch.linalg.eigh(moment)
    exact, regular = values.clamp_min(0.0).sqrt(), values.clamp_min(FLOOR * values[-1]).sqrt()
    roots = (vectors * scaled @ vectors.mT for scaled in (exact, regular, 1.0 / regular))
    return MomentRoot(*roots)


def absorbs(network: TensorNetwork, labels: Sequence[str]) -> bool:
    """Whether a matrix on a mode can be taken into one node of each term, which nothing else reads.

    Args:
        network: The network.
        labels: The mode's, such as ``network.in_labels``.
    """
    if len(labels) > 1 or network.shares_parameters:
        return False
    readers = [[node for node in term if labels[0] in node.labels] for term in network.terms]
    return all(len(nodes) == 1 and nodes[0].fixed is None for nodes in readers)


def divide(network: TensorNetwork, tensors: Tensors, label: str, inverse: Tensor) -> Tensors:
    """Parameters whose dense tensor is that of the given ones with ``inverse``, symmetric, applied along a mode.

    Args:
        network: The network, for which `absorbs` is true.
        tensors: Its parameters.
        label: The mode's one label.
        inverse: The matrix.
    """
    changed = dict(tensors)
    for node in network.nodes:
        if label in node.labels:
            axis = node.labels.index(label)
            changed[node.parameter] = torch.tensordot(inverse, tensors[node.parameter], ([1], [axis])).movedim(0, axis)
    return changed
