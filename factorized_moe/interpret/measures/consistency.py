"""Whether the gate treats the same input alike: in two recordings, or where it occurs several times in one.

Legend: ``g`` inputs, ``N`` experts of one mode or of the whole grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from factorized_moe.interpret.measures.measurement import Measurement
from factorized_moe.interpret.recording.coefficients import Mode
from factorized_moe.interpret.recording.recording import Recording
from factorized_moe.interpret.recording.streaming import (
    Block,
    Float64Room,
    finite_blocks,
    in_step,
    pieces_of,
)

__all__ = ["Consistency", "compare_duplicates", "compare_recordings"]

Integers: TypeAlias = NDArray[np.int64]

GROUP_ELEMENTS = 2**23
"""Elements of the sums that are kept at a time: 64 MiB."""

CACHED_ELEMENTS = 2**18
"""Elements of a piece that is taken to float64: 2 MiB, which stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class Consistency(Measurement):
    """How similar the coefficients of each input are every time that it occurs.

    Attributes:
        ids: The inputs' ids, ``(g,)``, int64.
        similarities: The mean cosine similarity of an input's coefficients over all pairs of its occurrences, ``(g,)``,
            float64; NaN where some are all zero.
        occurrences: How often each input occurs, ``(g,)``, int64.
    """

    ids: Tensor
    similarities: Tensor
    occurrences: Tensor

    @property
    def mean(self) -> float:
        """The mean similarity of all inputs that have one."""
        return float(self.similarities.nanmean())

    def percentiles(self, shares: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> list[float]:
        """The similarities below which such shares of the inputs lie, those without one left out."""
        known = self.similarities[~self.similarities.isnan()]
        return (
            known.quantile(torch.tensor(shares, dtype=torch.float64)).tolist()
            if len(known)
            else [math.nan] * len(shares)
        )

    def columns(self) -> dict[str, list[Any]]:
        """One row for each input."""
        return {
            "id": self.ids.tolist(),
            "similarity": self.similarities.tolist(),
            "occurrences": self.occurrences.tolist(),
        }


def compare_recordings(first: Recording, second: Recording, *, layer: str | None = None, mode: Mode = 0) -> Consistency:
    """Compare the coefficients of the same samples in two recordings by their cosine similarity.

    Two recordings of one model on changed inputs show how stable its gate is; those of two models, how much their
    gates agree (expert by expert, so after fine-tuning rather than for models trained anew).

    Args:
        first: A recording.
        second: A recording of as many samples, in the same order; ids, if both have some, must agree.
        layer: The layer's name in both; may be left out if there is one layer only.
        mode: The number of an expert mode, or ``"product"`` for the experts of the whole grid.

    Returns:
        The similarities, with two occurrences of each input.

    Raises:
        ValueError: If the recordings do not fit each other, a coefficient is not finite, or there is no such layer or
            mode.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> from factorized_moe.interpret import record
        >>> layer, x = CPMuMoE(8, 3, [4], rank=2).eval(), torch.randn(6, 8)
        >>> recordings = []
        >>> for noise in (0.0, 0.1):
        ...     with record(layer) as log:
        ...         y = layer(x + noise * torch.randn(6, 8))
        ...     recordings.append(log.recording)
        >>> compare_recordings(*recordings).mean
        1.0
    """
    first, second = in_step(first, layer), in_step(second, layer)
    grids = first.grid(layer, mode), second.grid(layer, mode)
    if first.num_samples != second.num_samples or grids[0] != grids[1]:
        raise ValueError(
            f"the recordings have {first.num_samples:,} and {second.num_samples:,} samples of experts {grids[0]} and "
            f"{grids[1]}; record the same samples and a layer of the same size"
        )
    if not torch.equal(first.ids, second.ids) and first.has("ids") and second.has("ids"):
        place = int((first.ids != second.ids).nonzero()[0])
        raise ValueError(
            f"sample {place} has id {int(first.ids[place])} in one recording and {int(second.ids[place])} in the "
            "other; record the same samples in the same order"
        )
    modes: list[Mode] = list(range(len(grids[0]))) if mode == "product" else [mode]
    similarities = torch.ones(first.num_samples, dtype=torch.float64)
    for number in modes:  # the cosine of outer products is the product of the modes' cosines
        for start, mine, theirs in _side_by_side(first, second, layer, number):
            norms = torch.from_numpy(np.sqrt(_dots(mine, mine)) * np.sqrt(_dots(theirs, theirs)))
            if not norms.isfinite().all():
                for recording in (first, second):
                    _refuse_infinite(recording, layer, number)
            similarities[start : start + len(mine)] *= torch.from_numpy(_dots(mine, theirs)) / norms
    ids = first.ids if first.has("ids") else second.ids
    return Consistency(ids, similarities.clamp(-1, 1), torch.full_like(ids, 2))


def compare_duplicates(recording: Recording, *, layer: str | None = None, mode: Mode = 0) -> Consistency:
    """Compare the coefficients of samples that have the same id by their cosine similarity.

    Such are the tokens of overlapping windows over one text, or several noisy views of one picture; their consistency
    was measured so for notes in overlapping windows with uMoE layers in RNBERT (ICASSP 2026).

    Args:
        recording: A recording with ids; those that occur once are left out.
        layer: The layer's name; may be left out if there is one layer only.
        mode: The number of an expert mode, or ``"product"`` for the experts of the whole grid.

    Returns:
        For each id that occurs several times, the mean over all pairs of its samples.

    Raises:
        ValueError: If no id occurs twice, a coefficient is not finite, or there is no such layer or mode.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> from factorized_moe.interpret import record
        >>> layer = CPMuMoE(8, 3, [4], rank=2)
        >>> with record(layer) as log:
        ...     y = layer(torch.randn(4, 8))
        ...     log.annotate(ids=[7, 8, 7, 7])
        >>> found = compare_duplicates(log.recording)
        >>> found.ids.tolist(), found.occurrences.tolist(), found.mean
        ([7], [3], 1.0)
    """
    recording = in_step(recording, layer)
    known, group, sizes = (found.numpy() for found in recording.ids.unique(return_inverse=True, return_counts=True))
    several = sizes > 1
    if not several.any():
        raise ValueError("no id occurs twice in the recording; give samples of one input the same id, by log.annotate")
    group = np.where(several, several.cumsum() - 1, -1)[group]  # (n,), -1 for an id that occurs once
    ids, occurrences = known[several], sizes[several]
    squares = _squares_of_sums(recording, layer, mode, group, occurrences)
    # Of unit vectors, || sum ||^2 is their number and twice the sum over all pairs.
    similarities = ((squares - occurrences) / (occurrences * (occurrences - 1))).clip(-1, 1)
    return Consistency(*map(torch.from_numpy, (ids, similarities, occurrences)))


def _squares_of_sums(
    recording: Recording, layer: str | None, mode: Mode, group: Integers, occurrences: Integers
) -> NDArray[np.float64]:
    """For each group of samples, ``|| sum ||^2`` of their coefficients as vectors of length 1, ``(g,)``.

    A sum has a place from the block of the group's first sample to that of its last, so groups whose samples lie close
    together take one pass over the recording. Those that find no place are left to the next pass.
    """
    experts, count = math.prod(recording.grid(layer, mode)), len(occurrences)
    members = group.argsort(kind="stable")[(group < 0).sum() :]
    ends = occurrences.cumsum()
    first, last = members[ends - occurrences], members[ends - 1]
    opening, closing = first.argsort(), last.argsort()
    squares, waiting = np.full(count, math.nan), np.ones(count, dtype=bool)
    sums = np.zeros((min(count, max(1, GROUP_ELEMENTS // experts)), experts))
    free, place = np.arange(len(sums)), np.full(count + 1, -1)  # the last place is that of group -1
    room, passes = Float64Room(), 0
    while waiting.any():
        for block in finite_blocks(recording, layer, mode, "duplicates", checked=False):
            some = slice(block.start, block.start + len(block))
            opened = _within(opening, first, some)
            opened = opened[waiting[opened]][: len(free)]
            place[opened], free = free[: len(opened)], free[len(opened) :]
            if not _add_unit_rows(block, place[group[some]], sums, room, skip=passes > 0):
                _refuse_infinite(recording, layer, mode)
            closed = _within(closing, last, some)
            closed = closed[place[closed] >= 0]
            step = max(1, CACHED_ELEMENTS // experts)
            for start in range(0, len(closed), step):
                part = closed[start : start + step]
                squares[part] = _dots(sums[place[part]], sums[place[part]])
                sums[place[part]] = 0
            free = np.concatenate([place[closed], free])
            place[closed], waiting[closed] = -1, False
        passes += 1
    return squares


def _within(order: Integers, number: Integers, some: slice) -> Integers:
    """The groups whose number, of their first or last sample, lies within a slice; ``order`` sorts the numbers."""
    start, stop = np.searchsorted(number, [some.start, some.stop], sorter=order)
    return order[start:stop]


def _refuse_infinite(recording: Recording, layer: str | None, mode: Mode) -> None:
    """Say which coefficient is not finite."""
    for _ in finite_blocks(recording, layer, mode):
        pass


def _dots(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """The dot product of each row of a matrix and the same row of another, ``(m,)``.

    As products of a row and a column, which are faster than `numpy.einsum`.
    """
    with np.errstate(all="ignore"):  # what is infinite is told by the result
        found: NDArray[np.float64] = np.matmul(one[:, None, :], other[:, :, None])[:, 0, 0]
    return found


def _add_unit_rows(block: Block, place: Integers, sums: NDArray[np.float64], room: Float64Room, *, skip: bool) -> bool:
    """Add each sample's coefficients, as a vector of length 1, to the row of the sums, ``(places, N)``, of its group.

    A row of zeros makes its group's sum NaN.

    Args:
        block: The samples.
        place: The row of each one's group, ``(n,)``, -1 for a group that has none.
        sums: The sums so far.
        room: For the copies.
        skip: Whether samples without a row are left out, not looked at.

    Returns:
        Whether all lengths were finite.
    """
    finite, total = True, torch.from_numpy(sums)
    if block.rows.is_sparse:
        sample, expert, value = block.entries
        norms = torch.zeros(len(block), dtype=torch.float64).index_add_(0, sample, value.double().square()).sqrt()
        places = torch.from_numpy(place)
        taken = places[sample] >= 0
        sample, expert = sample[taken], expert[taken]
        units = value[taken].double() / norms[sample]
        total.view(-1).index_add_(0, places[sample] * sums.shape[1] + expert, units)
        total[places[(places >= 0) & (norms == 0)], 0] = math.nan
        return bool(norms.isfinite().all())
    for some, piece in block.pieces(CACHED_ELEMENTS):
        row = np.flatnonzero(place[some] >= 0)
        target = place[some][row]
        if skip and len(row) < len(piece):
            piece, row = piece[torch.from_numpy(row)], np.arange(len(row))
        vectors = room.copy(piece)
        squares = _dots(vectors.numpy(), vectors.numpy())
        finite &= bool(np.isfinite(squares).all())
        with np.errstate(divide="ignore"):
            scales = torch.from_numpy(1 / np.sqrt(squares[row]))
        # A product with a sparse matrix scales and adds in one, on one thread and in the order of the samples.
        size, entries = (len(sums), len(piece)), torch.from_numpy(np.stack([target, row]))
        total.addmm_(torch.sparse_coo_tensor(entries, scales, size, check_invariants=False), vectors)
    return finite


def _side_by_side(
    first: Recording, second: Recording, layer: str | None, mode: Mode
) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.float64]]]:
    """The coefficients of the same samples in two recordings, whose chunks may differ, ``(some samples, N)``."""
    others = _dense_pieces(second, layer, mode, "")
    begin, theirs = 0, np.zeros((0, 0))
    for start, mine in _dense_pieces(first, layer, mode, "two recordings"):
        done = 0
        while done < len(mine):
            if start + done == begin + len(theirs):
                begin, theirs = next(others)
                continue
            offset = start + done - begin
            count = min(len(mine) - done, len(theirs) - offset)
            yield start + done, mine[done : done + count], theirs[offset : offset + count]
            done += count


def _dense_pieces(
    recording: Recording, layer: str | None, mode: Mode, title: str
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """The coefficients, ``(some samples, N)``, until the next ones, and the number of the first sample."""
    room = Float64Room()
    for block in finite_blocks(recording, layer, mode, title, checked=False):
        for some, piece in pieces_of(block.rows.dense(), CACHED_ELEMENTS):
            yield block.start + some.start, room.copy(piece).numpy()
