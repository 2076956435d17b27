"""How a mode is split into a group of labels of nearly equal sizes, for decompositions that tensorise the matrix."""

from __future__ import annotations

import itertools
from functools import lru_cache

__all__ = ["factors", "input_factors"]

MOST_UNEQUAL = 3
"""The largest ratio of two factors of an input mode that is not worth padding."""


@lru_cache(maxsize=1024)
def factors(size: int, count: int) -> tuple[int, ...]:
    """The factors, in ascending order, of the smallest sum whose product is a size.

    Args:
        size: The product.
        count: The number of factors.

    Examples:
        >>> factors(768, 2), factors(768, 3), factors(13, 2)
        ((24, 32), (8, 8, 12), (1, 13))
    """
    if count == 1:
        return (size,)
    smallest = (k for k in range(1, size + 1) if k**count <= size and size % k == 0)
    splits = ((k, *factors(size // k, count - 1)) for k in itertools.takewhile(lambda k: k**count <= size, smallest))
    return min((split for split in splits if split[0] <= split[1]), key=sum)


@lru_cache(maxsize=1024)
def input_factors(size: int, count: int) -> tuple[int, ...]:
    """The factors of the smallest number from a size on, in ascending order, none above 3 times another.

    A bias makes 769 rows of 768 features, a prime number, so an input mode may be padded.

    Args:
        size: The size of the input mode, the bias row included.
        count: The number of factors.

    Examples:
        >>> input_factors(768, 2), input_factors(769, 2), 22 * 35
        ((24, 32), (22, 35), 770)
    """
    found = (factors(candidate, count) for candidate in itertools.count(size))
    return next(split for split in found if split[-1] <= MOST_UNEQUAL * split[0])
