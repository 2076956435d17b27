"""Images and the measurements on them. No image file is needed, no time is asserted."""

import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import counterfactuals
from benchmarks.measuring import Effort
from studies.common import images

pytestmark = pytest.mark.thorough

ONCE = Effort(seconds=0.0, fewest=2, turn=0.0, compiled=False)
SIZES = images.Sizes(features=8, rank=4, epochs=1, batch_size=16)


@pytest.fixture(scope="module")
def small() -> images.Images:
    """Three classes of images of 16 pixels, each brighter in one part."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    pixels = torch.randn(90, 16, generator=generator)
    pixels[torch.arange(90), labels] += 4
    return images.Images(pixels[:60], labels[:60], pixels[60:], labels[60:], 3)


def test_counterfactuals_are_measured_beside_an_evaluation(small: images.Images) -> None:
    sizes = counterfactuals.Sizes(classifier=SIZES, experts=6)
    found = list(counterfactuals.rows(ONCE, sizes, small))
    assert [row.contender for row in found] == [
        "plain evaluation",
        "all 6 counterfactuals",
        "2 of them by an evaluation each",
    ]
    assert {row.case for row in found} == {"6 experts, 30 images"}
    assert all(row.forward is not None and row.parameters for row in found)


def test_missing_images_are_said_in_the_table(tmp_path: Path) -> None:
    sizes = replace(counterfactuals.SIZES, folder=tmp_path / "nothing")
    (row,) = counterfactuals.rows(ONCE, sizes)
    assert row.absent is not None
    assert "no such folder; install Debian's dataset-fashion-mnist" in row.absent


def write_idx(path: Path, values: torch.Tensor) -> None:
    header = struct.pack(f">I{values.ndim}I", 0x0800 + values.ndim, *values.shape)
    path.write_bytes(header + values.to(torch.uint8).numpy().tobytes())


def test_images_are_standardised_by_the_training_images(tmp_path: Path) -> None:
    pixels = torch.arange(72).reshape(6, 3, 4)
    write_idx(tmp_path / "train-images-idx3-ubyte", pixels)
    write_idx(tmp_path / "train-labels-idx1-ubyte", torch.arange(6))
    with pytest.raises(ValueError, match="no test images"):
        images.load(tmp_path)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", pixels[:2] + 1)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", torch.arange(2))
    found = images.load(tmp_path)
    assert (found.train.shape, found.test.shape, found.num_classes) == ((6, 12), (2, 12), 6)
    torch.testing.assert_close(found.train.mean(), torch.tensor(0.0))
    torch.testing.assert_close(found.train.std(), torch.tensor(1.0))
    assert (found.test > found.train[:2]).all()
