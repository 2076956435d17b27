"""What is known of a recording before its first sample, and the names of its files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from factorized_moe._reading import listed, read_json, record_of, text, whole
from factorized_moe._writing import READY, place_of
from factorized_moe.interpret.recording.chunks import read_sizes, write_whole

__all__ = ["HEADER_NAME", "Header", "chunk_path", "chunk_paths"]

HEADER_NAME = "recording.json"
FORMAT = "factorized_moe recording"
VERSION = 1
HERE = FORMAT, VERSION
DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Header:
    """What is known of a recording before its first sample.

    Attributes:
        layers: The name of each layer and the sizes of its expert modes.
        dtype: The type that coefficients are stored in.
        class_names: The names of the classes, in the order of the labels; empty if not given.
        num_samples: The number of samples, once the recording came to its end; ``None`` before. Of layers that ran on
            different numbers of samples, those of all.
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


def chunk_paths(folder: Path) -> list[Path]:
    """The files of all chunks, in order; also those that an interruption left to be moved."""
    names = {path.name for place in (folder, folder / READY) for path in place.glob("chunk-*.safetensors")}
    return [place_of(folder, name) for name in sorted(names)]


def chunk_path(folder: Path, number: int) -> Path:
    """The file of a chunk."""
    return folder / f"chunk-{number:06d}.safetensors"
