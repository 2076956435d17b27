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
from factorized_moe.interpret.recording.recording import Mode, Recording
from factorized_moe.interpret.recording.streaming import active_entries, check_threshold, finite_rows

__all__ = ["LabelCounts", "LabelSpecialisation", "count_labels", "measure_label_specialisation"]


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
    recording: Recording, threshold: float = 0.0, *, layer: str | None = None, mode: Mode = 0
) -> LabelCounts:
    """Count for each expert the samples of each class on which it is active.

    Args:
        recording: A recording with labels.
        threshold: The least coefficient of an active expert; 0 for any above 0.
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
    check_kind("recording", recording, Recording)
    grid = recording.grid(layer, mode)
    experts = math.prod(grid)
    labels = recording.labels
    names = recording.class_names
    highest = int(labels.max()) if len(labels) else -1
    if names and highest >= len(names):
        raise ValueError(f"a sample has label {highest}, but there are {len(names)} class names, for labels from 0")
    check_room(f"names of {highest + 1:,} classes", 64 * (highest + 1), recording.num_bytes)
    names = names or tuple(str(number) for number in range(highest + 1))
    classes = len(names)
    check_room(f"counts of {experts:,} experts and {classes:,} classes", 24 * experts * classes, recording.num_bytes)
    counts = torch.zeros(experts * classes, dtype=torch.int64)
    sums = torch.zeros(experts * classes, dtype=torch.float64)
    for start, rows in finite_rows(recording, layer, mode):
        mine = labels[start : start + len(rows)]
        sample, expert, value = rows.entries()
        sums.index_add_(0, expert * classes + mine[sample], value.double())
        sample, expert, _ = active_entries(rows, threshold)
        places = expert * classes + mine[sample]
        counts.index_add_(0, places, torch.ones_like(places))
    sizes = torch.bincount(labels, minlength=classes)
    means = sums.reshape(experts, classes) / sizes
    return LabelCounts(counts.reshape(experts, classes), means, sizes, names, threshold, grid)


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
        TypeError: If ``fewest`` is not an int.
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
