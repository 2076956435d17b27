"""The measurements on images: their pages say what was measured. No image file is needed, no time is asserted."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import counterfactuals
from benchmarks.measuring import Effort
from studies.common import images
from studies.polysemanticity import run as polysemanticity
from studies.polysemanticity.run import Run

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


FACTS = {"command": "the command", "images": "Some images.", "rank": "4", "epochs": "1", "machine": "a machine"}


def test_polysemanticity_page_has_every_head(small: images.Images, tmp_path: Path) -> None:
    found = list(polysemanticity.runs(small, SIZES, experts=(2, 4), seeds=(0, 1)))
    assert [(run.activation, run.experts, run.seed) for run in found[:3]] == [
        ("entmax15", 2, 0),
        ("softmax", 2, 0),
        ("entmax15", 4, 0),
    ]
    again = list(polysemanticity.runs(small, SIZES, experts=(2, 4), seeds=(0,)))
    assert again == found[:4]
    polysemanticity.write(found, FACTS, tmp_path)
    stored = json.loads((tmp_path / "polysemanticity.json").read_text(encoding="utf-8"))
    assert [Run(**run) for run in stored["runs"]] == found
    page = (tmp_path / "polysemanticity.md").read_text(encoding="utf-8")
    assert page.count("\n| entmax15 |") == page.count("\n| softmax |") == 2
    picture = tmp_path / "polysemanticity.svg"
    drawn = picture.read_bytes()
    polysemanticity.draw(found, picture)
    assert picture.read_bytes() == drawn


def run(activation: str, experts: int, seed: int, score: float, concentration: float | None) -> Run:
    return Run(activation, experts, seed, 0.9, 5, score, 0.1, 3, concentration, 2.0)


def test_findings_follow_the_figures(tmp_path: Path) -> None:
    falling = [run("entmax15", n, seed, 1 / n, 0.5 + n / 100) for n in (2, 8) for seed in (0, 1)]
    rising = [run("softmax", n, seed, n + seed, None) for n in (2, 8) for seed in (0, 1)]
    told = "\n".join(polysemanticity.findings([*falling, *rising]))
    assert "(entmax15): reproduced, it falls in every seed. From 2 to 8 experts it goes from 0.500 to 0.125." in told
    assert (
        "(softmax): not reproduced, it falls in 0 of 2 seeds. From 2 to 8 experts it goes from 2.500 to 8.500." in told
    )
    assert "The concentration, which is free of this, grows (entmax15): 0.520 at 2 experts and 0.580 at 8." in told
    assert "more concentrated than softmax's*: in no case." in told  # softmax's is not known
    assert "less polysemantic than softmax's*: in 2 of 2 seeds at 2 experts, 2 of 2 seeds at 8 experts." in told
    polysemanticity.draw([*falling, *rising], tmp_path / "without.svg")  # a line without points
    assert b"<svg" in (tmp_path / "without.svg").read_bytes()
