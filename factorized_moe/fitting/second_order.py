"""Levenberg-Marquardt steps on all parameters at once, for small problems.

Alternating steps become very small where nodes must change together, in loops above all, and a node that stands in
two places is not linear at all. These steps see the whole problem, converge quadratically to an exact fit, and serve
any network and norm. They need the Jacobian, so they are for small problems.
"""

from __future__ import annotations

import torch
from torch import Tensor

from factorized_moe.fitting.problem import Problem, Report, Tensors

__all__ = ["improve_together", "is_small"]

MOST_PARAMETERS = 700
MOST_ENTRIES = 4_000_000
"""Limits of the Jacobian: its columns, and its entries, 32 MB."""

COLUMN = "parameter's entry"
EXACT = 1e-13
STALLED = 1e-6
PATIENCE = 4


def is_small(problem: Problem) -> bool:
    """Whether the problem's Jacobian is small enough."""
    parameters = sum(torch.Size(shape).numel() for shape in problem.network.parameter_shapes.values())
    return parameters <= MOST_PARAMETERS and parameters * problem.target.numel() <= MOST_ENTRIES


def improve_together(problem: Problem, tensors: Tensors, steps: int, report: Report) -> tuple[float, int]:
    """Lower the error until it stands still; it never grows.

    Args:
        problem: A small problem.
        tensors: The parameters to begin with, changed in place.
        steps: The most steps.
        report: Called with the error after each step.

    Returns:
        The relative error, and the number of steps.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    scale = problem.weigh(problem.target).norm()

    def named(flat: Tensor) -> Tensors:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def residual(flat: Tensor) -> Tensor:
        scaled: Tensor = problem.residual(named(flat)).flatten() / scale
        return scaled

    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    value = residual(flat)
    error, damping, stalled, count = float(value.norm()), 1e-2, 0, 0
    slope = _jacobian(problem, named(flat)) / scale
    while count < steps and stalled < PATIENCE and error > EXACT and damping < 1e12:
        count += 1
        normal = slope @ slope.mT
        floor = normal.diagonal().amax() * 1e-12
        normal.diagonal().add_(damping * normal.diagonal() + floor * damping)
        factor, failed = torch.linalg.cholesky_ex(normal)
        moved = flat - torch.cholesky_solve((slope @ value)[:, None], factor)[:, 0]
        attempt = residual(moved)
        reached = float(attempt.norm())
        if failed or not reached < error:
            damping *= 8.0
            continue
        report(reached)
        stalled = stalled + 1 if error - reached < STALLED * error else 0
        flat, value, error, damping = moved, attempt, reached, max(damping / 5.0, 1e-15)
        slope = _jacobian(problem, named(flat)) / scale
    tensors.update(named(flat))
    return error, count


def _jacobian(problem: Problem, tensors: Tensors) -> Tensor:
    """The derivative of the residual, ``(parameters, entries)``: the network is linear in each node.

    Each node in turn is replaced by all unit tensors at once, along an axis of their own.
    """
    blocks: dict[str, Tensor] = {}
    known = problem.complete(tensors)
    for term in problem.network.terms:
        for node in [node for node in term if node.fixed is None]:
            tensor = tensors[node.parameter]
            units = torch.eye(tensor.numel(), dtype=tensor.dtype, device=tensor.device).reshape(-1, *tensor.shape)
            operands = [(known[other.parameter], other.labels) for other in term if other is not node]
            block = problem.arrange([(units, (COLUMN, *node.labels)), *operands], (COLUMN,))
            block = problem.weigh(problem.trim(block)).flatten(1)
            blocks[node.parameter] = blocks[node.parameter] + block if node.parameter in blocks else block
    return torch.cat([blocks[name] for name in tensors])
