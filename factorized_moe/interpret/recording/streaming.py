"""What the measurements of recordings share: a stream of coefficients that are numbers, and which of them count.

Legend: ``n`` samples, ``z`` coefficients that count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from factorized_moe._scalars import is_number
from factorized_moe.interpret.recording.recording import Mode, Recording
from factorized_moe.interpret.recording.rows import Rows

__all__ = ["active_entries", "check_threshold", "finite_rows"]


def finite_rows(recording: Recording, layer: str | None, mode: Mode) -> Iterator[tuple[int, Rows]]:
    """As `Recording.stream`, and every coefficient is finite.

    Raises:
        ValueError: If one is not, or there is no such layer or mode.
    """
    for start, rows in recording.stream(layer, mode):
        if not torch.isfinite(rows.values).all():
            row, expert, values = rows.entries()
            first = int((~torch.isfinite(values)).nonzero()[0])
            raise ValueError(
                f"sample {start + int(row[first])} of layer {recording.resolve(layer)!r} has the coefficient "
                f"{float(values[first])} for expert {int(expert[first])}; measurements need finite ones"
            )
        yield start, rows


def active_entries(rows: Rows, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """The samples, experts and values, each ``(z,)``, of the coefficients above 0 that reach a threshold."""
    sample, expert, value = rows.entries()
    active = (value > 0) if threshold == 0 else (value >= threshold)
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
