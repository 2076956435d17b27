"""How laws compare: to the sum of the absolute values of all terms, so that a cancellation is no error.

Everything here is multilinear, so that sum is the same computation on absolute values.

Legend: `*batch` any leading shape, `N_k` experts of mode k, `I` in_features, `O` out_features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from factorized_moe.contraction.fixed import fixed_tensors, with_fixed
from factorized_moe.tensor import FactorizedExpertTensor
from factorized_moe.testing.oracles import contract_dense, dense_from_nodes

__all__ = ["TOLERANCES", "absolute_output", "assert_near", "gradients", "oracle_dense"]

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
"""The largest difference between two routes to one value, in units of the sum of its absolute terms."""


def assert_near(
    what: str, actual: Tensor, expected: Tensor, scale: Tensor, tolerance: float = TOLERANCES[torch.float64]
) -> None:
    """Assert that two tensors agree to a multiple of the sum of their absolute terms.

    Args:
        what: What is compared, for the message.
        actual: The tensor to check.
        expected: The tensor it should be.
        scale: The sum of the absolute terms, entry by entry; of a shape that broadcasts.
        tolerance: The largest difference, in units of the scale.

    Raises:
        AssertionError: If shapes differ, or an entry is further off or not a number.
    """
    if actual.shape != expected.shape:
        raise AssertionError(f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    error = (actual.detach().double() - expected.detach().double()).abs()
    # The smallest normal number stands for zero: where the scale is zero, both sides must be.
    relative = error / scale.detach().double().clamp_min(torch.finfo(torch.float32).tiny)
    if not (relative <= tolerance).all():
        raise AssertionError(f"{what}: off by {relative.max().item():.1e} of its terms' size, allowed {tolerance:.0e}")


def gradients(y: Tensor, leaves: Sequence[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    """The gradients of `(y * cotangent).sum()`, zeros where a leaf has no part in it.

    Args:
        y: The output, `(*batch, O)`.
        leaves: What to take gradients of.
        cotangent: `(*batch, O)`.

    Raises:
        AssertionError: If `y` has no gradient at all.
    """
    if not y.requires_grad:
        raise AssertionError("the output depends on nothing that wants a gradient")
    found = torch.autograd.grad(y, leaves, cotangent, allow_unused=True)
    return tuple(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True))


def oracle_dense(w: FactorizedExpertTensor, absolute: bool = False) -> Tensor:
    """The dense tensor, `(*expert_dims, I (+1), O)`, through the nodes; of absolute values on demand."""
    tensors = with_fixed(w.network, w.weight.tensors)
    if absolute:
        tensors = {name: p.detach().abs() for name, p in tensors.items()}
    return dense_from_nodes(w.network, tensors)


def absolute_output(
    w: FactorizedExpertTensor, x: Tensor, coefficients: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The output for absolute values, `(*batch, O)`, and its leaves: x, the coefficients, the parameters."""
    tensors = w.weight.tensors
    leaves = [tensor.detach().abs().requires_grad_() for tensor in (x, *coefficients, *tensors.values())]
    modes = len(coefficients)
    nodes = {name: values.to(x).abs() for name, values in fixed_tensors(w.network).items()}
    dense = dense_from_nodes(w.network, nodes | dict(zip(tensors, leaves[1 + modes :], strict=True)))
    return contract_dense(dense, leaves[0], leaves[1 : 1 + modes], w.bias), leaves
