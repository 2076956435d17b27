"""The collectives, each with its backward pass: what moves a value from one layout to another.

They are torch's functional collectives, which compile and which `torch.distributed.tensor.debug.CommDebugMode` counts.

Legend: ``p`` ranks; a *piece* is what a rank holds of a label of some size, see `factorized_moe.parallel.placing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factorized_moe.parallel.placing import share, start

__all__ = ["Group", "Transfer", "enter", "exchange_rows", "move"]


@dataclass(frozen=True)
class Group:
    """The ranks that share a tensor: torch's name of their process group, how many they are, and which one this is."""

    name: str
    ranks: int
    rank: int


@dataclass(frozen=True)
class Transfer:
    """One collective on an axis of a tensor.

    Args:
        kind: One of those that `factorized_moe.parallel.placing.collectives` names.
        axis: The axis that is cut, or put together.
        size: Its size over all ranks.
        to_axis: Of an all-to-all, the axis that is cut; ``axis`` is put together.
        to_size: Its size over all ranks.
        lacking: The entries at the end of the axis that the tensor lacks: an input without the bias's constant 1.
    """

    kind: str
    axis: int = 0
    size: int = 0
    to_axis: int = 0
    to_size: int = 0
    lacking: int = 0


def move(tensor: Tensor, ahead: Transfer, back: Transfer, group: Group) -> Tensor:
    """Apply a transfer to a tensor, and another one to its gradient."""
    if ahead.kind == back.kind == "keep":
        return tensor
    return _Move.apply(tensor, ahead, back, group)  # type: ignore[no-any-return, no-untyped-call]


def enter(tensors: Sequence[Tensor], group: Group) -> list[Tensor]:
    """Tensors that all ranks hold, used differently on each: their gradients are added up in one all-reduce."""
    return list(_Enter.apply(group, *tensors))  # type: ignore[no-untyped-call]


def exchange_rows(
    tensor: Tensor, axis: int, have: Sequence[tuple[int, int]], want: Sequence[tuple[int, int]], group: Group
) -> Tensor:
    """Move entries of an axis between neighbours, from one way to cut it to another.

    Args:
        tensor: What this rank holds.
        axis: The axis.
        have: For each rank the first entry that it holds, and the one after the last.
        want: The same for the result.
        group: The ranks.
    """
    return _Exchange.apply(tensor, axis, tuple(have), tuple(want), group)  # type: ignore[no-any-return, no-untyped-call]


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ahead: Transfer, back: Transfer, group: Group) -> Tensor:
        ctx.back, ctx.group = back, group
        return _perform(tensor, ahead, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _perform(gradients[0], ctx.back, ctx.group), None, None, None


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Group, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        return tuple([tensor.view_as(tensor) for tensor in tensors])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if len(gradients) == 1:
            return None, _all_reduce(gradients[0], ctx.group)
        total = _all_reduce(torch.cat([gradient.reshape(-1) for gradient in gradients]), ctx.group)
        parts = total.split([gradient.numel() for gradient in gradients])
        return None, *[part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, axis: int, have: Any, want: Any, group: Group) -> Tensor:
        ctx.axis, ctx.have, ctx.want, ctx.group = axis, have, want, group
        return _exchange(tensor, axis, have, want, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _exchange(gradients[0], ctx.axis, ctx.want, ctx.have, ctx.group), None, None, None, None


def _perform(tensor: Tensor, transfer: Transfer, group: Group) -> Tensor:
    kind, axis, size, ranks, rank = transfer.kind, transfer.axis, transfer.size, group.ranks, group.rank
    if kind == "keep":
        return tensor.view_as(tensor)
    if kind == "first":
        return tensor.view_as(tensor) if rank == 0 else torch.zeros_like(tensor)
    if kind == "cut":
        first = min(start(size, ranks, rank), tensor.shape[axis])
        return tensor.narrow(axis, first, min(share(size, ranks, rank), tensor.shape[axis] - first)).contiguous()
    if kind == "all_reduce":
        return _all_reduce(tensor, group)
    if kind == "all_gather":
        return _all_gather(tensor, axis, size, transfer.lacking, group)
    if kind == "reduce_scatter":
        return _reduce_scatter(tensor, axis, size, group)
    return _all_to_all(tensor, transfer, group)


def _wait(tensor: Tensor) -> Tensor:
    return torch.ops._c10d_functional.wait_tensor(tensor)  # type: ignore[no-any-return]


def _all_reduce(tensor: Tensor, group: Group) -> Tensor:
    return _wait(torch.ops._c10d_functional.all_reduce(tensor.contiguous(), "sum", group.name))


def _padded(tensor: Tensor, axis: int, size: int) -> Tensor:
    lacking = size - tensor.shape[axis]
    if not lacking:
        return tensor
    shape = list(tensor.shape)
    shape[axis] = lacking
    return torch.cat([tensor, tensor.new_zeros(shape)], axis)


def _all_gather(tensor: Tensor, axis: int, size: int, lacking: int, group: Group) -> Tensor:
    piece = _padded(tensor, axis, share(size, group.ranks)).contiguous()
    gathered = _wait(torch.ops._c10d_functional.all_gather_into_tensor(piece, group.ranks, group.name))
    whole = torch.cat(gathered.chunk(group.ranks), axis) if axis else gathered
    return whole if whole.shape[axis] == size - lacking else whole.narrow(axis, 0, size - lacking)


def _reduce_scatter(tensor: Tensor, axis: int, size: int, group: Group) -> Tensor:
    piece = share(size, group.ranks)
    padded = _padded(tensor, axis, piece * group.ranks)
    stacked = (
        torch.cat(padded.chunk(group.ranks, axis)) if axis else padded
    ).contiguous()  # cat keeps strides of its own
    reduced = _wait(torch.ops._c10d_functional.reduce_scatter_tensor(stacked, "sum", group.ranks, group.name))
    mine = share(size, group.ranks, group.rank)
    return reduced if reduced.shape[axis] == mine else reduced.narrow(axis, 0, mine)


def _all_to_all(tensor: Tensor, transfer: Transfer, group: Group) -> Tensor:
    ranks, axis, to_axis = group.ranks, transfer.axis, transfer.to_axis
    piece, to_piece = share(transfer.size, ranks), share(transfer.to_size, ranks)
    padded = _padded(_padded(tensor, axis, piece), to_axis, to_piece * ranks)
    stacked = torch.stack(padded.chunk(ranks, to_axis)).contiguous()  # (p, .., piece, .., to_piece, ..)
    sizes = [1] * ranks
    arrived = _wait(torch.ops._c10d_functional.all_to_all_single(stacked, sizes, sizes, group.name))
    whole = torch.cat(arrived.unbind(), axis)
    return whole.narrow(axis, 0, transfer.size).narrow(to_axis, 0, share(transfer.to_size, ranks, group.rank))


def _exchange(tensor: Tensor, axis: int, have: Any, want: Any, group: Group) -> Tensor:
    mine, needed = have[group.rank], want[group.rank]
    sent = [_overlap(mine, other) for other in want]
    received = [_overlap(needed, other) for other in have]
    rows = tensor.movedim(axis, 0).contiguous()
    arrived = _wait(torch.ops._c10d_functional.all_to_all_single(rows, received, sent, group.name))
    return arrived.movedim(0, axis)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> int:
    return max(0, min(one[1], other[1]) - max(one[0], other[0]))
