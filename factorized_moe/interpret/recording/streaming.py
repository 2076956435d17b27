"""What the measurements of recordings share: one pass over coefficients that are numbers, for several of them at once.

Rows that are stored dense are handed on dense, some at a time, so that what is made of them stays in the processor's
cache: for 4,096 x 1,024 softmax coefficients a float64 copy took 34 ms as a whole and 6 ms in pieces, and finding the
entries that are not 0 takes longer than most measures. A piece is also too small for torch to divide among threads:
each division ends with the threads waiting for each other, and hundreds of them, with one core of two taken by another
program, made a histogram of 10,000 x 1,024 coefficients ten times as slow as on one thread.

Legend: ``n`` samples of a block, ``m`` of a piece of it, ``N`` experts, ``z`` coefficients that count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from factorized_moe._bars import if_slow
from factorized_moe._scalars import is_number
from factorized_moe._validation import check_kind
from factorized_moe.interpret.recording.coefficients import Mode
from factorized_moe.interpret.recording.recording import Recording
from factorized_moe.interpret.recording.rows import Rows

__all__ = [
    "WIDE_ELEMENTS",
    "Block",
    "Collector",
    "Float64Room",
    "active_entries",
    "check_threshold",
    "collect",
    "finite_blocks",
    "finite_rows",
    "in_step",
    "pieces_of",
    "reaches",
]

Numbers = TypeVar("Numbers", Tensor, NDArray[Any])

PIECE_ELEMENTS = 2**15 - 1
"""Elements of the pieces of a dense block: the most that torch does on one thread (its grain is 2**15)."""

WIDE_ELEMENTS = 2**20
"""Elements of a piece for what torch divides among threads however small it is: adding rows up by an index."""


class Block:
    """Consecutive samples of one expert mode, every coefficient finite; what several collectors ask for is found once.

    Args:
        start: The number of the first sample.
        rows: The coefficients.

    Attributes:
        start: The number of the first sample.
        rows: The coefficients.
    """

    def __init__(self, start: int, rows: Rows) -> None:
        self.start, self.rows = start, rows

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest stored coefficient; 0 if none is stored, NaN if one is NaN."""
        if not self.rows.values.numel():
            return 0.0, 0.0
        least, most = self.rows.values.aminmax()
        return float(least), float(most)

    @cached_property
    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """As `Rows.entries`."""
        return self.rows.entries()

    def active(self, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
        """The samples, experts and values, each ``(z,)``, of the coefficients above 0 that reach a threshold."""
        sample, expert, value = self.entries
        active = reaches(value, threshold)
        return sample[active], expert[active], value[active]

    def pieces(self, elements: int = PIECE_ELEMENTS) -> Iterator[tuple[slice, Tensor]]:
        """Of a block that is stored dense, the coefficients of some samples at a time, ``(m, N)``, and which they are.

        The slices are of the block; nothing is copied.
        """
        return pieces_of(self.rows.values, elements)


def pieces_of(values: Tensor, elements: int = PIECE_ELEMENTS) -> Iterator[tuple[slice, Tensor]]:
    """The rows of a matrix, so many elements at a time, and which rows they are; nothing is copied."""
    step = max(1, elements // max(1, values.shape[1]))
    for first in range(0, len(values), step):
        some = slice(first, min(first + step, len(values)))
        yield some, values[some]


class Float64Room:
    """Room for the copies in float64 of one piece after the other, each in the place of the last.

    New memory for each would take longer than the copy.
    """

    def __init__(self) -> None:
        self._room = torch.empty(0, dtype=torch.float64)

    def copy(self, piece: Tensor) -> Tensor:
        """A copy of a matrix, ``(m, N)``, until the next one."""
        if self._room.numel() < piece.numel():
            self._room = torch.empty(piece.numel(), dtype=torch.float64)
        found = self._room[: piece.numel()].view(piece.shape)
        return found.copy_(piece)


def in_step(recording: Recording, layer: str | None) -> Recording:
    """Of a recording whose layers have samples of their own, those of one layer.

    Raises:
        TypeError: If it is no recording.
        ValueError: If there is no such layer.
    """
    check_kind("recording", recording, Recording)
    return recording.in_step_with(layer)


class Collector(Protocol):
    """What gathers one measure, block after block."""

    def add(self, block: Block) -> None:
        """Take the next samples."""


def collect(recording: Recording, layer: str | None, mode: Mode, title: str, *collectors: Collector) -> None:
    """Give every block of an expert mode to all collectors, in one pass over the recording.

    Args:
        recording: The recording.
        layer: The layer's name.
        mode: The expert mode.
        title: What is measured, for the progress bar.
        collectors: What takes the blocks.

    Raises:
        ValueError: If a coefficient is not finite, or there is no such layer or mode.
    """
    for block in finite_blocks(recording, layer, mode, title):
        for collector in collectors:
            collector.add(block)


def finite_blocks(
    recording: Recording, layer: str | None, mode: Mode, title: str = "", *, checked: bool = True
) -> Iterator[Block]:
    """The blocks of an expert mode, in order; a progress bar shows if that takes long and there is a title.

    Where what is made of a block shows whether it is finite, ``checked=False`` saves looking at it twice.

    Raises:
        ValueError: If a coefficient is not finite, or there is no such layer or mode.
    """
    stream = recording.stream(layer, mode)
    with if_slow(title, recording.num_samples if title else 0, "sample") as bar:
        for start, rows in stream:
            block = Block(start, rows)
            if checked and not all(map(math.isfinite, block.range)):
                row, expert, values = rows.entries()
                first = int((~torch.isfinite(values)).nonzero()[0])
                raise ValueError(
                    f"sample {start + int(row[first])} of layer {recording.resolve(layer)!r} has the coefficient "
                    f"{float(values[first])} for expert {int(expert[first])}; measurements need finite ones"
                )
            yield block
            bar.update(len(rows))


def finite_rows(recording: Recording, layer: str | None, mode: Mode) -> Iterator[tuple[int, Rows]]:
    """As `Recording.stream`, and every coefficient is finite.

    Raises:
        ValueError: If one is not, or there is no such layer or mode.
    """
    for block in finite_blocks(recording, layer, mode):
        yield block.start, block.rows


def reaches(values: Numbers, threshold: float) -> Numbers:
    """Which coefficients are above 0 and reach a threshold, bool of the same shape."""
    return (values > 0) if threshold == 0 else (values >= threshold)


def active_entries(rows: Rows, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """The samples, experts and values, each ``(z,)``, of the coefficients above 0 that reach a threshold."""
    sample, expert, value = rows.entries()
    active = reaches(value, threshold)
    return sample[active], expert[active], value[active]


def check_threshold(threshold: float) -> None:
    """Refuse what is no threshold for coefficients.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is negative or not finite.
    """
    if not is_number(threshold):
        raise TypeError(f"threshold is a number, got {threshold!r}")
    if not 0 <= threshold < math.inf:
        raise ValueError(f"threshold must be 0 or more and finite, got {threshold}; 0 counts every coefficient above 0")
