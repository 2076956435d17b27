"""Errors of a layer's outputs in place of its weights: the inputs' second moment and its square root.

For inputs ``x`` with ``C = E[x x^T]``, the expected squared error of the outputs is ``E||(W - V)^T x||^2 =
||S (W - V)||^2`` with ``S S = C``. So a fit of ``S W`` is followed by a division by ``S``, where the network has the
input mode on one node that can take it.

Legend: ``I`` the rows of an expert's matrix, its bias included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from factorized_moe.fitting.problem import Tensors
from factorized_moe.network import TensorNetwork

__all__ = ["InputRoot", "absorbs_input", "divide_input", "input_moment", "moment_roots"]

FLOOR = 1e-8
"""Of the largest eigenvalue: the weight that a fit gives to directions in which no input was seen. It decides between
equals there, and changes the error that is minimised by as little."""


SMALLEST, LARGEST = 1e-290, 1e290
"""Limits of a second moment's largest entry: beyond them its eigenvalues leave float64."""


@dataclass(frozen=True, eq=False)
class InputRoot:
    """Square roots of a second moment.

    Attributes:
        exact: The root ``S``, ``(I, I)``, symmetric: errors are measured with it.
        regular: The same with small eigenvalues raised, so that it has an inverse: fits are made with it.
        inverse: Its inverse.
    """

    exact: Tensor
    regular: Tensor
    inverse: Tensor


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
    name, width = ("activations" if covariance is None else "input_covariance"), rows - bias
    if not isinstance(given, Tensor) or not given.is_floating_point():
        kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(f"{name} must be a tensor of a real floating type, got {kind}")
    if given.is_meta or not torch.isfinite(given).all():
        raise ValueError(f"{name} has a NaN or an infinite entry, or no values at all")
    wide = given.detach().to(device, torch.float64)
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
    largest = moment.abs().max()
    if not largest > 0:
        raise ValueError("the inputs are all zero: every tensor has the same outputs on them")
    if not SMALLEST < largest < LARGEST:
        raise ValueError(f"the inputs' second moment has entries of up to {float(largest):.3g}; scale the inputs")
    if (moment - moment.mT).abs().max() > 1e-6 * largest:
        raise ValueError("input_covariance is not symmetric; give E[x x^T]")
    moment = (moment + moment.mT) / 2.0
    values = torch.linalg.eigvalsh(moment)
    if values[0] < -1e-6 * values[-1].abs():
        raise ValueError(f"input_covariance has a negative eigenvalue, {float(values[0]):.3g}; give E[x x^T]")
    return moment


def moment_roots(moment: Tensor) -> InputRoot:
    """The square roots of a second moment.

    Args:
        moment: What `input_moment` gives, or a part of it, symmetric.
    """
    values, vectors = torch.linalg.eigh(moment)
    exact, regular = values.clamp_min(0.0).sqrt(), values.clamp_min(FLOOR * values[-1]).sqrt()
    roots = (vectors * scaled @ vectors.mT for scaled in (exact, regular, 1.0 / regular))
    return InputRoot(*roots)


def absorbs_input(network: TensorNetwork) -> bool:
    """Whether a matrix on the input mode can be taken into one node of each term, which nothing else reads."""
    if len(network.in_labels) > 1 or network.shares_parameters:
        return False
    readers = [[node for node in term if network.in_labels[0] in node.labels] for term in network.terms]
    return all(len(nodes) == 1 and nodes[0].fixed is None for nodes in readers)


def divide_input(network: TensorNetwork, tensors: Tensors, inverse: Tensor) -> Tensors:
    """Parameters whose dense tensor is ``inverse`` times that of the given ones, along the input mode."""
    (label,) = network.in_labels
    changed = dict(tensors)
    for node in network.nodes:
        if label in node.labels:
            axis = node.labels.index(label)
            changed[node.parameter] = torch.tensordot(inverse, tensors[node.parameter], ([1], [axis])).movedim(0, axis)
    return changed
