"""Progress bars, by tqdm where it is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["if_slow", "progress"]

SLOW = 2.0
"""Seconds after which work says how far it is."""


def progress(**options: Any) -> Any:
    """A bar on the standard error stream, to be used in a ``with`` statement.

    Args:
        options: As for ``tqdm.tqdm``.

    Raises:
        ModuleNotFoundError: If tqdm is not installed.

    Examples:
        >>> with progress(total=2, unit="step", disable=True) as bar:
        ...     for _ in range(2):
        ...         bar.update()
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a progress bar needs tqdm: pip install 'factorized-moe[progress]'") from error
    return tqdm(**options)


class _NoBar:
    """Takes what a bar takes, and shows nothing."""

    def update(self, count: int = 1) -> None:
        """Nothing."""


@contextmanager
def if_slow(title: str, total: int | None, unit: str) -> Iterator[Any]:
    """A bar that shows itself after two seconds, to someone who watches: in a terminal or a notebook, with tqdm there.

    Args:
        title: What goes on; without a title there is no bar.
        total: How much there is to do; ``None`` if that is not known.
        unit: What is counted.

    Yields:
        A bar with ``update(count)``.

    Examples:
        >>> with if_slow("load", 2, "sample") as bar:
        ...     bar.update(2)
    """
    watched = sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    bar = None
    if title and watched:
        with suppress(ModuleNotFoundError):
            bar = progress(desc=title, total=total, unit=f" {unit}s", delay=SLOW, leave=False)
    if bar is None:
        yield _NoBar()
        return
    with bar:
        yield bar
