"""Choosing a plan anew: within a memory limit, and by timing candidates on the device at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from factorized_moe._scalars import is_whole
from factorized_moe._validation import check_countable
from factorized_moe.contraction.execution import execute
from factorized_moe.contraction.paths import Path, plan_along
from factorized_moe.contraction.plan import ContractionPlan, Request, check_batch_size
from factorized_moe.contraction.planning import LimitError, candidate_plans, make_plan
from factorized_moe.network import TensorNetwork

__all__ = ["choose_plan", "fastest_plan"]

ROUNDS = 7

SPARSE_SHARE = 0.02
"""The share of coefficients that are not zero where sparse ones are timed: entmax15's for 1,024 normal logits."""


def choose_plan(
    network: TensorNetwork,
    request: Request,
    operands: Sequence[Tensor],
    batch_size: int,
    optimize: str | None,
    memory_limit: int | None,
    batch_sizes: Sequence[int] | None,
    backward: bool,
    path: Path | Sequence[Path] | None,
) -> ContractionPlan | None:
    """Make a plan by another criterion: FLOPs at a batch size, measured time, a memory limit, or an order of your own.

    Args:
        network: The network.
        request: The request.
        operands: The nodes' tensors.
        batch_size: The number of samples to plan for.
        optimize: ``"flops"`` to plan from the description alone, ``"measure"`` to time the best candidates.
        memory_limit: The most bytes that an intermediate value may take at that number of samples.
        batch_sizes: The numbers of samples to time; ``batch_size`` alone by default.
        backward: Whether to time the backward pass too.
        path: The order, in place of a search.

    Returns:
        The plan, or ``None`` if none of ``optimize``, ``memory_limit`` and ``path`` is given.

    Raises:
        TypeError: If the memory limit is not an int, or the batch sizes or the path are no such sequences.
        ValueError: If an argument is out of range or of no use, no order keeps to the memory limit, or there is
            nothing to time.
    """
    if optimize not in (None, "flops", "measure"):
        raise ValueError(f"optimize is 'flops' or 'measure', got {optimize!r}")
    if not isinstance(backward, bool):
        raise TypeError(f"backward must be True or False, got {backward!r}")
    if optimize != "measure" and (batch_sizes is not None or backward):
        raise ValueError("batch_sizes and backward say what to time; give them with optimize='measure'")
    sizes = (batch_size,) if batch_sizes is None else _check_batch_sizes(batch_sizes)
    if memory_limit is not None and (not is_whole(memory_limit)):
        raise TypeError(f"memory_limit is a number of bytes, an int, or None, got {memory_limit!r}")
    if path is not None:
        if optimize is not None or memory_limit is not None:
            raise ValueError("path is the order itself; give it without optimize and memory_limit")
        return plan_along(network, request, path, batch_size)
    if optimize is None and memory_limit is None:
        return None
    if optimize == "measure" and operands[0].is_meta:
        raise ValueError("the parameters are on the meta device, where nothing can be timed; use optimize='flops'")
    element = operands[0].element_size()
    limit = None if memory_limit is None else int(memory_limit) // element
    try:
        if optimize != "measure":
            return make_plan(network, request, batch_size, limit)
        plans = candidate_plans(network, request, batch_size, limit)
    except LimitError as error:
        raise ValueError(
            f"memory_limit of {memory_limit:,} bytes is too small at batch size {batch_size:,}: the smallest "
            f"{error.word} is {error.smallest * element:,} bytes"
        ) from None
    return fastest_plan(plans, operands, sizes, backward=backward)


def _check_batch_sizes(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    if isinstance(batch_sizes, str) or not isinstance(batch_sizes, Sequence) or not batch_sizes:
        raise TypeError(f"batch_sizes is a sequence of one or more ints such as (1, 1024), got {batch_sizes!r}")
    return tuple(check_batch_size(size) for size in batch_sizes)


def fastest_plan(
    plans: Sequence[ContractionPlan],
    operands: Sequence[Tensor],
    batch_sizes: Sequence[int],
    *,
    backward: bool = False,
) -> ContractionPlan:
    """Time plans at some batch sizes and return the fastest.

    All plans are timed in turn, round after round, so that a change of the machine's speed meets them all. A plan's
    score is the product over the batch sizes of its median time, relative to the first plan's; the first plan is
    kept unless another beats it by more than 3%, which is noise.

    Args:
        plans: Plans of one request.
        operands: The nodes' tensors.
        batch_sizes: Numbers of samples.
        backward: Whether to time the backward pass too.

    Returns:
        One of the plans.

    Examples:
        >>> from factorized_moe import FactorizedExpertTensor
        >>> from factorized_moe.contraction import candidate_plans, forward_request
        >>> w = FactorizedExpertTensor((8, 8), 16, 32, decomposition="tucker", rank=4)
        >>> plans = candidate_plans(w.network, forward_request(w.network, bias=False))
        >>> fastest_plan(plans, w.weight.operands, [4]) in plans
        True
    """
    scores = [1.0] * len(plans)
    for batch_size in batch_sizes:
        medians = _medians([_run(plan, operands, batch_size, backward) for plan in plans], operands[0].device)
        scores = [score * median / medians[0] for score, median in zip(scores, medians, strict=True)]
    best = min(range(len(plans)), key=scores.__getitem__)
    return plans[best] if scores[best] < 0.97 ** len(batch_sizes) else plans[0]


def _run(plan: ContractionPlan, operands: Sequence[Tensor], batch_size: int, backward: bool) -> Callable[[], None]:
    request, like = plan.request, operands[0]
    widths = [plan.network.size_of(labels) for labels in request.vectors]
    widths[0] -= request.append_one + plan.network.in_padding
    for width in widths:
        check_countable("what is to be timed", (batch_size, width))
    leaves = [tensor.detach().requires_grad_(backward) for tensor in operands]
    vectors = [torch.rand(batch_size, width, dtype=like.dtype, device=like.device) for width in widths]
    if request.sparse:
        vectors[1:] = [a * (torch.rand_like(a) < SPARSE_SHARE) for a in vectors[1:]]
    vectors = [tensor.requires_grad_(backward) for tensor in vectors]

    def run() -> None:
        with torch.set_grad_enabled(backward):
            answer = execute(plan, (*leaves, *vectors))
        if backward:
            torch.autograd.grad(answer.sum(), (*leaves, *vectors))

    return run


def _medians(runs: Sequence[Callable[[], None]], device: torch.device) -> list[float]:
    """The median time of each, in seconds; the rounds take turns."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()  # memory is allocated and kernels are chosen at the first call
    for _ in range(ROUNDS):
        for run, mine in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            mine.append(time.perf_counter() - start)
    return [statistics.median(mine) for mine in times]
