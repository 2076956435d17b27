"""Differences between contenders that were given the same seeds, with their standard errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Difference", "paired"]

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The two-sided 95% points of Student's t, for 2, 3, .. pairs."""


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
    def half_width(self) -> float:
        """Half the 95% interval of the mean, by Student's t: 4.3 errors for three pairs, about two for many."""
        number = self.pairs - 2
        t = T_95[max(0, number)] if number < len(T_95) else 1.96 + 2.6 / (self.pairs - 1)
        return t * self.error

    @property
    def interval(self) -> str:
        """The interval in words.

        Examples:
            >>> paired([2.0, 3.0, 4.0], [1.0, 3.0, 2.0]).interval
            '[-1.484, +3.484]'
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
