"""How large the coefficients of a recording are: histograms of all, and of the largest of each sample.

Legend: ``n`` samples, ``N`` experts of one mode or of the whole grid, ``B`` bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from factorized_moe._scalars import is_number, is_whole
from factorized_moe.interpret.measures.measurement import Measurement
from factorized_moe.interpret.recording.coefficients import Mode
from factorized_moe.interpret.recording.recording import Recording
from factorized_moe.interpret.recording.streaming import Block, collect, in_step

__all__ = ["Histogram", "measure_histogram"]

Array = NDArray[Any]

MOST_IN_DOUBT = 0.1
"""The share of a bin's width near its edges from which on every number is looked up."""


@dataclass(frozen=True, eq=False)
class Histogram(Measurement):
    """Histograms of the coefficients of one expert mode, and of the largest one of each sample.

    Attributes:
        edges: The bins' edges, ``(B + 1,)``, float64; a bin holds its lower edge, the last one its upper too.
        counts: The coefficients in each bin, without zeros, ``(B,)``, int64.
        largest_counts: The samples by their largest coefficient, ``(B,)``, int64.
        zeros: The number of coefficients that are exactly 0.
        outside: The number of others that are in no bin.
    """

    edges: Tensor
    counts: Tensor
    largest_counts: Tensor
    zeros: int
    outside: int

    def columns(self) -> dict[str, list[Any]]:
        """One row for each bin."""
        return {
            "from": self.edges[:-1].tolist(),
            "to": self.edges[1:].tolist(),
            "count": self.counts.tolist(),
            "largest_count": self.largest_counts.tolist(),
        }


def measure_histogram(
    recording: Recording,
    bins: int = 50,
    *,
    low: float = 0.0,
    high: float = 1.0,
    layer: str | None = None,
    mode: Mode = 0,
) -> Histogram:
    """Count coefficients by size, and samples by their largest coefficient.

    Args:
        recording: The recording.
        bins: ``B``, of one width.
        low: The first bin's lower edge.
        high: The last bin's upper edge.
        layer: The layer's name; may be left out if there is one layer only.
        mode: The number of an expert mode, or ``"product"`` for the experts of the whole grid.

    Raises:
        ValueError: If there is no bin, a coefficient is not finite, or there is no such layer or mode.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> from factorized_moe.interpret import record
        >>> layer = CPMuMoE(8, 3, [4], rank=2)
        >>> with record(layer) as log:
        ...     y = layer(torch.randn(6, 8))
        >>> measure_histogram(log.recording, bins=5).counts.tolist()
        [0, 24, 0, 0, 0]
    """
    if not is_whole(bins):
        raise TypeError(f"bins is an int, got {bins!r}")
    for name, end in (("low", low), ("high", high)):
        if not is_number(end):
            raise TypeError(f"{name} is a number, got {end!r}")
    if bins < 1 or not -math.inf < low < high < math.inf:
        raise ValueError(f"expected at least one bin from low to a larger high, got {bins} from {low} to {high}")
    recording = in_step(recording, layer)
    grid = recording.grid(layer, mode)
    found = _HistogramCollector(math.prod(grid), torch.linspace(low, high, bins + 1, dtype=torch.float64))
    collect(recording, layer, mode, "histogram", found)
    return found.result()


class _HistogramCollector:
    """The histogram of the blocks so far."""

    def __init__(self, experts: int, edges: Tensor) -> None:
        self._experts, self._edges = experts, edges
        self._counts, self._largest = torch.zeros(2, len(edges) - 1, dtype=torch.int64)
        self._samples = self._nonzeros = 0
        self._bins: dict[torch.dtype, _Bins] = {}

    def add(self, block: Block) -> None:
        """Take the next samples."""
        self._samples += len(block)
        values = block.rows.values
        if values.dtype not in self._bins:
            self._bins[values.dtype] = _Bins(self._edges, values.dtype)
        bins = self._bins[values.dtype]
        if block.rows.is_sparse:
            sample, _, value = block.entries
            self._nonzeros += len(value)
            self._counts += bins.count(value, block.range)
            has_zero = block.rows.nonzeros() < self._experts  # a 0 counts where there is one
            start = torch.where(has_zero, 0.0, -math.inf).to(value.dtype)
            self._largest += bins.count(start.scatter_reduce(0, sample, value, "amax"))
            return
        for _, piece in block.pieces():
            self._counts += bins.count(piece, block.range)
            self._largest += bins.count(piece.amax(dim=1)) if piece.shape[1] else 0
        zeros = 0 if block.range[0] > 0 else int((values == 0).sum())
        self._nonzeros += values.numel() - zeros
        if zeros:
            self._counts -= zeros * bins.count(torch.zeros(1, dtype=values.dtype))

    def result(self) -> Histogram:
        """What was seen so far."""
        zeros = self._samples * self._experts - self._nonzeros
        return Histogram(self._edges, self._counts, self._largest, zeros, self._nonzeros - int(self._counts.sum()))


class _Bins:
    """Bins of one width, to count numbers of one type in.

    A number's bin is found by arithmetic; those that lie so near to an edge that rounding could decide are looked up
    among the edges. These are rounded up to the type, so that no copy in float64 is needed. The two ends are rounded
    to the nearest: float32 has 0.7 as a little less, and it is meant to be inside. NumPy does it on one thread, in half
    the time of a search among the edges (softmax coefficients, 50 bins).
    """

    def __init__(self, edges: Tensor, dtype: torch.dtype) -> None:
        wide = torch.float32 if dtype == torch.float16 else dtype  # half precision is slow, and exact in float32
        rounded = edges[1:-1].to(wide)
        above = torch.from_numpy(np.nextafter(rounded.numpy(), rounded.numpy().dtype.type(np.inf)))
        self._inner = torch.where(rounded.double() < edges[1:-1], above, rounded).numpy()
        self._ends = edges[[0, -1]].to(dtype).to(wide).numpy()
        self._wide, self._number = wide, len(edges) - 1
        low, high = float(edges[0]), float(edges[-1])
        self._low, self._width = low, (high - low) / self._number
        # What rounding adds up to, in widths of a bin: of a difference, of a quotient, and of the edges themselves.
        smallest = torch.finfo(wide).smallest_normal
        off = 8 * torch.finfo(wide).eps * (self._number + max(abs(low), abs(high)) / max(self._width, smallest))
        self._near = off if self._width > smallest else math.inf

    def count(self, numbers: Tensor, known: tuple[float, float] | None = None) -> Tensor:
        """How many lie in each bin, ``(B,)``, int64.

        Args:
            numbers: Of any shape, finite.
            known: The least and the largest, if they are known, of these or of more.
        """
        values = numbers.to(self._wide).numpy().reshape(-1)
        low, high = self._ends
        if known is None or known[0] < low or known[1] > high:
            values = values[(values >= low) & (values <= high)]
        if self._near > MOST_IN_DOUBT:
            return torch.from_numpy(self._counted(self._looked_up(values)))
        place = values - self._ends.dtype.type(self._low)
        place /= self._ends.dtype.type(self._width)
        # None is below the first edge or above the last: near those nothing is in doubt.
        np.clip(place, 0.25, self._number - 0.25, out=place)
        distance = np.rint(place)
        np.subtract(place, distance, out=distance)
        np.abs(distance, out=distance)
        near = np.flatnonzero(distance < self._near)
        found = place.astype(np.intp)
        if len(near):
            found[near] = self._looked_up(values[near])
        return torch.from_numpy(self._counted(found))

    def _looked_up(self, values: Array) -> Array:
        return np.searchsorted(self._inner, values, side="right")

    def _counted(self, places: Array) -> Array:
        return np.bincount(places, minlength=self._number)
