"""What experts tell of classes, from coefficients and labels alone: no predictions, no threshold, a null beside it.

Legend: ``n`` samples, ``N`` experts of one mode or of the whole grid, ``C`` classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factorized_moe._reading import check_room
from factorized_moe._scalars import is_whole
from factorized_moe._validation import check_size, check_values
from factorized_moe.interpret.measures.measurement import Measurement, expert_columns
from factorized_moe.interpret.measures.nulls import BesideNull
from factorized_moe.interpret.recording.coefficients import Mode
from factorized_moe.interpret.recording.label_sets import LabelSet
from factorized_moe.interpret.recording.recording import Recording
from factorized_moe.interpret.recording.rows import Rows
from factorized_moe.interpret.recording.streaming import Block, collect, in_step, pieces_of

__all__ = ["LabelInformation", "measure_label_information"]


@dataclass(frozen=True, eq=False)
class LabelInformation(Measurement):
    """How experts and classes go together: an expert drawn for each sample by its coefficients, and the sample's class.

    Each sample's coefficients are scaled to add up to 1, negative ones count as 0, and samples without any above 0 are
    left out. The null is the same measure with the labels shuffled: what a gate that knows nothing of the classes gives
    for as many samples, experts and classes.

    Attributes:
        joint: The probability of each expert and class together, ``(N, C)``, float64; it adds up to 1.
        mutual_information: What an expert tells of the class, in bits: 0 for nothing, at most `label_entropy`.
        concentration: `concentrations`, mean over the experts in use.
        effective_classes: `classes_per_expert`, mean over the experts in use.
        num_samples: The samples that count.
        class_names: The names of the classes; their numbers if they have none.
        grid: The sizes of the expert modes that the experts are counted over.
    """

    joint: Tensor
    mutual_information: BesideNull
    concentration: BesideNull
    effective_classes: BesideNull
    num_samples: int
    class_names: tuple[str, ...]
    grid: tuple[int, ...]

    @classmethod
    def of(
        cls, coefficients: Tensor, labels: Tensor, num_classes: int | None = None, *, draws: int = 10, seed: int = 0
    ) -> LabelInformation:
        """The measure of coefficients that are at hand; `measure_label_information` reads a recording.

        Args:
            coefficients: Those of one mode, ``(*batch, N)``; they are read some at a time.
            labels: The class of each sample, ``(*batch)``, integers from 0.
            num_classes: ``C``; one more than the highest label by default.
            draws: How many times labels are shuffled.
            seed: The seed of the shuffles; torch's own generator stays as it is.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If shapes do not fit, a label is out of range, a coefficient is not finite or there is no draw.

        Examples:
            Two experts that share two classes between them, and a third that serves both.

            >>> a = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
            >>> found = LabelInformation.of(a, torch.tensor([0, 1, 0, 1]))
            >>> round(found.mutual_information.value, 6), found.classes_per_expert.tolist()
            (0.5, [1.0, 1.0, 2.0])
        """
        check_values("coefficients", coefficients)
        check_values("labels", labels)
        if not coefficients.is_floating_point() or labels.is_floating_point() or labels.dtype == torch.bool:
            raise TypeError(
                f"coefficients are of a floating type and labels integers, got {coefficients.dtype} and {labels.dtype}"
            )
        if coefficients.ndim < 2 or coefficients.shape[:-1] != labels.shape:
            raise ValueError(
                f"coefficients have shape {tuple(coefficients.shape)} and labels {tuple(labels.shape)}, "
                "expected (*batch, N) and (*batch): one label for each sample"
            )
        rows, given = coefficients.detach().flatten(0, -2), labels.flatten().long().cpu()
        highest = int(given.max()) if len(given) else -1
        classes = highest + 1 if num_classes is None else check_size("num_classes", num_classes)
        if len(given) and not 0 <= int(given.min()) <= highest < classes:
            raise ValueError(f"labels are from {int(given.min())} to {highest}, expected 0 to {classes - 1}")
        names = tuple(map(str, range(classes)))
        found = _Joint(given, classes, rows.shape[-1], draws, seed)
        for some, piece in pieces_of(rows):
            if not bool(piece.isfinite().all()):
                raise ValueError("coefficients have a value that is not finite")
            found.add(Block(some.start, Rows(piece.cpu(), None, None, rows.shape[-1])))
        return found.result(names, (rows.shape[-1],))

    @property
    def shares(self) -> Tensor:
        """How the use of each expert is spread over the classes, ``(N, C)``: rows that add up to 1; NaN if unused."""
        return self.joint / self.joint.sum(dim=1, keepdim=True)

    @property
    def use(self) -> Tensor:
        """Each expert's part of all coefficients, ``(N,)``; it adds up to 1."""
        return self.joint.sum(dim=1)

    @property
    def concentrations(self) -> Tensor:
        """The part of each expert's use that its most common class has, ``(N,)``; NaN for an unused expert."""
        return self.shares.amax(dim=1)

    @property
    def classes_per_expert(self) -> Tensor:
        """``exp`` of the entropy of each expert's classes, ``(N,)``; NaN for an expert that is not used.

        It is ``k`` for an expert used alike by ``k`` classes and by no other.
        """
        found: Tensor = torch.special.entr(self.shares).sum(dim=1).exp()
        return found

    @property
    def best_class(self) -> Tensor:
        """The class with the largest part of each expert's use, ``(N,)``, int64; -1 for an expert that is not used."""
        return torch.where(self.use > 0, self.joint.argmax(dim=1), -1)

    @property
    def num_in_use(self) -> int:
        """The number of experts with a coefficient above 0 on some sample."""
        return int((self.use > 0).sum())

    @property
    def label_entropy(self) -> float:
        """The entropy of the classes, in bits: what there is to tell."""
        return float(torch.special.entr(self.joint.sum(dim=0)).sum()) / math.log(2)

    def columns(self) -> dict[str, list[Any]]:
        """One row for each expert."""
        return expert_columns(self.grid) | {
            "use": self.use.tolist(),
            "best_class": self.best_class.tolist(),
            "concentration": self.concentrations.tolist(),
            "classes": self.classes_per_expert.tolist(),
        }

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name, each figure as a dictionary."""
        figures = ("mutual_information", "concentration", "effective_classes")
        return super().to_dict() | {name: getattr(self, name).to_dict() for name in figures}


def measure_label_information(
    recording: Recording,
    *,
    labels: str | None = None,
    layer: str | None = None,
    mode: Mode = 0,
    draws: int = 10,
    seed: int = 0,
) -> LabelInformation:
    """Measure how much the experts of a recording tell of the classes, beside shuffled labels.

    One pass over the recording, whatever the number of draws; the memory is that of ``draws + 1`` tables ``(N, C)``.

    Args:
        recording: A recording with labels.
        labels: Which of the recording's label sets, as for `Recording.label_set`.
        layer: The layer's name; may be left out if there is one layer only.
        mode: The number of an expert mode, or ``"product"`` for the experts of the whole grid.
        draws: How many times labels are shuffled.
        seed: The seed of the shuffles; torch's own generator stays as it is.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a sample has no label, a coefficient is not finite, there is no such layer or mode, or the tables
            would be far larger than the recording.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> from factorized_moe.interpret import record
        >>> layer = CPMuMoE(8, 3, [2], rank=2)
        >>> with record(layer) as log:
        ...     y = layer(torch.randn(6, 8))  # a new gate mixes uniformly, so it tells nothing
        ...     log.annotate(labels=[0, 1, 0, 0, 1, 1])
        >>> found = measure_label_information(log.recording)
        >>> round(found.mutual_information.value, 6), [round(each, 3) for each in found.classes_per_expert.tolist()]
        (0.0, [2.0, 2.0])
    """
    recording = in_step(recording, layer)
    given: LabelSet = recording.label_set(labels)
    names = given.names()
    grid = recording.grid(layer, mode)
    experts = math.prod(grid)
    check_size("draws", draws)
    what = f"{draws + 1} tables of {experts:,} experts and {len(names):,} classes"
    check_room(what, 8 * (draws + 1) * experts * len(names), recording.num_bytes)
    found = _Joint(given.labels, len(names), experts, draws, seed)
    collect(recording, layer, mode, "label information", found)
    return found.result(names, grid)


class _Joint:
    """Sums of coefficients by class, for the labels as they are and shuffled.

    Args:
        labels: ``(n,)``.
        classes: ``C``.
        experts: ``N``.
        draws: How many times labels are shuffled.
        seed: The seed of the shuffles.
    """

    def __init__(self, labels: Tensor, classes: int, experts: int, draws: int, seed: int) -> None:
        check_size("draws", draws)
        if not is_whole(seed):
            raise TypeError(f"seed is an int, got {seed!r}")
        generator = torch.Generator().manual_seed(seed)
        self._labels = [labels, *(labels[torch.randperm(len(labels), generator=generator)] for _ in range(draws))]
        self._sums = [torch.zeros(classes, experts, dtype=torch.float64) for _ in self._labels]
        self._samples = 0

    def add(self, block: Block) -> None:
        """Take the next samples."""
        here = slice(block.start, block.start + len(block))
        if not block.rows.is_sparse:
            for some, piece in block.pieces():
                rows = piece.double().clamp(min=0)
                totals = rows.sum(dim=1, keepdim=True)
                rows = torch.where(totals > 0, rows / totals, 0.0)
                self._samples += int((totals > 0).sum())
                for labels, sums in zip(self._labels, self._sums, strict=True):
                    sums.index_add_(0, labels[here][some], rows)
            return
        sample, expert, value = block.entries
        value = value.double().clamp(min=0)
        totals = torch.zeros(len(block), dtype=torch.float64).index_add_(0, sample, value)
        shares = torch.where(value > 0, value / totals[sample], 0.0)
        self._samples += int((totals > 0).sum())
        for labels, sums in zip(self._labels, self._sums, strict=True):
            sums.view(-1).index_add_(0, labels[here][sample] * sums.shape[1] + expert, shares)

    def result(self, names: tuple[str, ...], grid: tuple[int, ...]) -> LabelInformation:
        """What was seen so far."""
        joints = [sums.T / max(1, self._samples) for sums in self._sums]
        figures = [_figures(joint) for joint in joints]
        information, concentration, classes = (
            BesideNull(values[0], torch.tensor(values[1:], dtype=torch.float64))
            for values in zip(*figures, strict=True)
        )
        return LabelInformation(joints[0].contiguous(), information, concentration, classes, self._samples, names, grid)


def _figures(joint: Tensor) -> tuple[float, float, float]:
    """The mutual information in bits, and the means over used experts of concentration and effective classes."""
    entropy = (torch.special.entr(joint.sum(dim=axis)).sum() for axis in (0, 1))
    information = max(0.0, float(sum(entropy) - torch.special.entr(joint).sum())) / math.log(2)
    use = joint.sum(dim=1)
    shares = joint[use > 0] / use[use > 0, None]
    if not shares.numel():
        return information, math.nan, math.nan
    return information, float(shares.amax(dim=1).mean()), float(torch.special.entr(shares).sum(dim=1).exp().mean())
