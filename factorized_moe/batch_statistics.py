"""Batch normalisation of a gate's logits, also over several processes and under activation checkpointing.

Shapes: n positions, C logits, r ranks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GateBatchNorm", "keep_wide", "normalise"]

Norm = nn.BatchNorm1d | nn.SyncBatchNorm

_warned = False


class GateBatchNorm(nn.BatchNorm1d):
    """Batch normalisation whose running averages stay float32 where a module is cast to half precision.

    Rounded at each update, they drift: after 50 updates in bfloat16 a mean of 57.3 was 55.5, and in float16 a
    variance of 94,722 was infinite. torch normalises half-precision input by float32 averages as it is.

    Attributes:
        over_ranks: Whether the batch is that of all ranks, see `factorized_moe.parallel.synchronise_gates`.
        process_group: Those ranks, all by default.
        equal_batches: Whether all ranks are known to have the same batch, so that there is nothing to warn about.
    """

    over_ranks = False
    process_group: Any = None
    equal_batches = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GateBatchNorm:
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        keep_wide(self, before)
        return self


def keep_wide(norm: nn.Module, before: dict[str, Tensor]) -> None:
    """Give running averages that were cast to half precision their float32 values back, on their new device.

    Args:
        norm: The batch normalisation.
        before: Its buffers before the cast.
    """
    for name, buffer in norm.named_buffers():
        if buffer.dtype in (torch.float16, torch.bfloat16):
            setattr(norm, name, before[name].to(buffer.device, torch.float32))


def normalise(norm: Norm, rows: Tensor) -> Tensor:
    """Normalise logits by their batch in training mode, by running averages in evaluation.

    After `factorized_moe.parallel.synchronise_gates` or ``nn.SyncBatchNorm.convert_sync_batchnorm`` the batch is that
    of all ranks, in float32 and on any device. A forward pass that a backward pass repeats, as activation checkpointing
    does, leaves the running averages alone.

    Args:
        norm: The batch normalisation, plain or converted.
        rows: The logits, ``(n, C)``.

    Returns:
        The same shape and type.

    Examples:
        >>> normalise(nn.BatchNorm1d(2, affine=False), torch.tensor([[1.0, 9.0], [3.0, 5.0]])).round()
        tensor([[-1.,  1.],
                [ 1., -1.]])
    """
    if not norm.training:
        evaluated: Tensor = norm(rows)
        return evaluated
    compiling = torch.compiler.is_compiling()
    repeated = not compiling and torch._C._current_graph_task_id() != -1
    if isinstance(norm, nn.SyncBatchNorm) or getattr(norm, "over_ranks", False):
        return _over_ranks(norm, rows, update=not repeated)
    if repeated:
        # Copies, not None: a recomputation has to save as many tensors as the first pass did.
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None  # a gate's has averages
        assert variance is not None
        return F.batch_norm(rows, mean.clone(), variance.clone(), training=True, eps=norm.eps)
    if not compiling:
        _warn_once(norm)
    result: Tensor = norm(rows)
    return result


def _warn_once(norm: Norm) -> None:
    global _warned  # a message to the user, once in a process
    if _warned or getattr(norm, "equal_batches", False):
        return
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        _warned = True
        warnings.warn(
            "ExpertGate: norm='batch' normalises by the batch of each rank alone, so gradients differ from those of "
            "one process, and running averages differ between ranks. Call "
            "factorized_moe.parallel.synchronise_gates(model) to normalise over all ranks, or build gates with "
            "gate_norm='layer'. If all ranks have the same batch, ignore this.",
            stacklevel=4,
        )


def _in_a_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _over_ranks(norm: Any, rows: Tensor, update: bool) -> Tensor:
    x = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    mean = x.mean(0)
    squares = (x - mean).square().sum(0)
    count = x.new_full((1,), float(x.shape[0]))
    if _in_a_group():
        group = norm.process_group or torch.distributed.group.WORLD
        means, all_squares, counts = _gathered(torch.cat([mean, squares, count]), group).split(
            [len(mean), len(mean), 1], dim=1
        )  # (r, C), (r, C), (r, 1)
        count = counts.sum(0)
        mean = (means * counts).sum(0) / count
        squares = (all_squares + counts * (means - mean).square()).sum(0)
    if update and norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            weight = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), weight)
            norm.running_var.lerp_((squares / (count - 1)).to(norm.running_var.dtype), weight)
    normalised: Tensor = ((x - mean) * (squares / count + norm.eps).rsqrt()).to(rows.dtype)
    return normalised


def _gathered(row: Tensor, group: Any) -> Tensor:
    """The rows of all ranks, ``(r, length)``."""
    rows: Tensor = _Gather.apply(row, group.size(), group.rank(), group.group_name)  # type: ignore[no-untyped-call]
    return rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, row: Tensor, ranks: int, rank: int, name: str) -> Tensor:
        ctx.rank, ctx.name = rank, name
        gathered = torch.ops._c10d_functional.all_gather_into_tensor(row.unsqueeze(0), ranks, name)
        return torch.ops._c10d_functional.wait_tensor(gathered)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        summed = torch.ops._c10d_functional.all_reduce(gradients[0].contiguous(), "sum", ctx.name)
        return torch.ops._c10d_functional.wait_tensor(summed)[ctx.rank], None, None, None
