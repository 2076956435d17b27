"""What the ranks of a distillation do together; a process alone does none of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed
from torch import Tensor

__all__ = ["Ranks"]


class Ranks:
    """The ranks of a group, or this process alone.

    Args:
        group: The group; none for this process alone.
    """

    def __init__(self, group: torch.distributed.ProcessGroup | None) -> None:
        self.group = group
        self.number = 1 if group is None else torch.distributed.get_world_size(group)
        self.rank = 0 if group is None else torch.distributed.get_rank(group)

    def take_firsts(self, tensors: Iterable[Tensor]) -> None:
        """Give all ranks the values of the first one."""
        if self.group is not None:
            first = torch.distributed.get_global_rank(self.group, 0)
            for tensor in tensors:
                torch.distributed.broadcast(tensor.detach(), first, group=self.group)

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error of one rank in the block ends it on all of them.

        Raises:
            FloatingPointError: If another rank raised an error.
        """
        error: BaseException | None = None
        try:
            yield
        except (FloatingPointError, TypeError, ValueError) as found:
            if self.group is None:
                raise
            error = found
        if self.group is None:
            return
        failed = torch.zeros(self.number)
        failed[self.rank] = error is not None
        torch.distributed.all_reduce(failed, group=self.group)
        if error is not None:
            raise error
        if failed.any():
            raise FloatingPointError(f"rank {int(failed.argmax())} stopped with an error; see there")

    def mean(self, losses: Mapping[str, float], parameters: Iterable[Tensor]) -> dict[str, float]:
        """The mean losses of all ranks; gradients become theirs too, in place."""
        if self.group is None:
            return dict(losses)
        for parameter in parameters:
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad, group=self.group)
                parameter.grad /= self.number
        shared = torch.tensor(list(losses.values()), dtype=torch.float64)
        torch.distributed.all_reduce(shared, group=self.group)
        return dict(zip(losses, (shared / self.number).tolist(), strict=True))

    def all_states(self, state: Tensor) -> Tensor:
        """The states of all ranks' generators, one row each; of a process alone its own as it is."""
        if self.group is None:
            return state
        rows = [torch.empty_like(state) for _ in range(self.number)]
        torch.distributed.all_gather(rows, state, group=self.group)
        return torch.stack(rows)
