"""A recording of coefficients, in memory or in a folder, read as a stream of chunks or as matrices.

Legend: ``n`` samples of the recording, ``N`` experts of one mode.

In a folder, ``recording.json`` says which layers there are and ``chunk-000000.safetensors`` and so on hold the samples
in order. Each chunk says of itself which samples it holds, so a recording that was cut off is readable up to its last
whole chunk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from factorized_moe._reading import listed, read_json, record_of, text, whole
from factorized_moe._scalars import is_whole
from factorized_moe._validation import check_kind, check_path
from factorized_moe._writing import READY, place_of
from factorized_moe.interpret.recording.chunks import Annotations, Chunk, StoredChunk, read_sizes, write_whole
from factorized_moe.interpret.recording.rows import Rows

__all__ = ["HEADER_NAME", "Header", "Mode", "Recording", "chunk_path", "chunk_paths", "open_recording"]

HEADER_NAME = "recording.json"
FORMAT = "factorized_moe recording"
VERSION = 1
HERE = FORMAT, VERSION
DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}

PRODUCTS = 2**21
"""Products of several modes' coefficients that are made at a time: 32 MiB with their experts' numbers."""

Mode: TypeAlias = int | Literal["product"]
"""The number of an expert mode, or all of them together."""


@dataclass(frozen=True)
class Header:
    """What is known of a recording before its first sample.

    Attributes:
        layers: The name of each layer and the sizes of its expert modes.
        dtype: The type that coefficients are stored in.
        class_names: The names of the classes, in the order of the labels; empty if not given.
        num_samples: The number of samples, once the recording came to its end; ``None`` before.
    """

    layers: tuple[tuple[str, tuple[int, ...]], ...]
    dtype: torch.dtype
    class_names: tuple[str, ...] = ()
    num_samples: int | None = None

    def write(self, folder: Path) -> None:
        """Write the header into a folder, in place of an earlier one."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "layers": {name: list(sizes) for name, sizes in self.layers},
            "dtype": str(self.dtype).removeprefix("torch."),
            "class_names": list(self.class_names),
            "num_samples": self.num_samples,
        }
        write_whole(folder / HEADER_NAME, (json.dumps(content, indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> Header:
        """The header of a recording in a folder."""
        path = place_of(folder, HEADER_NAME)
        if not path.is_file():
            raise ValueError(f"{folder} holds no recording: there is no {HEADER_NAME} in it")
        keys = ("format", "version", "layers", "dtype", "class_names", "num_samples")
        try:
            content = read_json(path)
            if isinstance(content, dict) and (form := (content.get("format"), content.get("version"))) != HERE:
                raise ValueError(
                    f"it is of format {form[0]!r}, version {form[1]!r}; "
                    f"this library reads {FORMAT!r}, version {VERSION}"
                )
            record_of(content, "it", keys)
            dtype, samples = text(content["dtype"], "dtype"), content["num_samples"]
            if dtype not in DTYPES:
                raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
            return cls(
                layers=tuple(read_sizes(content["layers"]).items()),
                dtype=DTYPES[dtype],
                class_names=tuple(listed(content["class_names"], "class_names", text)),
                num_samples=None if samples is None else whole(samples, "num_samples"),
            )
        except ValueError as error:
            raise ValueError(f"{path} is not the header of a recording: {error}") from error


class Recording:
    """Coefficients of a model's gates for a number of samples: what `record` leaves, and `open_recording` opens.

    Nothing is read from a folder before it is asked for; `chunks` reads one chunk at a time.

    Args:
        header: What is known without the samples.
        parts: The chunks, in order.

    Attributes:
        layers: The names of the layers that ran, in the model's order.
        dtype: The type that coefficients are stored in.
        class_names: The names of the classes; empty if none were given.
        complete: Whether the recording came to its end, or was cut off.
        num_samples: ``n``.
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

    def __init__(self, header: Header, parts: Sequence[Chunk | StoredChunk]) -> None:
        self.layers = parts[0].layers if parts else tuple(name for name, _ in header.layers)
        self.dtype = header.dtype
        self.class_names = header.class_names
        self.complete = header.num_samples is not None
        self.num_samples = sum(part.num_samples for part in parts)
        self.num_bytes = sum(part.num_bytes for part in parts)
        self._expert_dims = dict(header.layers)
        self._parts = tuple(parts)

    def expert_dims(self, layer: str | None = None) -> tuple[int, ...]:
        """The sizes of a layer's expert modes.

        Args:
            layer: The layer's name; may be left out if there is one layer only.

        Raises:
            ValueError: If no layer of this name was recorded, or there are several and none is named.
        """
        return self._expert_dims[self.resolve(layer)]

    def resolve(self, layer: str | None = None) -> str:
        """The name of a layer of the recording.

        Args:
            layer: The layer's name; may be left out if there is one layer only.

        Raises:
            ValueError: If no layer of this name was recorded, or there are several and none is named.
        """
        if layer is not None:
            check_kind("layer", layer, str)
        if layer is None and len(self.layers) == 1:
            return self.layers[0]
        if layer in self.layers:
            return str(layer)
        names = ", ".join(map(repr, self.layers))
        if layer is None:
            raise ValueError(f"the recording has {len(self.layers)} layers, name one of them: {names}")
        reason = "never ran" if layer in self._expert_dims else "was not recorded"
        raise ValueError(f"layer {layer!r} {reason}; the recording has {names}")

    def chunks(self) -> Iterator[Chunk | StoredChunk]:
        """The samples in order, some at a time.

        Yields:
            Chunks: each has ``start`` and ``num_samples``, ``modes(layer)`` with the coefficients of each expert mode
            as `Rows`, and ``annotations``.
        """
        yield from self._parts

    def grid(self, layer: str | None = None, mode: Mode = 0) -> tuple[int, ...]:
        """The sizes of the expert modes that a mode's experts are counted over: one, or all for ``"product"``.

        Args:
            layer: The layer's name; may be left out if there is one layer only.
            mode: The number of an expert mode, or ``"product"``.

        Raises:
            ValueError: If there is no such layer or mode.
        """
        name = self.resolve(layer)
        sizes = self._expert_dims[name]
        if mode == "product":
            return sizes
        if not is_whole(mode) or not 0 <= mode < len(sizes):
            raise ValueError(
                f"mode {mode!r} is not one of the {len(sizes)} expert modes of layer {name!r}, counted from 0, "
                "nor 'product'"
            )
        return (sizes[mode],)

    def stream(self, layer: str | None = None, mode: Mode = 0) -> Iterator[tuple[int, Rows]]:
        """The coefficients of one expert mode, some samples at a time.

        Args:
            layer: The layer's name; may be left out if there is one layer only.
            mode: The number of an expert mode, or ``"product"``: the experts of the whole grid, numbered with the last
                mode fastest, each with the product of its coefficients in all modes.

        Returns:
            Pairs of the number of the first sample and the coefficients from there on.

        Raises:
            ValueError: If there is no such layer or mode.
        """
        self.grid(layer, mode)
        name = self.resolve(layer)
        if mode == "product":
            return (found for part in self._parts for found in _products(part.start, part.modes(name)))
        return ((part.start, part.modes(name)[mode]) for part in self._parts)

    def coefficients(self, layer: str | None = None, mode: Mode = 0) -> Tensor:
        """All coefficients of one expert mode as a matrix, which is built: see `stream` for large recordings.

        Args:
            layer: The layer's name; may be left out if there is one layer only.
            mode: The number of an expert mode, or ``"product"`` as for `stream`.

        Returns:
            The coefficients, ``(n, N)``.

        Raises:
            ValueError: If there is no such layer or mode.
        """
        matrix = torch.zeros(self.num_samples, math.prod(self.grid(layer, mode)), dtype=self.dtype)
        for start, rows in self.stream(layer, mode):
            matrix[start : start + len(rows)] = rows.dense()
        return matrix

    @property
    def ids(self) -> Tensor:
        """The numbers given to the samples, ``(n,)``; their numbers in the recording if none were given."""
        if not any("ids" in part.annotations.kinds for part in self._parts):
            return torch.arange(self.num_samples)
        return torch.cat([found.ids for found in self._annotations("ids") if found.ids is not None])

    @property
    def labels(self) -> Tensor:
        """The classes of the samples, ``(n,)``, int64.

        Raises:
            ValueError: If some sample has no label.
        """
        found = [found.labels for found in self._annotations("labels") if found.labels is not None]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the samples.

        Raises:
            ValueError: If some sample has no text.
        """
        return tuple(text for found in self._annotations("texts") for text in found.texts or ())

    def has(self, kind: str) -> bool:
        """Whether every sample has ``"ids"``, ``"labels"`` or ``"texts"``."""
        return all(kind in part.annotations.kinds for part in self._parts)

    def _annotations(self, kind: str) -> list[Annotations]:
        found = []
        for part in self._parts:
            annotations = part.annotations
            if kind not in annotations.kinds:
                last = part.start + part.num_samples - 1
                raise ValueError(
                    f"samples {part.start} to {last} were recorded without {kind}; while recording, "
                    f"call log.annotate({kind}=...) after every batch"
                )
            found.append(annotations)
        return found

    def __repr__(self) -> str:
        state = "" if self.complete else ", cut off"
        return f"Recording({self.num_samples:,} samples, layers {list(self.layers)}{state})"


def open_recording(folder: str | Path) -> Recording:
    """Open a recording in a folder, up to its last whole chunk if it was cut off.

    Args:
        folder: The folder that `record` wrote to; it may still be written.

    Raises:
        ValueError: If the folder holds no recording, or a chunk is missing or damaged; where the recording was cut off,
            one before the last.

    Examples:
        >>> import tempfile
        >>> from factorized_moe import CPMuMoE
        >>> from factorized_moe.interpret import record
        >>> layer = CPMuMoE(8, 3, [6], rank=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with record(layer, folder=folder):
        ...         y = layer(torch.randn(4, 8))
        ...     open_recording(folder)
        Recording(4 samples, layers ['model'])
    """
    folder = check_path("folder", folder)
    header = Header.read(folder)
    paths = chunk_paths(folder)
    parts: list[Chunk | StoredChunk] = []
    samples = 0
    for number, path in enumerate(paths):
        if path.name != chunk_path(folder, number).name:
            raise ValueError(f"{chunk_path(folder, number)} is missing: put it back, or delete the later ones")
        try:
            part = StoredChunk(path)
        except ValueError:
            if path != paths[-1] or header.num_samples is not None:
                raise
            break  # the machine stopped while it was written
        _check_part(part, header, parts)
        if part.start != samples:
            raise ValueError(f"{path} starts with sample {part.start}, expected {samples}: is it of another recording?")
        samples += part.num_samples
        parts.append(part)
    if header.num_samples is not None and header.num_samples != samples:
        raise ValueError(
            f"{folder} holds {samples:,} samples of the {header.num_samples:,} that were recorded: the last chunks are "
            f"missing, put {chunk_path(folder, len(parts)).name} and later ones back"
        )
    return Recording(header, parts)


def _check_part(part: StoredChunk, header: Header, before: Sequence[Chunk | StoredChunk]) -> None:
    """Refuse a chunk of other layers, sizes or types than the recording's."""
    known = dict(header.layers)
    if any(known.get(layer) != sizes for layer, sizes in part.sizes.items()):
        raise ValueError(f"{part.path} has layers {part.sizes}, but the recording {known}: is it of another recording?")
    if part.dtype != f"F{header.dtype.itemsize * 8}":
        raise ValueError(f"{part.path} has coefficients of type {part.dtype}, but the recording of {header.dtype}")
    if before and part.layers != before[0].layers:
        raise ValueError(f"{part.path} has layers {part.layers}, but the chunks before it {before[0].layers}")


def _products(start: int, modes: Sequence[Rows]) -> Iterator[tuple[int, Rows]]:
    """The products of all modes' coefficients, for as many samples at a time as have `PRODUCTS` of them."""
    counts = torch.stack([rows.nonzeros() for rows in modes]).double().prod(dim=0)
    first = 0
    while first < len(counts):
        fitting = int((counts[first:].cumsum(0) <= PRODUCTS).sum())
        samples = slice(first, first + max(1, fitting))
        yield start + first, reduce(Rows.outer, (rows[samples] for rows in modes))
        first = samples.stop


def chunk_paths(folder: Path) -> list[Path]:
    """The files of all chunks, in order; also those that an interruption left to be moved."""
    names = {path.name for place in (folder, folder / READY) for path in place.glob("chunk-*.safetensors")}
    return [place_of(folder, name) for name in sorted(names)]


def chunk_path(folder: Path, number: int) -> Path:
    """The file of a chunk."""
    return folder / f"chunk-{number:06d}.safetensors"
