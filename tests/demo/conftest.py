"""Small synthetic images: three classes of striped squares, as files of every kind that the demonstration reads."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ("across", "down", "plain")
PER_CLASS = 15
SIDE = 12


def make_images(seed: int = 0) -> np.ndarray:
    """`(3, 15, 12, 12)`: stripes across, stripes down, and none, each with noise."""
    generator = np.random.default_rng(seed)
    stripes = np.tile([200, 200, 20, 20], SIDE // 4)
    patterns = np.stack([np.tile(stripes[:, None], (1, SIDE)), np.tile(stripes, (SIDE, 1)), np.full((SIDE, SIDE), 90)])
    noise = generator.integers(0, 50, size=(len(CLASSES), PER_CLASS, SIDE, SIDE))
    return (patterns[:, None] + noise).astype(np.uint8)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of 15 PNG files for each of three classes."""
    folder = tmp_path / "images"
    for name, images in zip(CLASSES, make_images(), strict=True):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / name / f"{number:02}.png")
    return folder


IdxWriter = Callable[..., Path]


@pytest.fixture
def write_idx(tmp_path: Path) -> IdxWriter:
    """Writes one IDX file of an array of bytes into `tmp_path / "idx"`, packed if the name ends in `.gz`."""

    def write(name: str, values: np.ndarray, magic: int | None = None, cut: int = 0) -> Path:
        header = struct.pack(f">I{values.ndim}I", 0x0800 + values.ndim if magic is None else magic, *values.shape)
        content = header + values.astype(np.uint8).tobytes()
        content = content[: len(content) - cut]
        file = tmp_path / "idx" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return file

    return write


@pytest.fixture
def idx_folder(tmp_path: Path, write_idx: IdxWriter) -> Path:
    """Training files, packed, and test files, plain; the labels are 3, 5 and 8."""
    labels = np.repeat([3, 5, 8], PER_CLASS)
    write_idx("train-images-idx3-ubyte.gz", make_images().reshape(-1, SIDE, SIDE))
    write_idx("train-labels-idx1-ubyte.gz", labels)
    write_idx("t10k-images-idx3-ubyte", make_images(seed=1).reshape(-1, SIDE, SIDE)[::2])
    write_idx("t10k-labels-idx1-ubyte", labels[::2])
    return tmp_path / "idx"
