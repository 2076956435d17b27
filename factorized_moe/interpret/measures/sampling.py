"""What else activates an expert, beside what activates it most: samples drawn at random, and spread over its range.

Legend: ``n`` samples, ``N`` experts of one mode or of the whole grid, ``k`` how many are drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from factorized_moe._validation import check_flag, check_seed, check_size
from factorized_moe.interpret.measures.keeping import KeptSamples, draw_order
from factorized_moe.interpret.measures.measurement import Measurement, ranked_columns
from factorized_moe.interpret.measures.ranking import ids_of
from factorized_moe.interpret.recording.coefficients import Mode
from factorized_moe.interpret.recording.recording import Recording
from factorized_moe.interpret.recording.streaming import Block, check_threshold, collect, in_step, reaches

__all__ = ["ActiveSamples", "sample_active"]

Array = NDArray[Any]

POOL = 256
"""Samples drawn of each expert, out of which those at its quantiles are taken."""

MOST_DRAWN = 2**23
"""Samples drawn of all experts together: 160 MiB. Of more than 32,768 experts fewer than 256 each are drawn."""


@dataclass(frozen=True, eq=False)
class ActiveSamples(Measurement):
    """For each expert some samples on which it is active, the largest coefficient first.

    Attributes:
        samples: The samples' numbers in the recording, ``(N, k)``, int64; -1 where it is active on fewer.
        values: Their coefficients, ``(N, k)``; 0 where there is no sample.
        ids: Their ids, ``(N, k)``, int64; -1 where there is no sample.
        counts: The samples on which each expert is active, ``(N,)``, int64.
        threshold: The least coefficient of an active expert; 0 for any above 0.
        grid: The sizes of the expert modes that the experts are counted over.
    """

    samples: Tensor
    values: Tensor
    ids: Tensor
    counts: Tensor
    threshold: float
    grid: tuple[int, ...]

    def columns(self) -> dict[str, list[Any]]:
        """One row for each expert and sample."""
        return ranked_columns(self.grid, self.samples, self.ids, self.values)


def sample_active(
    recording: Recording,
    k: int = 10,
    threshold: float = 0.0,
    *,
    spread: bool = False,
    seed: int = 0,
    layer: str | None = None,
    mode: Mode = 0,
) -> ActiveSamples:
    """Draw for each expert samples on which it is active: each with the same probability, or spread over its range.

    A gallery of the largest coefficients shows what an expert answers to most; this one shows what it does all day.

    With ``spread`` an expert's active samples are sorted by coefficient, equal ones at random, and of ``k`` groups of
    equal size the one in the middle is taken. Of an expert that is active on more than 256 samples, 256 are drawn at
    random first (more for a large ``k``, fewer for more than 32,768 experts), so the quantiles are those of the draw.

    Args:
        recording: The recording.
        k: How many samples to draw for each expert.
        threshold: The least coefficient of an active expert; 0 for any above 0.
        spread: Whether to take them at even steps from an expert's largest coefficient to its smallest.
        seed: Of the draw: the same seed gives the same samples.
        layer: The layer's name; may be left out if there is one layer only.
        mode: The number of an expert mode, or ``"product"`` for the experts of the whole grid.

    Raises:
        TypeError: If ``k`` or the seed is not an int, the threshold not a number, or ``spread`` not a bool.
        ValueError: If one is out of range, a coefficient is not finite, or there is no such layer or mode.

    Examples:
        >>> from factorized_moe.interpret import Recording
        >>> recording = Recording.from_coefficients(torch.tensor([[0.9, 0.0], [0.5, 0.5], [0.1, 0.0]]))
        >>> found = sample_active(recording, k=2, threshold=0.2)
        >>> found.samples.tolist(), found.counts.tolist()
        ([[0, 1], [1, -1]], [2, 1])
        >>> rising = Recording.from_coefficients(torch.linspace(0.1, 0.9, 9)[:, None])
        >>> sample_active(rising, k=3, spread=True).samples.tolist()
        [[7, 4, 1]]
    """
    k, seed = check_size("k", k), check_seed(seed)
    if not check_flag("spread", spread):
        return _drawn(recording, k, threshold, seed, layer, mode)
    recording = in_step(recording, layer)
    experts = math.prod(recording.grid(layer, mode))
    pool = max(k, min(max(POOL, 4 * k), MOST_DRAWN // max(1, experts)))
    drawn = _drawn(recording, pool, threshold, seed, layer, mode)
    there = (drawn.samples >= 0).sum(dim=1)  # those that there are come first
    place = ((torch.arange(k) + 0.5) * (there[:, None] / k)).long()
    few = there[:, None] < k
    place = torch.where(few, torch.arange(k).expand_as(place), place).clamp(max=drawn.samples.shape[1] - 1)
    samples, values, ids = (t.gather(1, place) for t in (drawn.samples, drawn.values, drawn.ids))
    return ActiveSamples(samples, values, ids, drawn.counts, drawn.threshold, drawn.grid)


def _drawn(recording: Recording, k: int, threshold: float, seed: int, layer: str | None, mode: Mode) -> ActiveSamples:
    check_threshold(threshold)
    recording = in_step(recording, layer)
    grid = recording.grid(layer, mode)
    found = _DrawCollector(math.prod(grid), min(k, max(1, recording.num_samples)), threshold, recording, seed)
    collect(recording, layer, mode, "samples of active experts", found)
    samples, values = found.result()
    if samples.shape[1] < k:
        missing = (0, k - samples.shape[1])
        samples, values = (torch.nn.functional.pad(t, missing, value=fill) for t, fill in ((samples, -1), (values, 0)))
    return ActiveSamples(samples, values, ids_of(recording, samples), found.counts, threshold, grid)


class _DrawCollector:
    """Keeps the active samples of each expert that come first in a random order of all samples."""

    def __init__(self, experts: int, k: int, threshold: float, recording: Recording, seed: int) -> None:
        self.counts = torch.zeros(experts, dtype=torch.int64)
        self._threshold, self._order = threshold, draw_order(recording.num_samples, seed)
        self._kept = KeptSamples(experts, k, recording.dtype, largest=False)

    def add(self, block: Block) -> None:
        """Take the next samples."""
        order = self._order[block.start : block.start + len(block)].numpy()
        if block.rows.is_sparse:
            sample, expert, value = (entries.numpy() for entries in block.active(self._threshold))
            self.counts += torch.from_numpy(np.bincount(expert, minlength=len(self.counts)))
            self._offer(block.start, sample, expert, value, order)
            return
        for _, piece in block.pieces():
            self.counts += torch.from_numpy(np.count_nonzero(reaches(piece.numpy(), self._threshold), axis=0))
        # Samples are taken in the order of the draw: those that come late have no chance once all experts have enough.
        values, step = block.rows.values.numpy(), max(self._kept.values.shape[1], 64)
        drawn = order.argsort()
        for first in range(0, len(drawn), step):
            some = drawn[first : first + step]
            if order[some[0]] > self._kept.places[:, -1].numpy().max():
                break
            here = values[some]
            active = np.flatnonzero(reaches(here, self._threshold))
            row, expert = np.divmod(active, here.shape[1])
            self._offer(block.start, some[row], expert, here.reshape(-1)[active], order)

    def _offer(self, start: int, sample: Array, expert: Array, value: Array, order: Array) -> None:
        place = order[sample]
        chance = np.flatnonzero(place < self._kept.places[:, -1].numpy()[expert])
        if len(chance):
            found = (sample[chance] + start, expert[chance], value[chance], place[chance])
            self._kept.offer(*map(torch.from_numpy, found))

    def result(self) -> tuple[Tensor, Tensor]:
        """The samples drawn and their coefficients, each ``(N, k)``, the largest first."""
        values, order = self._kept.values.sort(dim=1, descending=True, stable=True)
        return self._kept.samples.gather(1, order), values
