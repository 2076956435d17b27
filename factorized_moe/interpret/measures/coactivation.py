"""Which experts of a recording are active together.

Legend: ``n`` samples, ``N`` experts of one mode or of the whole grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factorized_moe.interpret.measures.measurement import Measurement
from factorized_moe.interpret.recording.coefficients import Mode
from factorized_moe.interpret.recording.recording import Recording
from factorized_moe.interpret.recording.rows import Rows
from factorized_moe.interpret.recording.streaming import Block, check_threshold, collect, in_step, reaches

__all__ = ["Coactivation", "measure_coactivation"]

MOST_COACTIVE = 2**14
"""Experts up to which co-activation is counted: 2 GiB of counts."""


@dataclass(frozen=True, eq=False)
class Coactivation(Measurement):
    """On how many samples two experts are active together.

    Attributes:
        counts: The samples on which both are active, ``(N, N)``, int64; on the diagonal those of each expert.
        num_samples: ``n``.
        threshold: The least coefficient of an active expert; 0 for any above 0.
        grid: The sizes of the expert modes that the experts are counted over.
    """

    counts: Tensor
    num_samples: int
    threshold: float
    grid: tuple[int, ...]

    @property
    def conditional(self) -> Tensor:
        """Of the samples of the row's expert, the share on which the column's is active, ``(N, N)``; NaN for none."""
        return self.counts.double() / self.counts.diagonal()[:, None]

    def columns(self) -> dict[str, list[Any]]:
        """One row for each pair of different experts that are active together, the lower number first."""
        first, second = self.counts.triu(diagonal=1).nonzero(as_tuple=True)
        return {"first": first.tolist(), "second": second.tolist(), "count": self.counts[first, second].tolist()}


def measure_coactivation(
    recording: Recording, threshold: float = 0.0, *, layer: str | None = None, mode: Mode = 0
) -> Coactivation:
    """Count the samples on which two experts are active together.

    Args:
        recording: The recording.
        threshold: The least coefficient of an active expert; 0 for any above 0.
        layer: The layer's name; may be left out if there is one layer only.
        mode: The number of an expert mode, or ``"product"`` for the experts of the whole grid.

    Raises:
        TypeError: If the threshold is not a number.
        ValueError: If it is out of range, a coefficient is not finite, there is no such layer or mode, or there are
            more than 16,384 experts.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> from factorized_moe.interpret import record
        >>> layer = CPMuMoE(8, 3, [3], rank=2)
        >>> with record(layer) as log:
        ...     y = layer(torch.randn(6, 8))
        >>> measure_coactivation(log.recording).counts.tolist()
        [[6, 6, 6], [6, 6, 6], [6, 6, 6]]
    """
    check_threshold(threshold)
    recording = in_step(recording, layer)
    grid = recording.grid(layer, mode)
    experts = math.prod(grid)
    if experts > MOST_COACTIVE:
        raise ValueError(
            f"co-activation of {experts:,} experts takes {experts:,} x {experts:,} counts, {MOST_COACTIVE:,} experts "
            "are the most; take one expert mode, or a layer with fewer experts"
        )
    found = _CoactivationCollector(experts, threshold)
    collect(recording, layer, mode, "co-activation", found)
    return Coactivation(found.counts.reshape(experts, experts), recording.num_samples, threshold, grid)


class _CoactivationCollector:
    """The co-activation of the blocks so far."""

    def __init__(self, experts: int, threshold: float) -> None:
        self.counts = torch.zeros(experts * experts, dtype=torch.int64)
        self._experts, self._threshold = experts, threshold

    def add(self, block: Block) -> None:
        """Take the next samples."""
        experts = self._experts
        if not block.rows.is_sparse:
            self._add_product(reaches(block.rows.values, self._threshold).float())
            return
        sample, expert, _ = block.active(self._threshold)
        active = torch.bincount(sample, minlength=len(block))
        pairs = float(active.double().square().sum())
        # A pair that is counted on its own costs about as much as 64 entries of a matrix product.
        if pairs * 64 > len(block) * experts**2:
            matrix = torch.zeros(len(block), experts)
            matrix[sample, expert] = 1
            self._add_product(matrix)
            return
        chosen = Rows(torch.ones(len(expert)), expert, active, experts)
        first = 0
        step = max(1, int(len(block) * 2**21 / max(pairs, 1.0)))
        while first < len(block):
            some = chosen[first : first + step]
            found = some.outer(some).columns
            assert found is not None  # a product of sparse rows is sparse
            self.counts.index_add_(0, found, torch.ones_like(found))
            first += step

    def _add_product(self, matrix: Tensor) -> None:
        self.counts += (matrix.T @ matrix).long().reshape(-1)  # float32 counts exactly up to 2**24 samples
