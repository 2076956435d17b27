"""The samples that use an expert most, and the experts that a sample uses most.

Legend: ``n`` samples, ``N`` experts of one mode or of the whole grid, ``k`` how many are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from factorized_moe._validation import check_seed, check_size
from factorized_moe.interpret.measures.keeping import KeptSamples, draw_order
from factorized_moe.interpret.measures.measurement import Measurement, ranked_columns
from factorized_moe.interpret.recording.coefficients import Mode
from factorized_moe.interpret.recording.recording import Recording
from factorized_moe.interpret.recording.streaming import Block, collect, finite_blocks, in_step

__all__ = ["TopExperts", "TopSamples", "TopSamplesCollector", "find_top_experts", "find_top_samples", "ids_of"]


Array = NDArray[Any]

FEW = 4
"""Candidates of a dense block for each sample kept; of more, the block's own largest are found first."""


@dataclass(frozen=True, eq=False)
class TopSamples(Measurement):
    """For each expert the samples with its largest coefficients, the largest first.

    Where more samples share the last coefficient than there is room for, those shown are drawn among them at random:
    ``drawn`` of ``equal``. An expert whose coefficient is 1 for 261 samples has then 12 of them, not the first 12.

    Attributes:
        samples: The samples' numbers in the recording, ``(N, k)``, int64; -1 where fewer have a coefficient above 0.
        values: Their coefficients, ``(N, k)``; 0 where there is no sample.
        ids: Their ids, ``(N, k)``, int64; -1 where there is no sample.
        grid: The sizes of the expert modes that the experts are counted over.
        equal: How many samples of the recording have the coefficient of the last sample shown, ``(N,)``, int64; 0
            for an expert without samples, ``None`` if that was not counted.
    """

    samples: Tensor
    values: Tensor
    ids: Tensor
    grid: tuple[int, ...]
    equal: Tensor | None = None

    @property
    def drawn(self) -> Tensor:
        """How many of the ``equal`` samples are among those shown, ``(N,)``, int64."""
        there = self.samples >= 0
        last = torch.where(there, self.values, torch.inf).amin(dim=1, keepdim=True)
        return ((self.values == last) & there).sum(dim=1)

    def columns(self) -> dict[str, list[Any]]:
        """One row for each expert and sample."""
        return ranked_columns(self.grid, self.samples, self.ids, self.values)


def find_top_samples(
    recording: Recording, k: int = 10, *, seed: int = 0, layer: str | None = None, mode: Mode = 0
) -> TopSamples:
    """Find for each expert the samples with its largest coefficients; among equal ones they are drawn at random.

    Sparse gates reach exactly 1, often for hundreds of samples. The first of them recorded would say how the data are
    sorted, not what the expert does; see also `sample_active`, which looks below the top.

    Args:
        recording: The recording.
        k: How many samples to keep for each expert.
        seed: Of the draw: the same seed gives the same samples.
        layer: The layer's name; may be left out if there is one layer only.
        mode: The number of an expert mode, or ``"product"`` for the experts of the whole grid.

    Raises:
        TypeError: If ``k`` or the seed is not an int.
        ValueError: If ``k`` is not positive, a coefficient is not finite, or there is no such layer or mode.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> from factorized_moe.interpret import record
        >>> layer = CPMuMoE(8, 3, [2], rank=2)
        >>> with record(layer) as log:
        ...     y = layer(torch.randn(6, 8))
        >>> top = find_top_samples(log.recording, k=3)
        >>> top.samples.shape, top.drawn.tolist(), top.equal.tolist()  # the gate of a new layer mixes uniformly
        (torch.Size([2, 3]), [3, 3], [6, 6])
    """
    k, seed = check_size("k", k), check_seed(seed)
    recording = in_step(recording, layer)
    found = TopSamplesCollector(recording, k, seed, layer, mode)
    collect(recording, layer, mode, "top samples", found)
    return found.result()


class TopSamplesCollector:
    """The top samples of the blocks so far.

    Args:
        recording: Where the blocks are from.
        k: How many samples to keep for each expert.
        seed: Of the draw among equals.
        layer: The layer's name.
        mode: The expert mode.
    """

    def __init__(self, recording: Recording, k: int, seed: int, layer: str | None, mode: Mode) -> None:
        self._recording, self._grid = recording, recording.grid(layer, mode)
        self._kept = KeptSamples(math.prod(self._grid), k, recording.dtype, largest=True)
        self._equal = torch.zeros(math.prod(self._grid), dtype=torch.int64)
        self._order = draw_order(recording.num_samples, seed)
        self._smallest = np.nextafter(torch.zeros((), dtype=recording.dtype).numpy(), 1)  # the least above 0

    def add(self, block: Block) -> None:
        """Take the next samples."""
        order = self._order[block.start : block.start + len(block)].numpy()
        # The last sample kept of each expert: its coefficient, and its place in the order.
        last, place = self._kept.values[:, -1].numpy().copy(), self._kept.places[:, -1].numpy()
        if block.rows.is_sparse:
            sample, expert, value = (entries.numpy() for entries in block.entries)
        else:
            sample, expert, value = self._candidates(block.rows.values, last)
        same = (value == last[expert]) & (value > 0)
        self._equal += torch.from_numpy(np.bincount(expert[same], minlength=len(last)))
        better = np.flatnonzero((value > last[expert]) | (same & (order[sample] < place[expert])))
        if not len(better):
            return
        sample, expert, value = sample[better], expert[better], value[better]
        offered = map(torch.from_numpy, (sample + block.start, expert, value, order[sample]))
        changed, equal = self._kept.offer(*offered)
        # Samples equal to a new last one were above the old one: all of them were kept or are offered now.
        risen = self._kept.values[changed, -1] > torch.from_numpy(last)[changed]
        self._equal[changed[risen]] = equal[risen]

    def _candidates(self, values: Tensor, last: Array) -> tuple[Array, Array, Array]:
        """The samples, experts and values of the coefficients, of a dense block, that may be among the largest.

        Where more than a few reach the last ones kept, those are raised to the block's own before any is taken out.
        """
        k, coefficients = self._kept.values.shape[1], values.numpy()
        least = np.maximum(last, self._smallest)
        reached = coefficients >= least
        if np.count_nonzero(reached) > FEW * k * len(least) and k <= len(values):
            reached = coefficients >= np.maximum(least, values.topk(k, dim=0).values[-1].numpy())
        found = np.flatnonzero(reached)
        sample, expert = np.divmod(found, len(least))
        return sample, expert, coefficients.reshape(-1)[found]

    def result(self) -> TopSamples:
        """What was seen so far."""
        samples, values = self._kept.samples, self._kept.values
        there = samples >= 0
        last = torch.where(there, values, torch.inf).amin(dim=1, keepdim=True)
        few = ((values == last) & there).sum(dim=1)  # of an expert with fewer than k samples, all are shown
        equal = torch.where(there.all(dim=1), self._equal, few)
        return TopSamples(samples, values, ids_of(self._recording, samples), self._grid, equal)


@dataclass(frozen=True, eq=False)
class TopExperts(Measurement):
    """For each sample the experts with the largest coefficients, the largest first.

    Attributes:
        experts: The experts, ``(n, k)``, int64; -1 where fewer have a coefficient above 0.
        values: Their coefficients, ``(n, k)``; 0 where there is no expert.
        ids: The samples' ids, ``(n,)``, int64.
    """

    experts: Tensor
    values: Tensor
    ids: Tensor

    def columns(self) -> dict[str, list[Any]]:
        """One row for each sample."""
        table = {"id": self.ids.tolist()}
        for rank in range(self.experts.shape[1]):
            table[f"expert_{rank}"] = self.experts[:, rank].tolist()
            table[f"coefficient_{rank}"] = self.values[:, rank].tolist()
        return table


def find_top_experts(recording: Recording, k: int = 5, *, layer: str | None = None, mode: Mode = 0) -> TopExperts:
    """Find for each sample the experts with the largest coefficients; of equal ones those of lower number.

    Args:
        recording: The recording.
        k: How many experts to keep for each sample.
        layer: The layer's name; may be left out if there is one layer only.
        mode: The number of an expert mode, or ``"product"`` for the experts of the whole grid.

    Raises:
        TypeError: If ``k`` is not an int.
        ValueError: If it is not positive, a coefficient is not finite, or there is no such layer or mode.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> from factorized_moe.interpret import record
        >>> layer = CPMuMoE(8, 3, [4], rank=2)
        >>> with record(layer) as log:
        ...     y = layer(torch.randn(2, 8))
        >>> find_top_experts(log.recording, k=2).experts.tolist()
        [[0, 1], [0, 1]]
    """
    k = check_size("k", k)
    recording = in_step(recording, layer)
    recording.grid(layer, mode)
    experts = torch.full((recording.num_samples, k), -1)
    values = torch.zeros(recording.num_samples, k, dtype=recording.dtype)
    for block in finite_blocks(recording, layer, mode, "top experts"):
        mine = slice(block.start, block.start + len(block))
        if block.rows.is_sparse:
            _top_of_entries(block, experts[mine], values[mine])
        else:
            _top_of_rows(block.rows.values, experts[mine], values[mine])
    return TopExperts(experts, values, recording.ids)


def _top_of_entries(block: Block, experts: Tensor, values: Tensor) -> None:
    """Write the top experts of sparse rows, ``(n, k)``."""
    sample, expert, value = block.active(0.0)
    order = value.argsort(descending=True, stable=True)
    order = order[sample[order].argsort(stable=True)]
    counts = torch.bincount(sample, minlength=len(block))
    row = sample[order]
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[row]
    kept = rank < experts.shape[1]
    experts[row[kept], rank[kept]] = expert[order][kept]
    values[row[kept], rank[kept]] = value[order][kept]


def _top_of_rows(rows: Tensor, experts: Tensor, values: Tensor) -> None:
    """Write the top experts of dense rows, ``(n, k)``; torch leaves the order of equals open, so those are sorted."""
    k = min(experts.shape[1], rows.shape[1])
    best, place = rows.topk(min(k + 1, rows.shape[1]), dim=1)
    tied = ((best[:, 1:] == best[:, :-1]) & (best[:, 1:] > 0)).any(dim=1)
    if tied.any():
        value, column = rows[tied].sort(dim=1, descending=True, stable=True)
        best[tied], place[tied] = value[:, : best.shape[1]], column[:, : best.shape[1]]
    there = best[:, :k] > 0
    experts[:, :k] = torch.where(there, place[:, :k], -1)
    values[:, :k] = torch.where(there, best[:, :k], 0.0)


def ids_of(recording: Recording, samples: Tensor) -> Tensor:
    """The ids of samples of any shape; -1 for -1."""
    known = torch.cat([recording.ids, torch.tensor([-1])])  # one more, so that an empty recording can be asked too
    return torch.where(samples < 0, -1, known[samples])
