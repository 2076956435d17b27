"""Replays a plan with torch. Nothing is searched, parsed or cached here, so every torch transform traces through."""

from __future__ import annotations

from collections.abc import Sequence

import torch.utils.checkpoint
from torch import Tensor

from factorized_moe.contraction.plan import ContractionPlan

__all__ = ["execute", "recompute"]


def execute(plan: ContractionPlan, operands: Sequence[Tensor]) -> Tensor:
    """Run a plan on tensors and return its result.

    Args:
        plan: The plan.
        operands: One tensor for each of the network's nodes, in order, then one for each of the request's vectors,
            ``(B, *labels)``; a group of labels comes flattened. Neither shapes nor dtypes are checked here.

    Returns:
        The answer, its axes ``(B, *output)`` or, without vectors, ``output``.

    Examples:
        >>> import torch
        >>> from factorized_moe.contraction import forward_request, make_plan
        >>> from factorized_moe.decompositions import get_decomposition
        >>> network = get_decomposition("cp").network((8,), 16, 32, rank=4)
        >>> factors = [torch.randn(shape) for shape in network.parameter_shapes.values()]
        >>> plan = make_plan(network, forward_request(network, bias=False))
        >>> execute(plan, [*factors, torch.randn(5, 16), torch.rand(5, 8)]).shape
        torch.Size([5, 32])
    """
    values: list[Tensor | None] = list(operands)
    for step in plan.steps:
        values.append(step.operation(*[values[position] for position in step.operands]))  # type: ignore[arg-type]
        for position in step.frees:  # without autograd, a value's memory is free at once
            values[position] = None
    answer = values[-1]
    assert answer is not None  # the last value has no consumer
    return answer


def recompute(plan: ContractionPlan, operands: Sequence[Tensor]) -> Tensor:
    """As `execute`, but intermediate values are computed again in the backward pass and not kept.

    Args:
        plan: The plan.
        operands: As for `execute`.
    """
    # The contraction draws no random numbers, so none of their state needs keeping.
    answer: Tensor = torch.utils.checkpoint.checkpoint(
        execute, plan, operands, use_reentrant=False, preserve_rng_state=False
    )
    return answer
