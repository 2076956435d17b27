"""Differences between contenders that were given the same seeds, with their standard errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Difference", "paired", "student"]

STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
STUDENT += (2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09)
"""The 97.5% quantiles of Student's t for 2 to 20 values."""


def student(values: int) -> float:
    """How many standard errors the 95% interval of a mean reaches to either side; for more than 20 values, that for 20.

    Args:
        values: How many the mean is of, 2 or more.

    Examples:
        >>> student(5)
        2.78
    """
    return STUDENT[min(values, len(STUDENT) + 1) - 2]


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

    @property
    def is_unclear(self) -> bool:
        """Whether 0 is in the mean's 95% interval by Student's t, or its error is unknown."""
        return math.isnan(self.error) or abs(self.mean) <= student(self.pairs) * self.error

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.error:.3f}"

    @property
    def half_width(self) -> float:
        """Half the 95% interval of the mean, by Student's t; NaN for one pair."""
        return student(self.pairs) * self.error if self.pairs > 1 else math.nan

    @property
    def interval(self) -> str:
        """The interval in words.

        Examples:
            >>> paired([2.0, 3.0, 4.0], [1.0, 3.0, 2.0]).interval
            '[-1.483, +3.483]'
        """
        return f"[{self.mean - self.half_width:+.3f}, {self.mean + self.half_width:+.3f}]"

    def falls(self, margin: float) -> bool | None:
        """Whether the mean is below ``-margin``: None where the interval has it inside, or its error is unknown.

        Args:
            margin: How large a fall does not count, 0 or more.

        Examples:
            >>> [Difference(mean, 0.01, 1000).falls(0.05) for mean in (-0.1, -0.05, 0.0)]
            [True, None, False]
        """
        if self.mean - self.half_width >= -margin:
            return False
        return True if self.mean + self.half_width < -margin else None


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
