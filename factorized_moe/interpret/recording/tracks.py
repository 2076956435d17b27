"""The samples of layers that run in step, on their way into chunks.

Legend: ``n`` samples, ``N`` experts of one mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factorized_moe.interpret.recording.chunks import Annotations, Chunk
from factorized_moe.interpret.recording.rows import Rows

__all__ = ["Call", "Track"]


@dataclass(frozen=True, eq=False)
class Call:
    """What a layer ran on once.

    Attributes:
        inputs: The size of its first axis, such as the number of sequences.
        positions: The samples of each input.
        kept: Which samples were recorded, ``(inputs * positions,)``, bool.
    """

    inputs: int
    positions: int
    kept: Tensor


class Track:
    """Layers that run in step: rows wait until all of them have as many as fill a chunk.

    Args:
        sizes: The expert modes of each layer.
        chunk_samples: The samples of a chunk.
        store: Takes each chunk.
    """

    def __init__(
        self, sizes: Mapping[str, tuple[int, ...]], chunk_samples: int, store: Callable[[Chunk], None]
    ) -> None:
        self.sizes = sizes
        self.written = 0
        self.annotated = 0
        self._chunk_samples, self._store = chunk_samples, store
        self._waiting: dict[str, list[tuple[Rows, ...]]] = {name: [] for name in sizes}
        self._recorded = dict.fromkeys(sizes, 0)
        self._calls: dict[str, list[Call]] = {name: [] for name in sizes}
        self._annotations: list[Annotations] = []
        self._kinds: tuple[str, ...] = ()
        self._seen = 0  # samples at the last call of annotate

    @property
    def most(self) -> int:
        """The samples of the layer that has most."""
        return max(self._recorded.values())

    @property
    def silent(self) -> list[str]:
        """The layers that never ran, or on no samples."""
        return [layer for layer, samples in self._recorded.items() if not samples]

    def take(self, layer: str, rows: tuple[Rows, ...], call: Call) -> None:
        """Take what one call of a layer's gate gave."""
        # A layer that runs again, after as many samples as all others, starts a new forward pass.
        if not self.annotated and self._recorded[layer] and len(set(self._ran().values())) == 1:
            self.write(everything=False)
        if self.written and not self._recorded[layer]:
            raise ValueError(
                f"layer {layer!r} first ran when {self.written:,} samples of other layers were stored; "
                "record it on its own"
            )
        self._waiting[layer].append(rows)
        self._recorded[layer] += len(rows[0])
        if self.written > self._seen:  # too late for annotations, and a long recording without them has many calls
            self._calls[layer] = []
        else:
            self._calls[layer].append(call)

    def _ran(self) -> dict[str, int]:
        """The samples of each layer that ran."""
        return {layer: samples for layer, samples in self._recorded.items() if samples}

    def in_step(self) -> int:
        """The number of samples, if it is the same for all layers that ran."""
        ran = self._ran()
        least, most = min(ran, key=ran.__getitem__, default=""), max(ran, key=ran.__getitem__, default="")
        if ran and ran[least] != ran[most]:
            raise ValueError(
                f"layer {least!r} ran on {ran[least]:,} samples and layer {most!r} on {ran[most]:,}; "
                "record layers that run on different samples, or several times for each, by record(in_step=False)"
            )
        return ran.get(most, 0)

    def expected(self) -> int:
        """The samples since the last call of annotate."""
        return self.in_step() - self._seen

    def keep(self, mask: Tensor) -> bool:
        """Drop samples since the last call of annotate, where a mask of them is False; whether the mask fits.

        Raises:
            ValueError: If some of them are stored already.
        """
        self.in_step()
        kept = self._kept()
        if len(mask) not in (len(kept), int(kept.sum())):
            return False
        if self.written > self._seen:
            raise ValueError(
                f"{self.written - self._seen:,} samples that the mask is for are stored already; call annotate with "
                "the mask after every batch, from the first one on"
            )
        some = mask[kept] if len(mask) == len(kept) else mask
        chosen = some.nonzero().squeeze(1)
        before = self._seen - self.written
        for layer in self._ran():
            modes = [Rows.concatenate(pieces) for pieces in zip(*self._waiting[layer], strict=True)]
            pieces = [tuple(rows[:before] for rows in modes), tuple(rows[before:].take(chosen) for rows in modes)]
            self._waiting[layer] = pieces
            self._recorded[layer] -= len(some) - len(chosen)
            left = kept.clone()
            left[kept] = some
            sizes = [call.inputs * call.positions for call in self._calls[layer]]
            self._calls[layer] = [
                Call(call.inputs, call.positions, part)
                for call, part in zip(self._calls[layer], left.split(sizes), strict=True)
            ]
        return True

    def _kept(self) -> Tensor:
        """Which of the samples that the layers ran on since the last call of annotate were recorded."""
        calls = self._since()
        return torch.cat([call.kept for call in calls]) if calls else torch.ones(self.expected(), dtype=torch.bool)

    def _since(self) -> list[Call]:
        """The calls of one layer since the last call of annotate; none where some samples of them are stored."""
        return [] if self.written > self._seen else next((calls for calls in self._calls.values() if calls), [])

    def fitting(self, given: Annotations) -> Annotations:
        """Those of the annotations that fit, one for each sample recorded since the last call of annotate.

        They may have one entry for each such sample, for each that the layers ran on, padded ones included, or for each
        input of the first axis.

        Raises:
            ValueError: If it cannot be told which is meant.
        """
        kept, expected, calls = self._kept(), self.expected(), self._since()
        inputs = sum(call.inputs for call in calls)
        of_input = torch.repeat_interleave(
            torch.arange(inputs),
            torch.tensor([call.positions for call in calls for _ in range(call.inputs)], dtype=torch.int64),
        )
        found: dict[str, Annotations] = {}
        for kind in given.kinds:
            alone = Annotations(**{kind: getattr(given, kind)})
            count = len(getattr(given, kind))
            if count == len(kept):
                found[kind] = alone if expected == count else alone.take(kept.nonzero().squeeze(1))
            elif count == expected:
                if count == inputs and not torch.equal(of_input[kept], torch.arange(inputs)):
                    raise ValueError(
                        f"got {count} {kind} for {inputs} inputs with {expected} samples that are no padding, which "
                        "may be one for each of either; give one for each position, padding included"
                    )
                found[kind] = alone
            elif count == inputs:
                found[kind] = alone.take(of_input[kept])
        return Annotations(**{kind: getattr(part, kind) for kind, part in found.items()})

    def annotate(self, given: Annotations) -> None:
        """Take annotations, one for each sample since the last call; or none of them, after a mask.

        Raises:
            ValueError: If others were given for earlier samples, or a label is negative.
        """
        if given.labels is not None and len(given.labels) and int(given.labels.min()) < 0:
            raise ValueError(f"label {int(given.labels.min())} is negative; classes are numbered from 0")
        if given.kinds != self._kinds:
            if self._seen or self.written:
                raise ValueError(
                    f"annotate got {_listed(given.kinds)}, for earlier samples {_listed(self._kinds)}; "
                    "give the same for every batch"
                )
            self._kinds = given.kinds
        self._seen = self.in_step()
        self._calls = {name: [] for name in self.sizes}
        if given.kinds:
            self._annotations.append(given)
            self.annotated = self._seen
            self.write(everything=False)

    def flush(self) -> None:
        """Write what waits."""
        if self.annotated:
            self.write(everything=True, until=self.annotated)
        self._annotations = []
        self.write(everything=True)

    def write(self, everything: bool, until: int | None = None) -> None:
        """Turn waiting samples into chunks: all of them, or those that fill a chunk."""
        ran = self._ran()
        waiting = min(ran.values(), default=0) - self.written if until is None else until - self.written
        if waiting < (1 if everything else self._chunk_samples):
            return
        rows = {
            layer: tuple(Rows.concatenate(pieces) for pieces in zip(*self._waiting[layer], strict=True))
            for layer in ran
        }
        annotations = Annotations.concatenate(self._annotations)
        done = 0
        try:
            while waiting - done >= (1 if everything else self._chunk_samples):
                taken = slice(done, min(done + self._chunk_samples, waiting))
                chosen = {layer: tuple(mode[taken] for mode in modes) for layer, modes in rows.items()}
                self._store(Chunk(self.written, taken.stop - done, chosen, annotations[taken]))
                self.written += taken.stop - done
                done = taken.stop
        finally:
            rest = slice(done, None)
            self._waiting |= {layer: [tuple(mode[rest] for mode in modes)] for layer, modes in rows.items()}
            self._annotations = [annotations[rest]]


def _listed(kinds: Sequence[str]) -> str:
    return " and ".join(kinds) or "nothing"
