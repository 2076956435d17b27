"""What kinds of samples each expert is active on: counts by class, and how far they are from the data set's.

Legend: ``n`` samples, ``N`` experts of one mode or of the whole grid, ``C`` classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factorized_moe._reading import check_room
from factorized_moe._validation import check_kind, check_size
from factorized_moe.interpret.measures.measurement import Measurement, expert_columns
from factorized_moe.interpret.recording.coefficients import Mode
from factorized_moe.interpret.recording.recording import Recording
from factorized_moe.interpret.recording.streaming import (
    WIDE_ELEMENTS,
    Block,
    Float64Room,
    check_threshold,
    collect,
    in_step,
    reaches,
)

__all__ = ["LabelCollector", "LabelCounts", "LabelSpecialisation", "count_labels", "measure_label_specialisation"]


@dataclass(frozen=True, eq=False)
class LabelCounts(Measurement):
    """On how many samples of each class each expert is active.

    Attributes:
        counts: The samples on which each expert is active, by class, ``(N, C)``, int64.
        means: The mean of each expert's coefficients over all samples of a class, ``(N, C)``, float64; NaN for a class
            without samples.
        class_sizes: The samples of each class, ``(C,)``, int64.
        class_names: The names of the classes; their numbers if the recording has none.
        threshold: The least coefficient of an active expert; 0 for any above 0.
        grid: The sizes of the expert modes that the experts are counted over.
    """

    counts: Tensor
    means: Tensor
    class_sizes: Tensor
    class_names: tuple[str, ...]
    threshold: float
    grid: tuple[int, ...]

    def columns(self) -> dict[str, list[Any]]:
        """One row for each expert and class."""
        experts, classes = self.counts.shape
        return expert_columns(self.grid, repeat=classes) | {
            "class": list(range(classes)) * experts,
            "class_name": list(self.class_names) * experts,
            "count": self.counts.reshape(-1).tolist(),
            "mean": self.means.reshape(-1).tolist(),
        }


def count_labels(
    recording: Recording,
    threshold: float = 0.0,
    *,
    labels: str | None = None,
    layer: str | None = None,
    mode: Mode = 0,
) -> LabelCounts:
    """Count for each expert the samples of each class on which it is active.

    Args:
        recording: A recording with labels.
        threshold: The least coefficient of an active expert; 0 for any above 0.
        labels: Which of the recording's label sets, as for `Recording.label_set`.
        layer: The layer's name; may be left out if there is one layer only.
        mode: The number of an expert mode, or ``"product"`` for the experts of the whole grid.

    Raises:
        TypeError: If the threshold is not a number.
        ValueError: If it is out of range, a sample has no label or one beyond the class names, a coefficient is not
            finite, there is no such layer or mode, or the counts would be far larger than the recording.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> from factorized_moe.interpret import record
        >>> layer = CPMuMoE(8, 3, [2], rank=2)
        >>> with record(layer, class_names=["cat", "dog"]) as log:
        ...     y = layer(torch.randn(6, 8))
        ...     log.annotate(labels=[0, 1, 0, 0, 1, 0])
        >>> count_labels(log.recording).counts.tolist()
        [[4, 2], [4, 2]]
    """
    check_threshold(threshold)
    recording = in_step(recording, layer)
    found = LabelCollector(recording, labels, threshold, recording.grid(layer, mode))
    collect(recording, layer, mode, "labels", found)
    return found.result()


class LabelCollector:
    """Counts by class of the blocks so far.

    Args:
        recording: Where the blocks are from.
        name: The name of its label set.
        threshold: The least coefficient of an active expert; 0 for any above 0.
        grid: The sizes of the expert modes that the experts are counted over.
    """

    def __init__(self, recording: Recording, name: str | None, threshold: float, grid: tuple[int, ...]) -> None:
        given = recording.label_set(name)
        self._labels, self._threshold, self._grid = given.labels, threshold, grid
        highest = int(given.labels.max()) if len(given) else -1
        check_room(f"names of {highest + 1:,} classes", 64 * (highest + 1), recording.num_bytes)
        self._names = given.names()
        experts, classes = math.prod(grid), len(self._names)
        what = f"counts of {experts:,} experts and {classes:,} classes"
        check_room(what, 24 * experts * classes, recording.num_bytes)
        self._counts = torch.zeros(classes, experts, dtype=torch.int64)
        self._sums = torch.zeros(classes, experts, dtype=torch.float64)
        self._room = Float64Room()

    def add(self, block: Block) -> None:
        """Take the next samples."""
        mine = self._labels[block.start : block.start + len(block)]
        experts = self._counts.shape[1]
        if block.rows.is_sparse:
            sample, expert, value = block.entries
            self._sums.view(-1).index_add_(0, mine[sample] * experts + expert, value.double())
            sample, expert, _ = block.active(self._threshold)
            places = mine[sample] * experts + expert
            self._counts.view(-1).index_add_(0, places, torch.ones_like(places))
            return
        counts = torch.zeros(self._counts.shape, dtype=torch.float64)
        for some, piece in block.pieces(WIDE_ELEMENTS):
            self._sums.index_add_(0, mine[some], self._room.copy(piece))
            counts.index_add_(0, mine[some], self._room.copy(reaches(piece, self._threshold)))
        self._counts += counts.long()

    def result(self) -> LabelCounts:
        """What was seen so far."""
        sizes = torch.bincount(self._labels, minlength=len(self._names))
        means = self._sums.T / sizes
        return LabelCounts(self._counts.T.contiguous(), means, sizes, self._names, self._threshold, self._grid)


@dataclass(frozen=True, eq=False)
class LabelSpecialisation(Measurement):
    """How far the classes of an expert's samples are from the data set's; NaN and -1 for dead experts.

    Attributes:
        counts: The samples on which each expert is active, ``(N,)``, int64.
        entropy: The entropy of the classes of those samples, in bits, ``(N,)``, float64.
        entropy_ratio: That over the data set's, ``(N,)``, float64: 0 for a single class, 1 for the data set's mixture,
            more for a mixture more even than the data set. NaN if the data set has one class only.
        clarity: The share of the commonest class, ``(N,)``, float64.
        lift: That over the class's share of the data set, ``(N,)``, float64.
        best_class: The commonest class, ``(N,)``, int64; of equal ones the lowest.
        baseline_entropy: The entropy of the data set's classes, in bits.
        baseline_clarity: The share of the data set's commonest class.
        fewest: The samples below which an expert counts as dead.
        grid: The sizes of the expert modes that the experts are counted over.
    """

    counts: Tensor
    entropy: Tensor
    entropy_ratio: Tensor
    clarity: Tensor
    lift: Tensor
    best_class: Tensor
    baseline_entropy: float
    baseline_clarity: float
    fewest: int
    grid: tuple[int, ...]

    @property
    def dead(self) -> Tensor:
        """The experts that are active on fewer than ``fewest`` samples, int64."""
        return (self.counts < self.fewest).nonzero().squeeze(1)

    def columns(self) -> dict[str, list[Any]]:
        """One row for each expert."""
        names = ("counts", "entropy", "entropy_ratio", "clarity", "lift", "best_class")
        return expert_columns(self.grid) | {name: getattr(self, name).tolist() for name in names}


def measure_label_specialisation(counts: LabelCounts, fewest: int = 1) -> LabelSpecialisation:
    r"""Compare the classes of each expert's samples with those of the data set.

    With ``p_c`` the share of class ``c`` among the samples on which an expert is active: entropy
    ``-sum p_c log2 p_c``, clarity ``max p_c``, and the ratio of the entropy to that of the whole data set. These are
    the measures of the music analysis with uMoE layers in RNBERT (ICASSP 2026), which leaves out experts that are
    active on fewer than 600 of its tokens; the form here is the plain one of its terms, since the exact one could not
    be confirmed.

    Args:
        counts: What `count_labels` counted.
        fewest: The samples below which an expert counts as dead and gets no value.

    Raises:
        TypeError: If the counts are none, such as a recording, or ``fewest`` is not an int.
        ValueError: If it is not positive.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> from factorized_moe.interpret import record
        >>> layer = CPMuMoE(8, 3, [2], rank=2)
        >>> with record(layer) as log:
        ...     y = layer(torch.randn(4, 8))
        ...     log.annotate(labels=[0, 1, 2, 3])
        >>> found = measure_label_specialisation(count_labels(log.recording))
        >>> found.entropy.tolist(), found.baseline_entropy, found.clarity.tolist()
        ([2.0, 2.0], 2.0, [0.25, 0.25])
    """
    check_kind("counts", counts, LabelCounts)
    check_size("fewest", fewest)
    active = counts.counts.sum(dim=1)
    alive = active >= fewest
    shares = torch.where(alive[:, None], counts.counts.double() / active[:, None], math.nan)  # (N, C)
    baseline = counts.class_sizes.double() / counts.class_sizes.sum()
    if not baseline.numel():  # no samples, so no classes either
        shares, baseline = shares.new_full((len(shares), 1), math.nan), baseline.new_full((1,), math.nan)
    entropy, baseline_entropy = _entropy(shares), float(_entropy(baseline))
    clarity, best = shares.max(dim=1)
    return LabelSpecialisation(
        counts=active,
        entropy=entropy,
        entropy_ratio=entropy / baseline_entropy if baseline_entropy else torch.full_like(entropy, math.nan),
        clarity=clarity,
        lift=clarity / baseline[best],
        best_class=torch.where(alive, best, -1),
        baseline_entropy=baseline_entropy,
        baseline_clarity=float(baseline.max()),
        fewest=fewest,
        grid=counts.grid,
    )


def _entropy(shares: Tensor) -> Tensor:
    """In bits, over the last axis; ``0 log 0`` is 0."""
    bits: Tensor = -torch.special.xlogy(shares, shares).sum(dim=-1) / math.log(2)
    return bits + 0.0  # no -0
