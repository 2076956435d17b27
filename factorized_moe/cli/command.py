"""What a sub-command is, and how the values of options are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Command", "read_rank", "read_rank_like", "read_sizes", "whole_number"]


@dataclass(frozen=True)
class Command:
    """One sub-command.

    Args:
        name: What is typed.
        summary: A line of help.
        description: What it does, for its own help.
        add_options: Adds its options to a parser. One that is not given is absent: defaults are the library's.
        run: Does the work, with the options as they were read.
    """

    name: str
    summary: str
    description: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def whole_number(smallest: int) -> Callable[[str], int]:
    """A reader of whole numbers from `smallest` on, for `add_argument(type=...)`."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {smallest}, got {text!r}")
        return int(text)

    return read


def read_sizes(text: str) -> tuple[int, ...]:
    """The sizes of expert modes: `32`, or `8x4`."""
    try:
        return tuple(whole_number(1)(part) for part in text.lower().split("x"))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected a number of experts such as 32, or one for each expert mode such as 8x4, got {text!r}"
        ) from None


def read_rank(text: str) -> int | tuple[int, ...]:
    """A rank: `32`, or `4,2,8,8`."""
    try:
        numbers = tuple(whole_number(1)(part.strip()) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected a positive number such as 32, or several such as 4,2,8,8, got {text!r}"
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]


def read_rank_like(text: str) -> int | float | str | tuple[int, ...]:
    """A rank, or what stands for one: `same`, or a fraction of the dense size such as `0.05`."""
    if text == "same":
        return text
    if "." in text:
        try:
            return float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a fraction such as 0.05, got {text!r}") from None
    return read_rank(text)
