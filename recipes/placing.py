"""Where a model's parameters lie, outside the model and outside the loop: whole, or spread by FSDP2, or experts shared.

With neither option Accelerate decides: one process, DDP, or what ``accelerate config`` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from factorized_moe.parallel import shard, synchronise_gates
from recipes.options import Options
from recipes.recipe import has_experts

__all__ = ["Place", "place", "units"]


@dataclass(frozen=True)
class Place:
    """Which share of the data a process has.

    Attributes:
        rank: Its number among the processes that have different data.
        ranks: How many these are.
        spread: Whether the parameters were spread here, so that Accelerate need not wrap the model.
    """

    rank: int = 0
    ranks: int = 1
    spread: bool = False


def place(model: nn.Module, options: Options, accelerator: Any) -> Place:
    """Spread a model's parameters over the processes as the options say, in place.

    Args:
        model: The model, on its device.
        options: Those of the run.
        accelerator: Accelerate's.

    Raises:
        ValueError: If the processes cannot be divided so.
    """
    ranks, shared = accelerator.num_processes, options.expert_ranks
    if ranks % shared:
        raise ValueError(f"--expert-ranks {shared} does not divide the {ranks} processes")
    if ranks == 1:
        return Place()
    if shared == 1 and not options.fully_shard:
        if has_experts(model):
            synchronise_gates(model)
        return Place(accelerator.process_index, ranks)
    mesh = init_device_mesh(accelerator.device.type, (ranks // shared, shared), mesh_dim_names=("data", "experts"))
    data = mesh["data"]
    if shared > 1:
        shard(model, mesh["experts"], options.expert_label)
    if data.size() > 1:
        if has_experts(model):
            synchronise_gates(model, data.get_group())
        for unit in (*units(model), model):
            fully_shard(unit, mesh=data)
    return Place(data.get_local_rank(), data.size(), spread=True)


def units(model: nn.Module) -> Iterator[nn.Module]:
    """The layers that FSDP2 gathers one at a time: the entries of the longest list of modules."""
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList | nn.Sequential)]
    yield from max(lists, key=lambda part: sum(p.numel() for p in part.parameters()), default=())
