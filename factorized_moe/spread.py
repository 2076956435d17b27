"""Tensors that `torch.distributed` spreads over ranks: put together, and filled from whole ones.

`torch.distributed.tensor` takes half a second to import. Without it no tensor is spread, so nothing here imports it.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["agree_on_random_numbers", "gathered_state", "is_first", "is_spread", "like", "whole"]


def is_spread(tensor: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all of its entries on this rank; gradients flow back. All its ranks have to call it."""
    spread: Any = tensor
    return spread.full_tensor() if is_spread(tensor) else tensor


def gathered_state(module: nn.Module) -> dict[str, Any]:
    """A module's state dict with whole tensors, on all ranks. What has two names in the module has one tensor here."""
    state: dict[str, Any] = module.state_dict()
    if not any(isinstance(value, Tensor) and is_spread(value) for value in state.values()):
        return state
    held = module.state_dict(keep_vars=True)
    put_together = {id(value): whole(value.detach()) for value in held.values() if isinstance(value, Tensor)}
    return {name: put_together.get(id(held[name]), value) for name, value in state.items()}


def is_first(module: nn.Module) -> bool:
    """Whether this rank is to write what all ranks hold: the first one, if any of the module's parameters is spread."""
    return torch.distributed.get_rank() == 0 if any(map(is_spread, module.parameters())) else True


def like(full: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, equal on all ranks, spread as another one; nothing is sent."""
    if not is_spread(target) or is_spread(full):
        return full
    spread: Any = target
    module = sys.modules["torch.distributed.tensor"]
    everywhere = [module.Replicate()] * spread.device_mesh.ndim
    given = module.DTensor.from_local(
        full.to(target.device, target.dtype), spread.device_mesh, everywhere, run_check=False
    )
    return given.redistribute(placements=spread.placements)  # type: ignore[no-any-return]


def agree_on_random_numbers(tensor: Tensor) -> None:
    """Give the random generators of all ranks of a spread tensor the state of its first rank's."""
    spread: Any = tensor
    mesh = spread.device_mesh
    on_gpu = tensor.device.type == "cuda"
    state = torch.cuda.get_rng_state(tensor.device) if on_gpu else torch.get_rng_state()
    state = state.to(tensor.device)
    for axis in range(mesh.ndim):
        group = mesh.get_group(axis)
        torch.distributed.broadcast(state, torch.distributed.get_global_rank(group, 0), group=group)
    if on_gpu:
        torch.cuda.set_rng_state(state.cpu(), tensor.device)
    else:
        torch.set_rng_state(state.cpu())
