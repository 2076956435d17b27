"""Sparse probing: which few experts tell whether a sample has a label.

Legend: ``n`` samples, ``N`` experts of one mode or of the whole grid, ``C`` classes, ``k`` experts of a probe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factorized_moe._validation import check_kind, check_seed, check_size
from factorized_moe.interpret.measures.measurement import Measurement
from factorized_moe.interpret.recording.coefficients import Mode
from factorized_moe.interpret.recording.recording import Recording
from factorized_moe.interpret.recording.streaming import WIDE_ELEMENTS, Float64Room, finite_blocks, finite_rows

__all__ = ["LabelProbes", "probe_labels"]

ROUNDS = 25
"""Newton steps of a logistic regression of few variables; it stops when nothing changes."""

PENALTY = 1e-3
ELEMENTS = 2**26
"""Coefficients that are held at a time."""


@dataclass(frozen=True, eq=False)
class LabelProbes(Measurement):
    """For each class how well a few experts' coefficients tell it from the others, on samples not used to find them.

    Attributes:
        experts: The experts, the one that differs most first, ``(C, k)``, int64.
        weights: Their weights in the probe, of coefficients divided by their standard deviation, ``(C, k)``, float64.
        accuracy: The mean of the shares of the class's samples and of the others that are told right, ``(C,)``,
            float64; one half for guessing. NaN for a class that has fewer than two samples to learn from or to test on,
            or leaves fewer than two others: four samples of a class and five others are enough.
        f1: The harmonic mean of precision and recall, ``(C,)``, float64; NaN likewise.
        class_sizes: The samples of each class, ``(C,)``, int64.
        class_names: Their names.
    """

    experts: Tensor
    weights: Tensor
    accuracy: Tensor
    f1: Tensor
    class_sizes: Tensor
    class_names: tuple[str, ...]

    def columns(self) -> dict[str, list[Any]]:
        """One row for each class."""
        table: dict[str, list[Any]] = {"class": list(self.class_names), "samples": self.class_sizes.tolist()}
        table |= {"accuracy": self.accuracy.tolist(), "f1": self.f1.tolist()}
        for rank in range(self.experts.shape[1]):
            table[f"expert_{rank}"] = self.experts[:, rank].tolist()
        return table


def probe_labels(
    recording: Recording, k: int = 1, *, layer: str | None = None, mode: Mode = 0, seed: int = 0
) -> LabelProbes:
    """Find the ``k`` experts whose coefficients tell each class from the others, and test how well they do.

    Half of the samples of each class, drawn at random, are learned from: the experts are those whose mean coefficients
    on the class and on the others differ most, and a logistic regression on them weighs both alike. The other half are
    tested on.
    This is the sparse probing of Gurnee et al. 2023 (arXiv 2305.01610), with experts in place of neurons and its
    simplest choice.

    Args:
        recording: The recording, with labels; samples labelled -1 are left out.
        k: How many experts a probe has.
        layer: The layer's name; may be left out if there is one layer only.
        mode: The number of an expert mode, or ``"product"`` for the experts of the whole grid.
        seed: Where the halves are drawn from.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If there are no labels, no class with samples enough, fewer experts than ``k``, no such layer or
            mode, or a coefficient is not finite.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> from factorized_moe.interpret import record
        >>> model = CPMuMoE(8, 3, [6], rank=2).eval()
        >>> with record(model) as log:
        ...     y = model(torch.randn(40, 8))
        ...     log.annotate(labels=torch.arange(40) % 2)
        >>> probe_labels(log.recording, k=2).experts.shape
        torch.Size([2, 2])
    """
    check_kind("recording", recording, Recording)
    k, seed = check_size("k", k), check_seed(seed)
    number = math.prod(recording.grid(layer, mode))
    if k > number:
        raise ValueError(f"k is {k}, but there are {number} experts")
    if not recording.num_samples or not recording.has("labels"):
        raise ValueError("the recording has no labels; give them with log.annotate(labels=...)")
    labels = recording.labels
    known = int(labels.max()) + 1
    names = recording.class_names or tuple(map(str, range(known)))
    learned = _half_of_each_class(labels, seed)
    tested = ~learned & (labels >= 0)
    halves = torch.stack([torch.bincount(labels[half], minlength=len(names)) for half in (learned, tested)])  # (2, C)
    enough = ((halves >= 2) & (halves.sum(dim=1, keepdim=True) - halves >= 2)).all(dim=0)
    if not enough.any():
        raise ValueError(
            f"no class has two samples to learn from, two to test on and as many others; {int((labels >= 0).sum())} "
            f"samples of {len(names)} classes are labelled, record more"
        )
    chosen = _most_different(recording, labels, learned, len(names), number, k, layer, mode)
    weights = torch.full((len(names), k), math.nan, dtype=torch.float64)
    scores = torch.full((2, len(names)), math.nan, dtype=torch.float64)
    per_pass = max(1, ELEMENTS // (k * len(labels)))
    for start in range(0, len(names), per_pass):
        classes = range(start, min(len(names), start + per_pass))
        columns = _columns(recording, chosen[start : start + per_pass].flatten(), len(labels), layer, mode)
        for place, label in enumerate(classes):
            x, y = columns[:, place * k : (place + 1) * k].double(), labels == label
            if enough[label]:
                weights[label], told = _probe(x, y, learned)
                scores[:, label] = torch.tensor(_scores(told[tested], y[tested]), dtype=torch.float64)
    sizes = torch.bincount(labels[labels >= 0], minlength=len(names))
    return LabelProbes(chosen, weights, scores[0], scores[1], sizes, tuple(names))


def _half_of_each_class(labels: Tensor, seed: int) -> Tensor:
    """Which samples are learned from, bool ``(n,)``: of each class every other one, in a random order.

    A coin for each sample could fall as the labels do, where those were drawn from the same seed.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order] >= 0]
    order = order[labels[order].argsort(stable=True)]
    learned = torch.zeros(len(labels), dtype=torch.bool)
    learned[order[::2]] = True
    return learned


def _most_different(
    recording: Recording,
    labels: Tensor,
    learned: Tensor,
    classes: int,
    number: int,
    k: int,
    layer: str | None,
    mode: Mode,
) -> Tensor:
    """For each class the experts whose mean coefficients on it and on the others differ most, ``(C, k)``."""
    sums = torch.zeros(classes * number, dtype=torch.float64)
    room = Float64Room()
    for block in finite_blocks(recording, layer, mode, "probes"):
        samples = slice(block.start, block.start + len(block))
        mine, label = learned[samples], labels[samples]
        if block.rows.is_sparse:
            sample, expert, value = block.entries
            taken = mine[sample]
            sums.index_add_(0, label[sample][taken] * number + expert[taken], value[taken].double())
            continue
        for some, piece in block.pieces(WIDE_ELEMENTS):
            wide = room.copy(piece)[mine[some]]
            sums.view(classes, number).index_add_(0, label[some][mine[some]], wide)
    sums = sums.reshape(classes, number)
    sizes = torch.bincount(labels[learned], minlength=classes)[:, None]
    others = (sums.sum(dim=0) - sums) / (sizes.sum() - sizes).clamp(min=1)
    return (sums / sizes.clamp(min=1) - others).abs().topk(k, dim=1).indices


def _columns(recording: Recording, experts: Tensor, samples: int, layer: str | None, mode: Mode) -> Tensor:
    """The coefficients of some experts, ``(n, len(experts))``."""
    found = torch.empty(samples, len(experts), dtype=recording.dtype)
    for start, rows in finite_rows(recording, layer, mode):
        found[start : start + len(rows)] = rows.dense()[:, experts]
    return found


def _probe(x: Tensor, y: Tensor, learned: Tensor) -> tuple[Tensor, Tensor]:
    """A logistic regression in which both sides weigh alike: its weights ``(k,)``; what it says of all, ``(n,)``."""
    centre, spread = x[learned].mean(dim=0), x[learned].std(dim=0)
    features = torch.cat([(x - centre) / torch.where(spread > 0, spread, 1.0), torch.ones(len(x), 1).double()], dim=1)
    here, wanted = features[learned], y[learned].double()
    share = wanted.mean()
    weight = torch.where(y[learned], 0.5 / share, 0.5 / (1 - share)) / len(here)
    penalty = PENALTY * torch.ones(features.shape[1], dtype=torch.float64)
    penalty[-1] = 1e-9
    found = torch.zeros(features.shape[1], dtype=torch.float64)
    for _ in range(ROUNDS):
        told = torch.sigmoid(here @ found)
        gradient = here.T @ (weight * (told - wanted)) + penalty * found
        curvature = here.T @ (here * (weight * told * (1 - told))[:, None]) + penalty.diag()
        step = torch.linalg.solve(curvature, gradient)
        found = found - step
        if float(step.abs().max()) < 1e-9:
            break
    return found[:-1], features @ found > 0


def _scores(told: Tensor, true: Tensor) -> tuple[float, float]:
    """The mean of the two sides' accuracies, and F1."""
    right = float((told & true).sum())
    sides = right / float(true.sum()), float((~told & ~true).sum()) / float((~true).sum())
    return sum(sides) / 2, 2 * right / float(told.sum() + true.sum())
