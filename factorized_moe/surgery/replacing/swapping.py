"""Modules in the place of others, all or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

__all__ = ["installed", "replaced"]

Done = list[tuple[nn.Module, str, object]]
"""What was where: the holder, the name, and the old part."""


@contextmanager
def installed(model: nn.Module, changes: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put modules in place, all or none; an error within the context takes them out again.

    Args:
        model: The model.
        changes: The new module of each path.
    """
    done: Done = []
    try:
        _put(model, changes, done)
        yield
    except BaseException:
        _take_out(done)
        raise


@contextmanager
def replaced(model: nn.Module, changes: Mapping[str, nn.Module]) -> Iterator[None]:
    """As `installed`, but only for as long as the context lasts."""
    done: Done = []
    try:
        _put(model, changes, done)
        yield
    finally:
        _take_out(done)


def _put(model: nn.Module, changes: Mapping[str, nn.Module], done: Done) -> None:
    for path, module in changes.items():
        parent_path, _, name = path.rpartition(".")
        parent = model.get_submodule(parent_path)
        done.append((parent, name, getattr(parent, name)))
        setattr(parent, name, module)


def _take_out(done: Done) -> None:
    for parent, name, old in reversed(done):
        if not isinstance(old, nn.Module):
            delattr(parent, name)  # torch refuses anything but a module in place of a module
        setattr(parent, name, old)
