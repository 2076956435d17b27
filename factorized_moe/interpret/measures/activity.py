"""How much each expert of a recording is used: load, and dead experts.

Legend: ``n`` samples, ``N`` experts of one mode or of the whole grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from factorized_moe._validation import check_size, check_values
from factorized_moe.interpret.measures.measurement import Measurement, expert_columns
from factorized_moe.interpret.recording.coefficients import Mode
from factorized_moe.interpret.recording.recording import Recording
from factorized_moe.interpret.recording.streaming import Block, check_threshold, collect, in_step, reaches

__all__ = ["Load", "LoadCollector", "measure_load"]


@dataclass(frozen=True, eq=False)
class Load(Measurement):
    """On how many samples each expert is active, and how large its coefficients are.

    Attributes:
        counts: The samples on which each expert is active, ``(N,)``, int64.
        means: The mean of each expert's coefficients over all samples, ``(N,)``, float64.
        largest: Each expert's largest coefficient, ``(N,)``, float64; 0 if it has none above 0.
        num_samples: ``n``.
        threshold: The least coefficient of an active expert; 0 for any above 0.
        grid: The sizes of the expert modes that the experts are counted over.
    """

    counts: Tensor
    means: Tensor
    largest: Tensor
    num_samples: int
    threshold: float
    grid: tuple[int, ...]

    @classmethod
    def of(cls, coefficients: Tensor, threshold: float = 0.5) -> Load:
        """The load of one mode's coefficients that are at hand; `measure_load` reads a recording.

        Args:
            coefficients: ``(*batch, N)``.
            threshold: The least coefficient of an active expert; 0 for any above 0.

        Raises:
            TypeError: If the threshold is not a number, or the coefficients no tensor of a floating type.
            ValueError: If it is out of range, or the coefficients are not finite or have no expert axis.

        Examples:
            >>> load = Load.of(torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.4, 0.3, 0.3]]))
            >>> load.counts.tolist(), load.num_active
            ([2, 0, 0], 1)
        """
        check_threshold(threshold)
        if not isinstance(coefficients, Tensor) or not coefficients.is_floating_point():
            kind = coefficients.dtype if isinstance(coefficients, Tensor) else type(coefficients).__name__
            raise TypeError(f"coefficients are a tensor of a floating type, got {kind}")
        check_values("coefficients", coefficients)
        if not coefficients.isfinite().all():
            raise ValueError("coefficients have a value that is not finite, of which no expert is active or dead")
        if coefficients.ndim == 0:
            raise ValueError("coefficients are a single number, expected (*batch, N): the last axis is the experts")
        rows = coefficients.detach().reshape(-1, coefficients.shape[-1]).double()
        counts = ((rows > 0) & (rows >= threshold)).sum(dim=0)
        largest = rows.clamp(min=0).amax(dim=0) if len(rows) else rows.new_zeros(rows.shape[-1])
        return cls(counts, rows.sum(dim=0) / max(1, len(rows)), largest, len(rows), threshold, (rows.shape[-1],))

    @property
    def num_active(self) -> int:
        """The number of experts that are active on some sample."""
        return int((self.counts > 0).sum())

    @property
    def shares(self) -> Tensor:
        """The share of all samples on which each expert is active, ``(N,)``, float64."""
        return self.counts.double() / max(1, self.num_samples)

    def dead(self, fewest: int = 1) -> Tensor:
        """The experts that are active on fewer than so many samples, int64.

        Raises:
            TypeError: If ``fewest`` is not an int.
            ValueError: If it is not positive.
        """
        check_size("fewest", fewest)
        return (self.counts < fewest).nonzero().squeeze(1)

    def columns(self) -> dict[str, list[Any]]:
        """One row for each expert."""
        values = {"count": self.counts, "share": self.shares, "mean": self.means, "largest": self.largest}
        return expert_columns(self.grid) | {name: tensor.tolist() for name, tensor in values.items()}


def measure_load(recording: Recording, threshold: float = 0.5, *, layer: str | None = None, mode: Mode = 0) -> Load:
    """Count the samples on which each expert is active: its coefficient is above 0 and at least ``threshold``.

    The definition is that of Oldfield et al. 2024 (arXiv 2402.12550), whose threshold is one half.

    Args:
        recording: The recording.
        threshold: The least coefficient; 0 for any above 0.
        layer: The layer's name; may be left out if there is one layer only.
        mode: The number of an expert mode, or ``"product"`` for the experts of the whole grid.

    Raises:
        TypeError: If the threshold is not a number.
        ValueError: If it is out of range, a coefficient is not finite, or there is no such layer or mode.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> from factorized_moe.interpret import record
        >>> layer = CPMuMoE(8, 3, [4], rank=2)
        >>> with record(layer) as log:
        ...     y = layer(torch.randn(6, 8))  # the gate of a new layer mixes uniformly
        >>> load = measure_load(log.recording, threshold=0.25)
        >>> load.counts.tolist(), load.dead().tolist(), load.means.tolist()
        ([6, 6, 6, 6], [], [0.25, 0.25, 0.25, 0.25])
    """
    check_threshold(threshold)
    recording = in_step(recording, layer)
    found = LoadCollector(recording.grid(layer, mode), threshold)
    collect(recording, layer, mode, "load", found)
    return found.result()


class LoadCollector:
    """The load of the blocks so far.

    Args:
        grid: The sizes of the expert modes that the experts are counted over.
        threshold: The least coefficient of an active expert; 0 for any above 0.
    """

    def __init__(self, grid: tuple[int, ...], threshold: float) -> None:
        check_threshold(threshold)
        self._grid, self._threshold = grid, threshold
        self._counts = torch.zeros(math.prod(grid), dtype=torch.int64)
        self._sums = torch.zeros(math.prod(grid), dtype=torch.float64)
        self._largest = self._sums.clone()
        self._samples = 0

    def add(self, block: Block) -> None:
        """Take the next samples."""
        self._samples += len(block)
        if block.rows.is_sparse:
            _, expert, value = block.entries
            self._sums.index_add_(0, expert, value.double())
            self._largest.scatter_reduce_(0, expert, value.double(), "amax")
            self._counts += torch.bincount(block.active(self._threshold)[1], minlength=len(self._counts))
            return
        for _, piece in block.pieces():
            self._sums += piece.double().sum(dim=0)
            self._largest = torch.maximum(self._largest, piece.amax(dim=0))
            # NumPy counts along an axis 30 times as fast as torch adds bools up.
            self._counts += torch.from_numpy(np.count_nonzero(reaches(piece.numpy(), self._threshold), axis=0))

    def result(self) -> Load:
        """What was seen so far."""
        means = self._sums / max(1, self._samples)
        return Load(self._counts, means, self._largest, self._samples, self._threshold, self._grid)
