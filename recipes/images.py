"""Labelled images: a folder of images for each class, or a folder of IDX files such as Debian's Fashion-MNIST.

    photographs/train/cat/1.jpg        with photographs/test/.. held out, or one image in ten of each class
    /usr/share/datasets/fashion-mnist  train-images-idx3-ubyte.gz and so on

Legend: ``C`` channels, ``S`` pixels of a side.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from factorized_moe.demo.idx import read_idx_folder
from recipes.recipe import listed

__all__ = ["FASHION_MNIST", "LabelledImages", "read_images"]

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
HELD_OUT_NAMES = ("test", "val", "validation")
HELD_OUT_EVERY = 10
LARGEST_SIDE = 1024


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images of one split, opened when they are asked for.

    Attributes:
        places: A file for each image, or its pixels.
        labels: The class of each.
        classes: The names of the classes.
        channels: ``C``, 1 or 3.
    """

    places: Sequence[Any]
    labels: Sequence[int]
    classes: tuple[str, ...]
    channels: int

    def __len__(self) -> int:
        """How many there are."""
        return len(self.places)

    def open(self, number: int) -> Image.Image:
        """One image.

        Raises:
            ValueError: If its file cannot be read as an image.
        """
        place = self.places[number]
        mode = "RGB" if self.channels == 3 else "L"
        if not isinstance(place, Path):
            return Image.fromarray(np.asarray(place)).convert(mode)
        try:
            with Image.open(place) as opened:
                return opened.convert(mode)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{place} (class {self.classes[self.labels[number]]!r}) cannot be read as an image: {error}; "
                "repair it or take it out, and give the same command in a new --out"
            ) from error


def read_images(folder: Path) -> tuple[LabelledImages, LabelledImages]:
    """The training images and the held-out ones.

    Args:
        folder: Folders of classes, or ``train`` and ``test`` with such folders, or IDX files.

    Raises:
        ValueError: If there is no such folder, a class has no image, or the splits have different classes.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name one by --data, or install Debian's dataset-fashion-mnist")
    if any(folder.glob("*-idx3-ubyte*")):
        return _read_idx(folder)
    if (folder / "train").is_dir():
        held_out = next((folder / name for name in HELD_OUT_NAMES if (folder / name).is_dir()), None)
        if held_out is None:
            raise ValueError(f"{folder} has a folder train, but none of {', '.join(HELD_OUT_NAMES)}")
        training, tested = _read_classes(folder / "train"), _read_classes(held_out)
        if training.keys() != tested.keys():
            differing = sorted(training.keys() ^ tested.keys())
            raise ValueError(f"{folder}: classes that are not in both train and {held_out.name}: {listed(differing)}")
    else:
        everything = _read_classes(folder)
        tested = {
            name: files[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY] or files[-1:] for name, files in everything.items()
        }
        training = {name: [f for f in files if f not in set(tested[name])] for name, files in everything.items()}
        for name, files in training.items():
            if not files:
                raise ValueError(f"class {name!r} in {folder} has one image; two are needed, one to hold out")
    return _split(training), _split(tested)


def _read_classes(folder: Path) -> dict[str, list[Path]]:
    found = {
        place.name: sorted(file for file in place.rglob("*") if file.suffix.lower() in ENDINGS)
        for place in sorted(folder.iterdir())
        if place.is_dir() and not place.name.startswith(".")
    }
    if len(found) < 2:
        raise ValueError(f"{folder} has {len(found)} folders; one for each class was expected, two or more")
    if empty := [name for name, files in found.items() if not files]:
        raise ValueError(
            f"no image ({', '.join(ENDINGS)}) in the folder of class {listed(empty)} in {folder}; add some or remove it"
        )
    return found


def _split(classes: dict[str, list[Path]]) -> LabelledImages:
    places = [file for files in classes.values() for file in files]
    labels = [label for label, files in enumerate(classes.values()) for _ in files]
    return LabelledImages(places, labels, tuple(classes), channels=3)


def _read_idx(folder: Path) -> tuple[LabelledImages, LabelledImages]:
    try:
        training, tested = read_idx_folder(folder, LARGEST_SIDE)
    except gzip.BadGzipFile as error:
        raise ValueError(f"{folder}: {error}") from error
    if tested is None:
        raise ValueError(f"{folder}: no test images (t10k-images-...) among its IDX files")
    names = tuple(map(str, range(int(training.labels.max()) + 1)))
    return tuple(  # type: ignore[return-value]
        LabelledImages(part.images.numpy(), part.labels.tolist(), names, channels=1) for part in (training, tested)
    )
