"""The smallest rank whose fit reaches an error."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from factorized_moe.fitting.result import Fit

__all__ = ["smallest_rank_fit"]


def smallest_rank_fit(error: float, largest: int, fit_rank: Callable[[int], Fit], bound: Callable[[int], float]) -> Fit:
    """The fit of the smallest int rank that reaches an error: doubled until one does, then bisected.

    Args:
        error: The largest relative error.
        largest: The largest rank to try.
        fit_rank: From an int rank to its fit.
        bound: From an int rank to a bound from below on its error: where it exceeds ``error``, no fit is made.

    Raises:
        ValueError: If no rank reaches the error.
    """
    remembered = lru_cache(maxsize=None)(fit_rank)

    def reaches(rank: int) -> bool:
        return bound(rank) <= error and remembered(rank).relative_error <= error

    low, high = 0, 1
    while not reaches(high):
        if high == largest:
            raise ValueError(
                f"no rank up to {largest} reaches a relative error of {error}; that rank's is "
                f"{remembered(largest).relative_error:.3g}"
            )
        low, high = high, min(2 * high, largest)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return remembered(high)
