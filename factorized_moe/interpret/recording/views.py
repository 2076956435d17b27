"""Parts of a recording that are made of other parts when they are read: some of their samples, or means over them.

Nothing of a recording on a disk is in memory before a part is asked for its coefficients.

Legend: ``n`` samples of the recording, ``m`` of a part, ``g`` groups, ``N`` experts of one mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factorized_moe.interpret.recording.chunks import Annotations, Part
from factorized_moe.interpret.recording.rows import Rows

__all__ = ["ChunkView", "MeanChunk", "mean_chunks", "selected"]

MEAN_ELEMENTS = 2**22
"""Elements of the largest matrix of means that is made at a time: 32 MiB of sums."""


@dataclass(frozen=True, eq=False)
class ChunkView:
    """A part under another number, or some of its samples.

    Attributes:
        part: The part.
        start: The number of the first sample.
        kept: The places of the samples in the part, ``(m,)``; all if ``None``.
    """

    part: Part
    start: int
    kept: Tensor | None = None

    @property
    def num_samples(self) -> int:
        """``m``."""
        return self.part.num_samples if self.kept is None else len(self.kept)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers."""
        return self.part.layers

    @property
    def num_bytes(self) -> int:
        """What its share of the part takes."""
        return self.part.num_bytes * self.num_samples // max(1, self.part.num_samples)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of annotations that its samples have."""
        return self.part.kinds

    @property
    def annotations(self) -> Annotations:
        """What the samples are."""
        return self.part.annotations if self.kept is None else self.part.annotations.take(self.kept)

    def modes(self, layer: str) -> tuple[Rows, ...]:
        """A layer's coefficients, for each expert mode."""
        modes = self.part.modes(layer)
        return modes if self.kept is None else tuple(rows.take(self.kept) for rows in modes)


@dataclass(frozen=True, eq=False)
class MeanChunk:
    """Means of samples over groups, made anew each time that they are read.

    Attributes:
        start: The number of the first group.
        num_samples: ``g``.
        sources: The parts that have samples of these groups, each with the places of those samples and their groups,
            counted from ``start``.
        annotations: What the groups are.
    """

    start: int
    num_samples: int
    sources: tuple[tuple[Part, Tensor, Tensor], ...]
    annotations: Annotations

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers."""
        return self.sources[0][0].layers

    @property
    def num_bytes(self) -> int:
        """About what its samples take."""
        return sum(part.num_bytes * len(places) // part.num_samples for part, places, _ in self.sources)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of annotations that its samples have."""
        return self.annotations.kinds

    def modes(self, layer: str) -> tuple[Rows, ...]:
        """A layer's mean coefficients, for each expert mode."""
        sums: list[Tensor] = []
        dtype = torch.float32
        sizes = torch.zeros(self.num_samples, 1, dtype=torch.float64)
        for part, places, groups in self.sources:
            modes = [rows.take(places) for rows in part.modes(layer)]
            dtype = modes[0].values.dtype
            sums = sums or [torch.zeros(self.num_samples, rows.num_experts, dtype=torch.float64) for rows in modes]
            sizes += torch.bincount(groups, minlength=self.num_samples)[:, None]
            for total, rows in zip(sums, modes, strict=True):
                sample, expert, value = rows.entries()
                total.view(-1).index_add_(0, groups[sample] * rows.num_experts + expert, value.double())
        return tuple(Rows.of((total / sizes).to(dtype)) for total in sums)


def selected(parts: Sequence[Part], mask: Tensor) -> Iterator[Part]:
    """The samples of a mask, ``(n,)``, part by part."""
    start = 0
    for part in parts:
        kept = mask[part.start : part.start + part.num_samples].nonzero().squeeze(1)
        if len(kept):
            yield ChunkView(part, start, None if len(kept) == part.num_samples else kept)
            start += len(kept)


def mean_chunks(parts: Sequence[Part], group: Tensor, annotations: Annotations, experts: int) -> Iterator[MeanChunk]:
    """Means over groups of samples, some groups at a time, each from the parts that have samples of them.

    Args:
        parts: All parts, in order.
        group: The group of each sample, ``(n,)``, from 0, by the first sample of each: groups of samples that are near
            each other are made from a few parts only.
        annotations: What the groups are.
        experts: The experts of the largest mode.
    """
    starts = torch.tensor([part.start for part in parts])
    step = max(1, MEAN_ELEMENTS // experts)
    order = group.argsort(stable=True)
    ends = torch.bincount(group).cumsum(0).tolist()
    for first in range(0, len(ends), step):
        last = min(first + step, len(ends))
        samples = order[ends[first - 1] if first else 0 : ends[last - 1]].sort().values
        owner = torch.bucketize(samples, starts, right=True) - 1
        sources = []
        for number in owner.unique().tolist():
            mine = samples[owner == number]
            sources.append((parts[number], mine - parts[number].start, group[mine] - first))
        yield MeanChunk(first, last - first, tuple(sources), annotations[first:last])
