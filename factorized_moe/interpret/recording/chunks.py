"""Consecutive samples of a recording: the coefficients of all its layers, and what the samples are.

A chunk is one safetensors file, written by `factorized_moe._writing`: a file with a chunk's name is whole.

Legend: ``n`` samples of the chunk, ``N`` experts of one mode.
"""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from factorized_moe._reading import TensorHeader, check_modes, parse_json, read_tensor_header, record_of, whole
from factorized_moe._writing import write_files
from factorized_moe.interpret.recording.rows import Rows

__all__ = ["Annotations", "Chunk", "Part", "StoredChunk", "read_chunk", "read_sizes", "write_chunk", "write_whole"]

DTYPES = ("F16", "F32", "F64")
"""Of coefficients, as safetensors calls them."""

MOST_ELEMENTS = 2**24
"""Of the largest matrix of a chunk that is read, written out dense; those that are written have a quarter of it."""


@dataclass(frozen=True, eq=False)
class Annotations:
    """The numbers, classes and texts of some samples; ``None`` for what was not given.

    Attributes:
        ids: A number for each sample, such as its place in a data set, ``(n,)``, int64.
        labels: The class of each sample, ``(n,)``, int64, from 0.
        texts: A text for each sample, such as a token.
    """

    ids: Tensor | None = None
    labels: Tensor | None = None
    texts: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        counts = (f"{len(getattr(self, kind)):,} {kind}" for kind in self.kinds)
        return f"Annotations({', '.join(counts) or 'none'})"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of those that were given."""
        return tuple(kind for kind in ("ids", "labels", "texts") if getattr(self, kind) is not None)

    def __getitem__(self, samples: slice) -> Annotations:
        """Those of consecutive samples."""
        return Annotations(**{kind: getattr(self, kind)[samples] for kind in self.kinds})

    def take(self, samples: Tensor) -> Annotations:
        """Those of samples given by number, ``(m,)``."""
        found = {kind: getattr(self, kind)[samples] for kind in ("ids", "labels") if getattr(self, kind) is not None}
        texts = None if self.texts is None else tuple(self.texts[number] for number in samples.tolist())
        return Annotations(**found, texts=texts)

    @classmethod
    def concatenate(cls, pieces: Sequence[Annotations]) -> Annotations:
        """Those of several pieces of the same kinds, one after the other."""
        joined = cls()
        if pieces and (kinds := pieces[0].kinds):
            parts = {kind: [getattr(piece, kind) for piece in pieces] for kind in kinds}
            texts = parts.pop("texts", None)
            tensors = {kind: torch.cat(given) for kind, given in parts.items()}
            joined = cls(**tensors, texts=None if texts is None else tuple(itertools.chain.from_iterable(texts)))
        return joined


class Part(Protocol):
    """Some consecutive samples of a recording, wherever they are."""

    @property
    def start(self) -> int:
        """The number of the first sample."""

    @property
    def num_samples(self) -> int:
        """``n``."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers."""

    @property
    def num_bytes(self) -> int:
        """What it takes, in a file or in memory."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of annotations that its samples have."""

    @property
    def annotations(self) -> Annotations:
        """What the samples are."""

    def modes(self, layer: str) -> tuple[Rows, ...]:
        """A layer's coefficients, for each expert mode."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some consecutive samples of a recording, in memory.

    Attributes:
        start: The number of the first sample.
        num_samples: ``n``.
        rows: For each layer the coefficients of its expert modes.
        annotations: What the samples are.
    """

    start: int
    num_samples: int
    rows: Mapping[str, tuple[Rows, ...]]
    annotations: Annotations = field(default_factory=Annotations)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers."""
        return tuple(self.rows)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of annotations that its samples have."""
        return self.annotations.kinds

    def __repr__(self) -> str:
        last = self.start + self.num_samples - 1
        return f"Chunk(samples {self.start:,} to {last:,}, layers {list(self.layers)}, {self.annotations!r})"

    @property
    def num_bytes(self) -> int:
        """What its coefficients take."""
        return sum(rows.num_bytes for modes in self.rows.values() for rows in modes)

    def modes(self, layer: str) -> tuple[Rows, ...]:
        """A layer's coefficients, for each expert mode."""
        return self.rows[layer]


class StoredChunk:
    """Some consecutive samples of a recording, in a file; a layer's coefficients are read when asked for.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is not a chunk, cut off, or its tensors are not those that it describes.
    """

    def __init__(self, path: Path) -> None:
        try:
            header = read_tensor_header(path)
            described = parse_json(header.metadata.get("chunk", ""), "its description")
            record_of(described, "its description", ("start", "samples", "layers"))
            self.start: int = whole(described["start"], "start")
            self.num_samples = whole(described["samples"], "samples", 1)
            self.sizes = read_sizes(described["layers"])
            self._names = frozenset(header.shapes)
            self.dtype = self._check(header)
        except ValueError as error:
            raise ValueError(f"{path} is not a whole chunk of a recording: {error}") from error
        self.path = path
        self.num_bytes = header.num_bytes

    def _check(self, header: TensorHeader) -> str:
        """The type of all coefficients, once the tensors are found to be those that the chunk describes."""
        samples, known = self.num_samples, set[str]()
        modes = [(f"{layer}/{mode}", size) for layer, sizes in self.sizes.items() for mode, size in enumerate(sizes)]
        dtypes = set()
        largest = max(size for _, size in modes)
        if samples > 1 and samples * largest > MOST_ELEMENTS:
            raise ValueError(f"{samples} samples of {largest} experts are more than a chunk holds")
        for name, size in modes:
            parts = {part: f"{name}/{part}" for part in ("values", "columns", "counts")}
            if parts["counts"] in self._names:
                (entries,) = header.expect(parts["values"], DTYPES, [None])
                header.expect(parts["columns"], ("I16", "I32"), [entries])
                header.expect(parts["counts"], ("I32",), [samples])
                known |= set(parts.values())
            else:
                header.expect(parts["values"], DTYPES, [samples, size])
                known.add(parts["values"])
            dtypes.add(header.dtypes[parts["values"]])
        for kind in {"ids", "labels"} & self._names:
            header.expect(kind, ("I64",), [samples])
            known.add(kind)
        if "texts" in self._names:
            header.expect("texts", ("U8",), [None])
            header.expect("text_ends", ("I64",), [samples])
            known |= {"texts", "text_ends"}
        if unknown := sorted(self._names - known):
            raise ValueError(f"it holds {unknown[0]!r}, which it does not describe")
        if len(dtypes) != 1:
            raise ValueError(f"coefficients are of types {sorted(dtypes)}, expected one type")
        return dtypes.pop()

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers."""
        return tuple(self.sizes)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of annotations that its samples have."""
        return tuple(kind for kind in ("ids", "labels", "texts") if kind in self._names)

    def modes(self, layer: str) -> tuple[Rows, ...]:
        """A layer's coefficients, for each expert mode.

        Raises:
            ValueError: If those of the file are of experts that there are not.
        """
        with safe_open(self.path, "pt") as file:

            def part(name: str) -> Tensor | None:
                return file.get_tensor(name) if name in self._names else None

            found = []
            for mode, size in enumerate(self.sizes[layer]):
                name = f"{layer}/{mode}"
                values = file.get_tensor(f"{name}/values")
                rows = Rows(values, part(f"{name}/columns"), part(f"{name}/counts"), size)
                if (fault := rows.fault()) is not None:
                    raise ValueError(f"{self.path} is damaged: mode {mode} of layer {layer!r} has {fault}")
                found.append(rows)
            return tuple(found)

    @property
    def annotations(self) -> Annotations:
        """What the samples are.

        Raises:
            ValueError: If a label is negative, or texts are not whole.
        """
        with safe_open(self.path, "pt") as file:
            tensors = {kind: file.get_tensor(kind) for kind in ("ids", "labels") if kind in self._names}
            texts = None
            if "texts" in self._names:
                try:
                    texts = _split(file.get_tensor("texts"), file.get_tensor("text_ends"))
                except ValueError as error:
                    raise ValueError(f"{self.path} is damaged: its texts are not whole: {error}") from error
        if "labels" in tensors and int(tensors["labels"].min()) < 0:
            raise ValueError(f"{self.path} is damaged: label {int(tensors['labels'].min())} is negative")
        return Annotations(**tensors, texts=texts)


def read_sizes(value: object) -> dict[str, tuple[int, ...]]:
    """The sizes of each layer's expert modes, as a file has them.

    Raises:
        ValueError: If they are not such sizes.
    """
    if not isinstance(value, dict) or not value:
        raise ValueError("layers is no object with the expert modes of at least one layer")
    found = {layer: check_modes(sizes, f"layers[{layer!r}]") for layer, sizes in value.items()}
    if bare := [layer for layer, sizes in found.items() if not sizes]:
        raise ValueError(f"layer {bare[0]!r} has no expert mode")
    return found


def read_chunk(part: Part) -> Chunk:
    """A part with everything of it in memory."""
    rows = {layer: part.modes(layer) for layer in part.layers}
    return Chunk(part.start, part.num_samples, rows, part.annotations)


def write_chunk(chunk: Chunk, path: Path) -> None:
    """Write a chunk as one safetensors file.

    Raises:
        OSError: If it cannot be written; then no file of this name is left.
    """
    tensors: dict[str, Tensor] = {}
    for layer, modes in chunk.rows.items():
        for mode, rows in enumerate(modes):
            parts = {"values": rows.values, "columns": rows.columns, "counts": rows.counts}
            tensors |= {f"{layer}/{mode}/{part}": t.contiguous() for part, t in parts.items() if t is not None}
    given = chunk.annotations
    tensors |= {kind: t.contiguous() for kind, t in (("ids", given.ids), ("labels", given.labels)) if t is not None}
    if given.texts is not None:
        tensors["texts"], tensors["text_ends"] = _join(given.texts)
    sizes = {layer: [rows.num_experts for rows in modes] for layer, modes in chunk.rows.items()}
    described = json.dumps({"start": chunk.start, "samples": chunk.num_samples, "layers": sizes})
    write_whole(path, save(tensors, {"chunk": described}))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, forced to disk.

    Raises:
        OSError: If it cannot be written; then the file is as it was before.
    """
    try:
        write_files(path.parent, {path.name: content})
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, "no space left on the disk", str(path)) from error
        raise


def _join(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Texts as the bytes of all of them, and where each one ends."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    joined = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return torch.from_numpy(joined), torch.from_numpy(ends)


def _split(joined: Tensor, ends: Tensor) -> tuple[str, ...]:
    content, stops = joined.numpy().tobytes(), ends.tolist()
    starts = [0, *stops[:-1]]
    if sorted(stops) != stops or starts[-1] < 0 or [*stops, 0][-2] != len(content):
        raise ValueError("their ends are out of order")
    return tuple(
        content[start:stop].decode("utf-8", "surrogatepass") for start, stop in zip(starts, stops, strict=True)
    )
