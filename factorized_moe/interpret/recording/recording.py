"""A recording of coefficients, in memory or in a folder, read as a stream of chunks or as matrices.

Legend: ``n`` samples of the recording, ``N`` experts of one mode.

In a folder, ``recording.json`` says which layers there are and ``chunk-000000.safetensors`` and so on hold the samples
in order. Each chunk says of itself which samples of which layers it holds, so a recording that was cut off is readable
up to its last whole chunk, and layers that ran on different numbers of samples have chunks of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from factorized_moe._validation import check_kind
from factorized_moe.interpret.recording.chunks import Annotations, Part
from factorized_moe.interpret.recording.coefficients import LayerCoefficients
from factorized_moe.interpret.recording.given import given_parts
from factorized_moe.interpret.recording.header import Header
from factorized_moe.interpret.recording.label_sets import LabelSet
from factorized_moe.interpret.recording.views import ChunkView, mean_chunks, selected

__all__ = ["Recording"]

RECORDED = "labels"
"""What the labels are called that were given while recording."""


class Recording(LayerCoefficients):
    """Coefficients of a model's gates for a number of samples: what `record` leaves, and `open_recording` opens.

    Nothing is read from a folder before it is asked for; `chunks` reads one chunk at a time. What `select`,
    `concatenate`, `with_labels` and `mean_by_id` return reads the same chunks.

    Args:
        header: What is known without the samples.
        parts: The chunks, in order.
        label_sets: Label sets by name, beside the labels of the chunks.

    Attributes:
        layers: The names of the layers that ran, in the model's order.
        dtype: The type that coefficients are stored in.
        complete: Whether the recording came to its end, or was cut off.
        num_bytes: What its chunks take, in files or in memory.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> from factorized_moe.interpret import record
        >>> layer = CPMuMoE(8, 3, [6, 5], rank=2)
        >>> with record(layer) as log:
        ...     for _ in range(2):
        ...         y = layer(torch.randn(4, 8))
        ...         log.annotate(labels=y.argmax(dim=-1))
        >>> recording = log.recording
        >>> recording.layers, recording.expert_dims("model"), recording.num_samples
        (('model',), (6, 5), 8)
        >>> recording.coefficients(mode=1).shape, recording.labels.shape
        (torch.Size([8, 5]), torch.Size([8]))
    """

    def __init__(self, header: Header, parts: Sequence[Part], label_sets: Mapping[str, LabelSet] | None = None) -> None:
        super().__init__(header, parts)
        self._label_sets = dict(label_sets or {})

    @classmethod
    def from_coefficients(
        cls,
        coefficients: Tensor | Sequence[Tensor] | Mapping[str, Tensor | Sequence[Tensor]],
        *,
        labels: Tensor | Sequence[int] | Sequence[str] | None = None,
        ids: Tensor | Sequence[int] | None = None,
        texts: Sequence[str] | None = None,
        class_names: Sequence[str] = (),
    ) -> Recording:
        """A recording of coefficients that are at hand: of a gate that is not ours, or of another program.

        Args:
            coefficients: One layer's, ``(*batch, N)``, which is called ``"model"``; a sequence with one such tensor for
                each expert mode; or several layers' by name. Nothing is copied: leave them as they are.
            labels: The class of each sample, ints from 0 or a string each.
            ids: A number for each sample.
            texts: A text for each sample.
            class_names: The names of the classes.

        Raises:
            TypeError: If something is of another type; coefficients are float16, float32 or float64.
            ValueError: If numbers of samples differ, or there is no layer or expert.

        Examples:
            >>> router = torch.softmax(torch.randn(100, 8), dim=-1)
            >>> Recording.from_coefficients({"layers.3.router": router}, labels=["noun", "verb"] * 50)
            Recording(100 samples, layers ['layers.3.router'])
        """
        known = None if labels is None else LabelSet.of(RECORDED, labels, class_names)
        given = None if known is None else known.labels
        header, parts = given_parts(coefficients, given, ids, texts, known.class_names if known else class_names)
        return cls(header, parts)

    @classmethod
    def concatenate(cls, recordings: Sequence[Recording]) -> Recording:
        """Several recordings of the same layers, one after the other; what is on a disk stays there.

        Label sets that all of them have are joined, classes of one name to one class; the others are left out.

        Args:
            recordings: The recordings, at least one.

        Raises:
            TypeError: If one is none.
            ValueError: If there is none, or their layers or types differ.

        Examples:
            >>> halves = [Recording.from_coefficients(torch.rand(3, 4)) for _ in range(2)]
            >>> Recording.concatenate(halves)
            Recording(6 samples, layers ['model'])
        """
        check_kind("recordings", recordings, Sequence)
        if not recordings:
            raise ValueError("there is no recording to concatenate")
        for recording in recordings:
            check_kind("recording", recording, Recording)
        first = recordings[0]
        for number, other in enumerate(recordings):
            mine, theirs = ([(name, r.expert_dims(name)) for name in r.layers] for r in (first, other))
            if mine != theirs or first.dtype != other.dtype:
                raise ValueError(
                    f"recording {number} has layers {theirs} of {other.dtype}, the first one {mine} of {first.dtype}; "
                    "concatenate recordings of the same layers"
                )
        starts = torch.tensor([0, *(recording.num_samples for recording in recordings)]).cumsum(0).tolist()
        parts = [
            ChunkView(part, part.start + start)
            for recording, start in zip(recordings, starts, strict=False)
            for part in recording._parts
        ]
        common = [name for name in first.label_names if all(name in other.label_names for other in recordings)]
        sets = {name: LabelSet.concatenate([other.label_set(name) for other in recordings]) for name in common}
        whole = all(recording.complete for recording in recordings)
        header = replace(first._header, class_names=(), num_samples=starts[-1] if whole else None)
        return cls(header, parts, sets)

    def in_step_with(self, layer: str | None = None) -> Recording:
        """The layers that ran on the same samples as one; the recording itself where all did.

        Args:
            layer: The layer's name; may be left out if all layers ran on the same samples.

        Raises:
            ValueError: If there is no such layer, or there are several and none is named.
        """
        if layer is None and len(self._tracks) < 2:
            return self
        name = self.resolve(layer)
        if len(self._tracks) < 2:
            return self
        layers = next(layers for layers in self._tracks if name in layers)
        return Recording(self._header, self._tracks[layers], self._label_sets)

    def with_labels(
        self,
        labels: Tensor | Sequence[int] | Sequence[str] | LabelSet | None = None,
        class_names: Sequence[str] = (),
        **named: Tensor | Sequence[int] | Sequence[str] | LabelSet,
    ) -> Recording:
        """The same recording, its samples labelled anew or in several respects; nothing is copied or read.

        Args:
            labels: The class of each sample, in place of those given while recording: ints from 0, or a string each.
            class_names: The names of these classes.
            named: Further label sets by name, such as ``composer=[...]``, added to those that there are.

        Raises:
            TypeError: If labels are neither ints nor strings.
            ValueError: If there is not one for each sample, or one is negative or beyond the class names.

        Examples:
            >>> recording = Recording.from_coefficients(torch.rand(4, 3))
            >>> recording = recording.with_labels(key=["C", "G", "C", "G"], composer=[0, 0, 1, 1])
            >>> recording.label_names, recording.label_set("key").class_names
            (('key', 'composer'), ('C', 'G'))
        """
        given = named if labels is None else {RECORDED: labels, **named}
        sets = dict(self._label_sets)
        for name, each in given.items():
            names = class_names if name == RECORDED else ()
            sets[name] = each if isinstance(each, LabelSet) else LabelSet.of(name, each, names)
            if len(sets[name]) != self.num_samples:
                raise ValueError(f"got {len(sets[name]):,} {name} for {self.num_samples:,} samples; give one for each")
        return Recording(self._header, self._parts, sets)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the label sets; ``"labels"`` is the one given while recording."""
        recorded = RECORDED not in self._label_sets and bool(self._parts) and self._all_have(RECORDED)
        return (*((RECORDED,) if recorded else ()), *self._label_sets)

    def label_set(self, name: str | None = None) -> LabelSet:
        """The samples' classes in one respect.

        Args:
            name: The label set's name; may be left out if there is one only, or for the one called ``"labels"``.

        Raises:
            ValueError: If there is no such label set, or there are several and none is named.
        """
        if name is None and RECORDED not in self._label_sets and self._label_sets and not self._all_have(RECORDED):
            if len(self._label_sets) > 1:
                names = ", ".join(map(repr, self._label_sets))
                raise ValueError(f"the recording has {len(self._label_sets)} label sets, name one of them: {names}")
            name = next(iter(self._label_sets))
        name = RECORDED if name is None else name
        if name in self._label_sets:
            return self._label_sets[name]
        if name != RECORDED:
            names = ", ".join(map(repr, self.label_names)) or "none"
            raise ValueError(f"the recording has no label set {name!r}; it has {names}: give it by with_labels")
        found = [found.labels for found in self._annotations(RECORDED) if found.labels is not None]
        return LabelSet(torch.cat(found) if found else torch.zeros(0, dtype=torch.int64), self._header.class_names)

    def select(self, mask: Tensor | Sequence[bool]) -> Recording:
        """Some of the samples, under new numbers; coefficients are read when they are asked for, part by part.

        Args:
            mask: Whether each sample is kept, ``(n,)``, bool, such as ``recording.label_set("key").mask("C")``.

        Raises:
            TypeError: If it is no mask of bools.
            ValueError: If it has not one entry for each sample.

        Examples:
            >>> recording = Recording.from_coefficients(torch.eye(3), labels=[0, 1, 1])
            >>> recording.select(recording.labels == 1).coefficients()
            tensor([[0., 1., 0.],
                    [0., 0., 1.]])
        """
        kept = torch.as_tensor(mask).cpu()
        if kept.dtype != torch.bool:
            raise TypeError(f"mask is bool, one entry for each sample, got {kept.dtype}")
        if kept.shape != (self.num_samples,):
            raise ValueError(f"mask has shape {tuple(kept.shape)}, expected ({self.num_samples},), one for each sample")
        sets = {name: found[kept] for name, found in self._label_sets.items()}
        header = self._header if not self.complete else replace(self._header, num_samples=int(kept.sum()))
        return Recording(header, list(selected(self._parts, kept)), sets)

    def groups(self, name: str | None = None) -> Iterator[tuple[str, Recording]]:
        """The samples of each class of a label set that occurs, as recordings of their own, by the classes' names.

        Args:
            name: The label set's name, as for `label_set`.
        """
        found = self.label_set(name)
        for number, title in enumerate(found.names()):
            chosen = found.labels == number
            if chosen.any():
                yield title, self.select(chosen)

    def mean_by_id(self) -> Recording:
        """One sample for each id: the mean coefficients of all samples that have it, such as a note in many windows.

        It is made anew, some ids at a time, whenever it is read. The order is that of the first sample of each id, and
        labels and texts are that sample's. With several expert modes, the means are of each mode.

        Examples:
            >>> recording = Recording.from_coefficients(torch.eye(3), ids=[7, 8, 7])
            >>> recording.mean_by_id().coefficients()
            tensor([[0.5000, 0.0000, 0.5000],
                    [0.0000, 1.0000, 0.0000]])
        """
        known, group = self.ids.unique(return_inverse=True)
        count = len(known)
        first = torch.full((count,), self.num_samples).scatter_reduce(0, group, torch.arange(len(group)), "amin")
        order = first.argsort()
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(count))
        first = first[order]
        annotations = Annotations.concatenate([part.annotations for part in self._parts]).take(first)
        annotations = replace(annotations, ids=known[order])
        experts = max(size for layer in self.layers for size in self._expert_dims[layer])
        parts = list(mean_chunks(self._parts, rank[group], annotations, experts))
        sets = {name: found[first] for name, found in self._label_sets.items()}
        return Recording(replace(self._header, num_samples=count if self.complete else None), parts, sets)

    @property
    def ids(self) -> Tensor:
        """The numbers given to the samples, ``(n,)``; their numbers in the recording if none were given."""
        if not any("ids" in part.kinds for part in self._parts):
            return torch.arange(self.num_samples)
        return torch.cat([found.ids for found in self._annotations("ids") if found.ids is not None])

    @property
    def labels(self) -> Tensor:
        """The classes of the samples, ``(n,)``, int64: those of `label_set`.

        Raises:
            ValueError: If some sample has no label, or there are several label sets and none is called ``"labels"``.
        """
        return self.label_set().labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes of `labels`; empty if they have none."""
        only = next(iter(self._label_sets.values())) if len(self._label_sets) == 1 else None
        default = self._label_sets.get(RECORDED, None if self._all_have(RECORDED) and self._parts else only)
        return self._header.class_names if default is None else default.class_names

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the samples.

        Raises:
            ValueError: If some sample has no text.
        """
        return tuple(text for found in self._annotations("texts") for text in found.texts or ())

    def has(self, kind: str) -> bool:
        """Whether every sample has ``"ids"``, ``"labels"`` or ``"texts"``; labels that `labels` gives."""
        if kind == RECORDED and self._label_sets and not self._all_have(RECORDED):
            return RECORDED in self._label_sets or len(self._label_sets) == 1
        return self._all_have(kind)

    def _all_have(self, kind: str) -> bool:
        return all(kind in part.kinds for part in self._parts)

    def _annotations(self, kind: str) -> list[Annotations]:
        found = []
        for part in self._parts:
            if kind not in part.kinds:
                last = part.start + part.num_samples - 1
                raise ValueError(
                    f"samples {part.start} to {last} were recorded without {kind}; while recording, "
                    f"call log.annotate({kind}=...) after every batch"
                )
            found.append(part.annotations)
        return found

    def __repr__(self) -> str:
        state = "" if self.complete else ", cut off"
        counts = [sum(part.num_samples for part in parts) for parts in self._tracks.values()] or [0]
        return f"Recording({' + '.join(f'{count:,}' for count in counts)} samples, layers {list(self.layers)}{state})"
