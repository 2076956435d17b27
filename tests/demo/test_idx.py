"""IDX files, plain and packed, whole and damaged."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from factorized_moe.demo.idx import read_idx
from factorized_moe.demo.images import load_images

from .conftest import IdxWriter, make_images

pytestmark = pytest.mark.thorough


def fails(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_images(path, seed=0)


def test_test_files_are_held_out(idx_folder: Path) -> None:
    data = load_images(idx_folder, seed=0)
    assert data.classes == ("3", "5", "8")
    assert torch.equal(data.train_images, torch.from_numpy(make_images()).reshape(-1, 12, 12))
    assert data.train_labels.tolist() == [0] * 15 + [1] * 15 + [2] * 15
    assert torch.equal(data.held_out_images, torch.from_numpy(make_images(seed=1)).reshape(-1, 12, 12)[::2])
    assert data.held_out_labels.tolist() == [0] * 8 + [1] * 7 + [2] * 8
    assert data.description == f"{idx_folder}, its test files held out"


def test_without_test_files_a_fifth_is_held_out(idx_folder: Path) -> None:
    for file in idx_folder.glob("t10k-*"):
        file.unlink()
    data = load_images(idx_folder, seed=0)
    assert torch.bincount(data.train_labels).tolist() == [12, 12, 12]
    assert torch.bincount(data.held_out_labels).tolist() == [3, 3, 3]


def test_unpacked_file_is_preferred(idx_folder: Path, write_idx: IdxWriter) -> None:
    write_idx("train-images-idx3-ubyte", np.full((45, 12, 12), 7))
    assert load_images(idx_folder, seed=0).train_images.unique().tolist() == [7]


def test_read_idx(write_idx: IdxWriter) -> None:
    values = np.arange(24).reshape(2, 3, 4)
    for name in ("a-ubyte", "a-ubyte.gz"):
        assert read_idx(write_idx(name, values), 3).tolist() == values.tolist()


def test_other_magic(write_idx: IdxWriter, idx_folder: Path) -> None:
    write_idx("train-images-idx3-ubyte.gz", np.zeros((2, 3, 4)), magic=0x0D03)
    message = "starts with the bytes 00 00 0d 03, expected 00 00 08 03: an IDX file of unsigned bytes with 3 dimensions"
    fails(idx_folder, f"train-images-idx3-ubyte.gz: {message}")


def test_labels_in_place_of_images(write_idx: IdxWriter) -> None:
    with pytest.raises(ValueError, match=r"starts with the bytes 00 00 08 03, expected 00 00 08 01: .* 1 dimension$"):
        read_idx(write_idx("a-ubyte", np.zeros((2, 3, 4))), 1)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a-ubyte").touch()
    with pytest.raises(ValueError, match=r"starts with the bytes \(none\)"):
        read_idx(tmp_path / "a-ubyte", 1)


def test_content_shorter_than_the_header_says(write_idx: IdxWriter) -> None:
    message = "23 bytes of values, but its header says 2 x 3 x 4 = 24; it is truncated or damaged"
    with pytest.raises(ValueError, match=message):
        read_idx(write_idx("a-ubyte", np.zeros((2, 3, 4)), cut=1), 3)


def test_truncated_and_unpacked_gzip(write_idx: IdxWriter) -> None:
    file = write_idx("a-ubyte.gz", np.random.default_rng(0).integers(0, 255, (20, 3, 4)))
    content = file.read_bytes()
    file.write_bytes(content[:-20])
    with pytest.raises(ValueError, match=f"{re.escape(str(file))}: cannot be read: Compressed file ended"):
        read_idx(file, 3)
    file.write_bytes(content[:40] + b"\xff\xff\xff" + content[43:])
    with pytest.raises(ValueError, match=f"{re.escape(str(file))}: cannot be read: "):
        read_idx(file, 3)
    file.write_bytes(gzip.decompress(content))
    with pytest.raises(ValueError, match="cannot be read: Not a gzipped file"):
        read_idx(file, 3)


def test_images_and_labels_of_other_numbers(idx_folder: Path, write_idx: IdxWriter) -> None:
    write_idx("train-labels-idx1-ubyte.gz", np.zeros(44))
    fails(idx_folder, "45 images in train-images-idx3-ubyte.gz, 44 labels in train-labels-idx1-ubyte.gz")


def test_training_and_test_images_of_other_sizes(idx_folder: Path, write_idx: IdxWriter) -> None:
    write_idx("t10k-images-idx3-ubyte", np.zeros((23, 10, 12)))
    fails(idx_folder, "training images of 12 x 12 pixels and test images of 10 x 12")


def test_missing_and_doubled_files(idx_folder: Path, write_idx: IdxWriter) -> None:
    write_idx("other-train-labels-idx1-ubyte", np.zeros(3))
    names = "other-train-labels-idx1-ubyte, train-labels-idx1-ubyte"
    fails(idx_folder, f"several files of train labels: {names}; give a folder with one data set")
    (idx_folder / "other-train-labels-idx1-ubyte").unlink()
    (idx_folder / "train-labels-idx1-ubyte.gz").unlink()
    fails(idx_folder, "no file of train labels; images and labels come in two files")
    (idx_folder / "train-images-idx3-ubyte.gz").unlink()
    fails(idx_folder, "no training files among its IDX files; expected names such as train-images-idx3-ubyte.gz")


def test_labels_only_in_the_test_files(idx_folder: Path, write_idx: IdxWriter) -> None:
    write_idx("t10k-labels-idx1-ubyte", np.arange(23) % 5)
    fails(idx_folder, "labels only in the test files: 0, 1, 2, 4")


def test_one_label(idx_folder: Path, write_idx: IdxWriter) -> None:
    write_idx("train-labels-idx1-ubyte.gz", np.full(45, 3))
    fails(idx_folder, "one class, '3'; a classifier needs images of at least two classes")


def test_no_images_and_large_ones(idx_folder: Path, write_idx: IdxWriter) -> None:
    write_idx("train-labels-idx1-ubyte.gz", np.zeros(0))
    write_idx("train-images-idx3-ubyte.gz", np.zeros((0, 12, 12)))
    fails(idx_folder, "train-images-idx3-ubyte.gz: holds no images")
    write_idx("train-labels-idx1-ubyte.gz", np.zeros(1))
    write_idx("train-images-idx3-ubyte.gz", np.zeros((1, 12, 65)))
    fails(idx_folder, "images of 12 x 65 pixels, at most 64 a side are read")
