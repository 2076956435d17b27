"""Images in folders and IDX files: read as they are, damage named; their change is that of the sample's number."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.augmentation import MEANS, PILLOW, SPREADS, Augmentation, has_torchvision, to_tensor
from recipes.images import read_images
from recipes.recipe import generator_of
from tests.recipes.small_runs import write_images

pytestmark = pytest.mark.thorough


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def test_one_in_ten_of_each_class_is_held_out(folder: Path) -> None:
    training, tested = read_images(folder)
    assert training.classes == tested.classes == ("bright", "dark")
    assert (len(training), len(tested)) == (36, 4)
    assert tested.labels == [0, 0, 1, 1]
    assert not {*training.places} & {*tested.places}
    assert np.asarray(training.open(0)).mean() > 128 > np.asarray(training.open(35)).mean()


def test_splits_of_their_own(folder: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    both.mkdir()
    folder.rename(both / "train")
    with pytest.raises(ValueError, match="a folder train, but none of test, val, validation"):
        read_images(both)
    write_images(both / "val", number=2)
    training, tested = read_images(both)
    assert (len(training), len(tested)) == (40, 4)
    (both / "val" / "dark").rename(both / "val" / "dim")
    with pytest.raises(ValueError, match="not in both train and val: dark, dim"):
        read_images(both)


def test_faults_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder; name one by --data"):
        read_images(tmp_path / "nowhere")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no image .* in the folder of class empty"):
        read_images(folder)
    (folder / "empty" / "1.png").write_bytes((folder / "dark" / "01.png").read_bytes())
    with pytest.raises(ValueError, match=r"class 'empty' .* has one image; two are needed"):
        read_images(folder)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_an_unreadable_image_is_named(folder: Path, content: bytes) -> None:
    (folder / "dark" / "01.png").write_bytes(content)
    training, _ = read_images(folder)
    number = next(k for k, place in enumerate(training.places) if place.name == "01.png" and training.labels[k] == 1)
    with pytest.raises(ValueError, match=r"dark/01.png \(class 'dark'\) cannot be read as an image"):
        training.open(number)


def test_a_cut_off_image_is_named(folder: Path) -> None:
    file = folder / "dark" / "01.png"
    file.write_bytes(file.read_bytes()[:-30])
    training, _ = read_images(folder)
    number = next(k for k, place in enumerate(training.places) if place == file)
    with pytest.raises(ValueError, match="cannot be read as an image"):
        training.open(number)


def test_idx_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 5), dtype=np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)
    for split in ("train", "t10k"):
        for kind, header, content in (("images-idx3", (2051, 6, 5, 5), pixels), ("labels-idx1", (2049, 6), labels)):
            head = np.array(header, dtype=">i4").tobytes()
            (tmp_path / f"{split}-{kind}-ubyte").write_bytes(head + content.tobytes())
    training, tested = read_images(tmp_path)
    assert (len(training), len(tested), training.classes, training.channels) == (6, 6, ("0", "1", "2"), 1)
    assert (np.asarray(training.open(4)) == pixels[4]).all()


def test_pixels_are_standardised() -> None:
    image = Image.fromarray(np.full((10, 20, 3), 255, dtype=np.uint8))
    found = to_tensor(image, 8, MEANS[3], SPREADS[3])
    assert found.shape == (3, 8, 8)
    torch.testing.assert_close(
        found[:, 0, 0], torch.tensor([(1 - m) / s for m, s in zip(MEANS[3], SPREADS[3], strict=True)])
    )


def test_a_change_is_that_of_its_number(folder: Path) -> None:
    image = read_images(folder)[0].open(0)
    change = Augmentation(16)
    found = [np.asarray(change(image, generator_of(0, k))) for k in (1, 2, 1)]
    assert (found[0] == found[2]).all()
    assert (found[0] != found[1]).any()
    assert found[0].shape == (16, 16, 3)


def test_each_operation_changes_an_image_and_keeps_its_size(folder: Path) -> None:
    image = read_images(folder)[0].open(0)
    for operation in PILLOW:
        for strength in (0.5, -0.5):
            changed = operation(image, strength)
            assert changed.size == image.size
            assert (np.asarray(changed) != np.asarray(image)).any()
        assert np.asarray(operation(image.convert("L"), 0.5)).ndim == 2


def test_whole_images_are_kept_where_no_crop_is_asked_for(folder: Path) -> None:
    image = read_images(folder)[0].open(0)
    kept = Augmentation(image.width, smallest=1.0, operations=0, flips=0.0)(image, generator_of(0))
    difference = np.asarray(kept).astype(int) - np.asarray(image).astype(int)
    assert np.abs(difference).mean() < 40  # of random shapes that fit, none but the whole does
    assert kept.size == image.size


def test_torchvision_is_taken_where_it_can_be(folder: Path) -> None:
    if not has_torchvision():
        pytest.skip("torchvision is not here, or not beside this torch")
    image = read_images(folder)[0].open(0)
    change = Augmentation(16, torchvision=True)
    state = torch.get_rng_state()
    found = [np.asarray(change(image, generator_of(0, k))) for k in (1, 2, 1)]
    assert (found[0] == found[2]).all()
    assert (found[0] != found[1]).any()
    assert torch.equal(state, torch.get_rng_state())
