"""Putting modules into a model, all or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from factorized_moe.surgery.replacing.delta import MuMoEDelta

__all__ = ["freeze_base", "installed"]


@contextmanager
def installed(model: nn.Module, changes: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put modules in place, all or none; an error within the context takes them out again.

    Args:
        model: The model.
        changes: The new module of each path.
    """
    done: list[tuple[nn.Module, str, object]] = []
    try:
        for path, module in changes.items():
            parent_path, _, name = path.rpartition(".")
            parent = model.get_submodule(parent_path)
            done.append((parent, name, getattr(parent, name)))
            setattr(parent, name, module)
        yield
    except BaseException:
        for parent, name, old in reversed(done):
            if not isinstance(old, nn.Module):
                delattr(parent, name)  # torch refuses anything but a module in place of a module
            setattr(parent, name, old)
        raise


def freeze_base(model: nn.Module) -> None:
    """Leave gradients to the layers of experts in a model's deltas alone."""
    deltas = [module for module in model.modules() if isinstance(module, MuMoEDelta)]
    trained = {id(parameter) for delta in deltas for parameter in delta.experts.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in trained:
            parameter.requires_grad_(False)
