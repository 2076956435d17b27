"""Hooks that watch one model, and no copy of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["WatchingHook"]


class WatchingHook:
    """A hook that is not copied with its model: in a deep copy, or where the model was pickled, it does nothing.

    A closure would be shared with the copy, whose calls would then count as the model's, for as long as the copy lives.

    Args:
        hook: The hook; ``None`` for one that does nothing.
    """

    def __init__(self, hook: Callable[..., Any] | None) -> None:
        self._hook = hook

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """What the hook returns for a call of the module."""
        return None if self._hook is None else self._hook(*arguments, **keywords)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (None,)
