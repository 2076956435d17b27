"""Consecutive samples of a recording: the coefficients of all its layers, and what the samples are.

A chunk is one safetensors file, written under another name first: a file with a chunk's name is whole.

Legend: ``n`` samples of the chunk, ``N`` experts of one mode.
"""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from factorized_moe.interpret.recording.rows import Rows

__all__ = ["Annotations", "Chunk", "StoredChunk", "read_chunk", "write_chunk", "write_whole"]


@dataclass(frozen=True, eq=False)
class Annotations:
    """What some samples are; each attribute is ``None`` where it was not given.

    Attributes:
        ids: A number for each sample, such as its place in a data set, ``(n,)``, int64.
        labels: The class of each sample, ``(n,)``, int64, from 0.
        texts: A text for each sample, such as a token.
    """

    ids: Tensor | None = None
    labels: Tensor | None = None
    texts: tuple[str, ...] | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of those that were given."""
        return tuple(kind for kind in ("ids", "labels", "texts") if getattr(self, kind) is not None)

    def __getitem__(self, samples: slice) -> Annotations:
        """Those of consecutive samples."""
        return Annotations(**{kind: getattr(self, kind)[samples] for kind in self.kinds})

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

    def modes(self, layer: str) -> tuple[Rows, ...]:
        """A layer's coefficients, for each expert mode."""
        return self.rows[layer]


class StoredChunk:
    """Some consecutive samples of a recording, in a file; a layer's coefficients are read when asked for.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is not a chunk, or cut off.
    """

    def __init__(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                described = json.loads(file.metadata()["chunk"])
                self._names = frozenset(file.keys())
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a whole chunk of a recording: {error}") from error
        self.path = path
        self.start: int = described["start"]
        self.num_samples: int = described["samples"]
        self._sizes: dict[str, list[int]] = described["layers"]

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers."""
        return tuple(self._sizes)

    def modes(self, layer: str) -> tuple[Rows, ...]:
        """A layer's coefficients, for each expert mode."""
        with safe_open(self.path, "pt") as file:

            def part(name: str) -> Tensor | None:
                return file.get_tensor(name) if name in self._names else None

            found = []
            for mode, size in enumerate(self._sizes[layer]):
                name = f"{layer}/{mode}"
                values = file.get_tensor(f"{name}/values")
                found.append(Rows(values, part(f"{name}/columns"), part(f"{name}/counts"), size))
            return tuple(found)

    @property
    def annotations(self) -> Annotations:
        """What the samples are."""
        with safe_open(self.path, "pt") as file:
            tensors = {kind: file.get_tensor(kind) for kind in ("ids", "labels") if kind in self._names}
            texts = None
            if "texts" in self._names:
                texts = _split(file.get_tensor("texts"), file.get_tensor("text_ends"))
        return Annotations(**tensors, texts=texts)


def read_chunk(chunk: Chunk | StoredChunk) -> Chunk:
    """A chunk with everything of it in memory."""
    if isinstance(chunk, Chunk):
        return chunk
    rows = {layer: chunk.modes(layer) for layer in chunk.layers}
    return Chunk(chunk.start, chunk.num_samples, rows, chunk.annotations)


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
    """Write a file under another name and give it its own when it is whole.

    Raises:
        OSError: If it cannot be written; then the file is as it was before.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
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
    return tuple(
        content[start:stop].decode("utf-8", "surrogatepass") for start, stop in zip(starts, stops, strict=True)
    )
