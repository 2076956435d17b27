"""L-BFGS steps on all parameters at once: for what is neither linear in each node nor small."""

from __future__ import annotations

import torch
from torch import Tensor

from factorized_moe.fitting.problem import Problem, Report, Tensors

__all__ = ["improve_by_gradients"]


def improve_by_gradients(problem: Problem, tensors: Tensors, steps: int, report: Report) -> tuple[float, int]:
    """Lower the error until it stands still; it never grows.

    Args:
        problem: The problem, with any norm and any network.
        tensors: The parameters to begin with, changed in place.
        steps: The most steps.
        report: Called with the error after each step.

    Returns:
        The relative error, and the number of steps.
    """
    scale, begun = problem.weigh(problem.target).norm(), problem.error(tensors)
    with torch.enable_grad():
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
        optimiser = torch.optim.LBFGS(leaves.values(), max_iter=10, history_size=20, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            value: Tensor = (problem.residual(leaves) / scale).square().sum()
            value.backward()
            return value

        error, count = begun, 0
        while count < steps:
            optimiser.step(loss)
            count += 10
            previous, error = error, problem.error({name: leaf.detach() for name, leaf in leaves.items()})
            report(error)
            if not previous - error > 1e-6 * previous:
                break
    if error < begun:
        tensors.update({name: leaf.detach() for name, leaf in leaves.items()})
    return min(error, begun), count
