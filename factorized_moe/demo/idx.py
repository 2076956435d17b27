"""IDX files, the format of MNIST and Fashion-MNIST: a short header, then one byte a value.

Legend: ``n`` images, ``H`` height, ``W`` width in pixels.

The header is two zero bytes, one byte for the type (8: unsigned bytes), one for the number of dimensions, and each
dimension's size as four bytes, the highest first.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from factorized_moe._reading import check_room

__all__ = ["IdxImages", "holds_idx_files", "read_idx", "read_idx_folder"]

UNSIGNED_BYTES = 8


@dataclass(frozen=True, eq=False)
class IdxImages:
    """The content of one file of images and one of labels.

    Attributes:
        images: ``(n, H, W)``, uint8.
        labels: ``(n,)``, int64.
    """

    images: Tensor
    labels: Tensor


def holds_idx_files(folder: Path) -> bool:
    """Whether a file of the folder is named as IDX files are: ``...-ubyte`` or ``...-ubyte.gz``."""
    return bool(_idx_files(folder))


def read_idx_folder(folder: Path, largest_side: int) -> tuple[IdxImages, IdxImages | None]:
    """Read the training files of a folder and, if there are any, its test files.

    The files are known by the words in their names: "train", or "t10k" or "test"; "images" or "labels".

    Args:
        folder: The folder.
        largest_side: The most pixels a side that images may have.

    Returns:
        The training images and the test images, or ``None`` for the latter.

    Raises:
        ValueError: If a file is missing, is not such a file, or does not fit another one.
    """
    train = _read_pair(folder, ("train",), largest_side)
    if train is None:
        raise ValueError(
            f"{folder}: no training files among its IDX files; expected names such as train-images-idx3-ubyte.gz "
            "and train-labels-idx1-ubyte.gz"
        )
    test = _read_pair(folder, ("t10k", "test"), largest_side)
    if test is not None and test.images.shape[1:] != train.images.shape[1:]:
        sizes = [" x ".join(map(str, pair.images.shape[1:])) for pair in (train, test)]
        raise ValueError(f"{folder}: training images of {sizes[0]} pixels and test images of {sizes[1]}")
    return train, test


def read_idx(file: Path, dimensions: int) -> Tensor:
    """Read one file.

    Args:
        file: The file, packed by gzip if its name ends in ``.gz``.
        dimensions: How many dimensions it must have: 3 for images, 1 for labels.

    Returns:
        Its values, uint8.

    Raises:
        ValueError: If it is damaged, of another kind, or longer or shorter than its header says.
    """
    start = 4 + 4 * dimensions
    magic = bytes([0, 0, UNSIGNED_BYTES, dimensions])
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            header = stream.read(start)
            if len(header) < start or header[:4] != magic:
                raise ValueError(
                    f"starts with the bytes {header[:4].hex(' ') or '(none)'}, expected {magic.hex(' ')}: "
                    f"an IDX file of unsigned bytes with {dimensions} dimension{'s' if dimensions > 1 else ''}"
                )
            shape = struct.unpack(f">{dimensions}I", header[4:])
            wanted = math.prod(shape)
            check_room(f"values of shape {' x '.join(map(str, shape))}", wanted, file.stat().st_size)
            content = stream.read(wanted + 1)  # one more, to see whether the file goes on
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if len(content) != wanted:
        found = f"{len(content):,}" if len(content) < wanted else "more"
        raise ValueError(
            f"{file}: {found} bytes of values, but its header says "
            f"{' x '.join(map(str, shape))} = {wanted:,}; it is truncated or damaged"
        )
    return (
        torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(shape)
        if wanted
        else torch.empty(shape, dtype=torch.uint8)
    )


def _idx_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and file.name.endswith(("-ubyte", "-ubyte.gz")))


def _read_pair(folder: Path, words: tuple[str, ...], largest_side: int) -> IdxImages | None:
    images_file, labels_file = (_find(folder, words, kind) for kind in ("images", "labels"))
    if images_file is None and labels_file is None:
        return None
    if images_file is None or labels_file is None:
        missing = "images" if images_file is None else "labels"
        raise ValueError(f"{folder}: no file of {words[0]} {missing}; images and labels come in two files")
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    if len(images) != len(labels):
        raise ValueError(
            f"{folder}: {len(images):,} images in {images_file.name}, {len(labels):,} labels in {labels_file.name}"
        )
    if not images.numel():
        raise ValueError(f"{images_file}: holds no images")
    if max(images.shape[1:]) > largest_side:
        height, width = images.shape[1:]
        raise ValueError(f"{images_file}: images of {height} x {width} pixels, at most {largest_side} a side are read")
    return IdxImages(images, labels.long())


def _find(folder: Path, words: tuple[str, ...], kind: str) -> Path | None:
    """The one file of a kind; an unpacked file is preferred to the same file packed."""
    files = [file for file in _idx_files(folder) if kind in file.name and any(word in file.name for word in words)]
    unpacked = {file.name.removesuffix(".gz"): file for file in sorted(files, reverse=True)}
    if len(unpacked) > 1:
        raise ValueError(
            f"{folder}: several files of {words[0]} {kind}: {', '.join(sorted(unpacked))}; "
            "give a folder with one data set"
        )
    return next(iter(unpacked.values()), None)
