"""The gate's activation alone, over rows of logits: entmax beside softmax, and beside the entmax package."""

from __future__ import annotations

from collections.abc import Iterator

import entmax
import torch
from torch import Tensor

from benchmarks.measuring import Effort
from benchmarks.rows import Contender, Row, compare
from factorized_moe.activations import entmax15, softmax

__all__ = ["SHAPES", "TITLE", "rows"]

TITLE = "The gate's activation alone, beside softmax"

SHAPES = ((1, 64), (1, 1024), (64, 256), (1024, 64), (1024, 256), (1024, 1024), (1024, 4096), (16384, 64))
"""Rows and the experts of each."""

SPREAD = 0.5
"""The standard deviation of the logits: that of normalised ones at the default temperature."""


def rows(effort: Effort, shapes: tuple[tuple[int, int], ...] = SHAPES) -> Iterator[Row]:
    """Forward and with gradients, eager; of one shape also compiled."""
    for rows_, experts in shapes:
        logits = SPREAD * torch.randn(rows_, experts)
        everyone = [
            Contender("softmax", softmax, ()),
            Contender("entmax15", entmax15, ()),
            Contender("entmax15 of the entmax package", _by_sorting, ()),
        ]
        case = f"{rows_:,} x {experts:,}"
        yield from compare(case, everyone[0], everyone[1:], [logits], effort)
        if effort.compiled and (rows_, experts) == (1024, 1024):
            yield from compare(case, everyone[0], everyone[1:2], [logits], effort, compiled=True)


def _by_sorting(logits: Tensor) -> Tensor:
    found: Tensor = entmax.entmax15(logits, dim=-1)
    return found
