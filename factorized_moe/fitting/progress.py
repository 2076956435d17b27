"""A progress bar for fits that take long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from factorized_moe._bars import progress
from factorized_moe.fitting.problem import Report

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(show: bool) -> Iterator[Report]:
    """A function that counts sweeps and shows the error that each has reached; nothing is shown if not asked for.

    Raises:
        ModuleNotFoundError: If it is asked for and tqdm is not installed.
    """
    if not show:
        yield lambda error: None
        return
    with progress(desc="fit", unit=" sweeps") as bar:

        def report(error: float) -> None:
            bar.set_postfix(error=f"{error:.3e}", refresh=False)
            bar.update()

        yield report
