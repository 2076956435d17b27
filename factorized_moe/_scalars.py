"""What counts as a number where a user passes one: Python's and numpy's, but no bool."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TypeGuard

__all__ = ["is_number", "is_whole"]


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is an int, and no bool.

    Examples:
        >>> is_whole(3), is_whole(True), is_whole(3.0)
        (True, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number, and no bool; NaN and infinities are numbers.

    Examples:
        >>> is_number(3), is_number(2.5), is_number(True), is_number("3")
        (True, True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)
