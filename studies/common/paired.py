"""Differences between contenders that were given the same seeds, with their standard errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Difference", "paired"]


@dataclass(frozen=True)
class Difference:
    """The mean difference of pairs.

    Attributes:
        mean: The mean.
        error: Its standard error; NaN for one pair.
        pairs: Their number.
    """

    mean: float
    error: float
    pairs: int

    @property
    def is_tie(self) -> bool:
        """Whether the mean is within two standard errors of zero, or its error is unknown."""
        return math.isnan(self.error) or abs(self.mean) <= 2.0 * self.error

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.error:.3f}"


def paired(one: Sequence[float], other: Sequence[float]) -> Difference:
    """The mean of ``one - other``, pair by pair.

    Args:
        one: Values, one for each seed.
        other: Values for the same seeds, in the same order.

    Raises:
        ValueError: If there is no pair, or the numbers differ.

    Examples:
        >>> str(paired([2.0, 3.0, 4.0], [1.0, 3.0, 2.0]))
        '+1.000 ± 0.577'
    """
    if not one or len(one) != len(other):
        raise ValueError(f"paired values are of one number, 1 or more, got {len(one)} and {len(other)}")
    differences = [a - b for a, b in zip(one, other, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else math.nan
    return Difference(statistics.fmean(differences), error, len(differences))
