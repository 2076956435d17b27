"""Progress bars, by tqdm where it is installed."""

from __future__ import annotations

from typing import Any

__all__ = ["progress"]


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
