"""How much each expert of a recording is used: load, dead experts, histograms, and which experts go together.

Legend: ``n`` samples, ``N`` experts of one mode or of the whole grid, ``B`` bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factorized_moe._scalars import is_number, is_whole
from factorized_moe._validation import check_kind, check_size, check_values
from factorized_moe.interpret.measures.measurement import Measurement, expert_columns
from factorized_moe.interpret.recording.recording import Mode, Recording
from factorized_moe.interpret.recording.rows import Rows
from factorized_moe.interpret.recording.streaming import active_entries, check_threshold, finite_rows

__all__ = ["Coactivation", "Histogram", "Load", "measure_coactivation", "measure_histogram", "measure_load"]

MOST_COACTIVE = 2**14
"""Experts up to which co-activation is counted: 2 GiB of counts."""


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
    check_kind("recording", recording, Recording)
    grid = recording.grid(layer, mode)
    experts = math.prod(grid)
    counts = torch.zeros(experts, dtype=torch.int64)
    sums, largest = torch.zeros(experts, dtype=torch.float64), torch.zeros(experts, dtype=torch.float64)
    for _, rows in finite_rows(recording, layer, mode):
        _, expert, value = rows.entries()
        sums.index_add_(0, expert, value.double())
        largest.scatter_reduce_(0, expert, value.double(), "amax")
        counts += torch.bincount(active_entries(rows, threshold)[1], minlength=experts)
    samples = recording.num_samples
    return Load(counts, sums / max(1, samples), largest, samples, threshold, grid)


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
    check_kind("recording", recording, Recording)
    experts = math.prod(recording.grid(layer, mode))
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)

    def count(values: Tensor) -> Tensor:
        inside = values[(values >= low) & (values <= high)].double()  # float32 has 0.7 as a little less
        return torch.bincount((torch.bucketize(inside, edges, right=True) - 1).clamp(0, bins - 1), minlength=bins)

    counts, largest_counts = torch.zeros(2, bins, dtype=torch.int64)
    nonzeros = 0
    for _, rows in finite_rows(recording, layer, mode):
        sample, _, value = rows.entries()
        nonzeros += len(value)
        counts += count(value)
        start = torch.where(rows.nonzeros() < experts, 0.0, -math.inf).to(value.dtype)  # a 0 counts where there is one
        largest_counts += count(start.scatter_reduce(0, sample, value, "amax"))
    zeros = recording.num_samples * experts - nonzeros
    return Histogram(edges, counts, largest_counts, zeros, nonzeros - int(counts.sum()))


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
    check_kind("recording", recording, Recording)
    grid = recording.grid(layer, mode)
    experts = math.prod(grid)
    if experts > MOST_COACTIVE:
        raise ValueError(
            f"co-activation of {experts:,} experts takes {experts:,} x {experts:,} counts, {MOST_COACTIVE:,} experts "
            "are the most; take one expert mode, or a layer with fewer experts"
        )
    counts = torch.zeros(experts * experts, dtype=torch.int64)
    for _, rows in finite_rows(recording, layer, mode):
        sample, expert, _ = active_entries(rows, threshold)
        active = torch.bincount(sample, minlength=len(rows))
        pairs = float(active.double().square().sum())
        # A pair that is counted on its own costs about as much as 64 entries of a matrix product.
        if pairs * 64 > len(rows) * experts**2:
            matrix = torch.zeros(len(rows), experts)
            matrix[sample, expert] = 1  # float32 counts exactly up to 2**24 samples
            counts += (matrix.T @ matrix).long().reshape(-1)
            continue
        chosen = Rows(torch.ones(len(expert)), expert, active, experts)
        first = 0
        step = max(1, int(len(rows) * 2**21 / max(pairs, 1.0)))
        while first < len(rows):
            some = chosen[first : first + step]
            found = some.outer(some).columns
            assert found is not None  # a product is sparse
            counts.index_add_(0, found, torch.ones_like(found))
            first += step
    return Coactivation(counts.reshape(experts, experts), recording.num_samples, threshold, grid)
