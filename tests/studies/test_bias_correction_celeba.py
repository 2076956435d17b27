"""The study of faces runs from made-up people to its page."""

import csv
import json
import zipfile
from pathlib import Path

import pytest
import torch

from studies.bias_correction_celeba import run as command
from studies.bias_correction_celeba.cases import CASES
from studies.bias_correction_celeba.faces import read
from studies.bias_correction_celeba.page import page
from studies.common import runs
from tests.studies.test_bias_correction import HOW, PARTS

pytestmark = pytest.mark.thorough


def test_the_page_is_written_from_the_runs_and_a_stopped_command_goes_on(tmp_path: Path) -> None:
    command.run(lambda attribute: PARTS, range(2), HOW, tmp_path)
    file = tmp_path / "bias-correction-celeba.jsonl"
    found = runs.read(file)
    assert len(found) == 2 * 2 * 3 * 2  # attributes, seeds, classifiers, trainings
    before = file.read_text()
    file.write_text("".join(line + "\n" for line in before.splitlines()[:-3]))
    command.run(lambda attribute: PARTS, range(2), HOW, tmp_path)
    again = runs.read(file)
    assert [each["result"]["cases"] for each in again] == [each["result"]["cases"] for each in found]

    command.main(["--page", "--out", str(tmp_path)])
    text = (tmp_path / "bias-correction-celeba.md").read_text()
    assert text == page(found[:-3] + again[-3:])
    mine = [
        entry["result"]["cases"]["Blond men"]["measures"]["expert threshold"]["accuracy"]
        for entry in again
        if entry["settings"] | {"seed": 0}
        == {"attribute": "Blond_Hair", "model": "CP", "training": "as it is", "seed": 0}
    ]
    assert len(mine) == 2
    (row,) = [line for line in text.partition("## Blond men")[2].splitlines() if "| expert threshold |" in line]
    assert f"| {sum(mine) / 2:.3f} [{min(mine):.3f}, {max(mine):.3f}] |" in row
    assert all(f"## {case.name}" in text for case in CASES)
    lines = text.partition("## Old women")[2].partition("\n## ")[0].splitlines()
    assert sum(line.startswith("|") for line in lines) == 2 + 6 + 2 + 12


def test_the_table_is_read_by_its_official_parts(tmp_path: Path) -> None:
    heads = ["filename", "Blond_Hair", "Male", "Smiling", "Young"]
    lines = [
        ["000001.jpg", 1, -1, 1, -1],
        ["162770.jpg", -1, 1, -1, 1],
        ["162771.jpg", 1, 1, 1, 1],
        ["182637.jpg", -1, -1, 1, 1],
        ["182638.jpg", -1, -1, -1, -1],
    ]
    with (tmp_path / "celeba.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([heads, *lines])
    with zipfile.ZipFile(tmp_path / "celeba.csv.zip", "w") as archive:
        archive.write(tmp_path / "celeba.csv", "celeba.csv")
    training, validation, test = read(tmp_path / "celeba.csv.zip", "Young")
    assert (len(training), len(validation), len(test)) == (2, 2, 1)
    assert (training.labels.tolist(), training.groups.tolist()) == ([0, 1], [0, 1])
    torch.testing.assert_close(training.features, torch.tensor([[0.5, 0.5], [-0.5, -0.5]]).mul(2**0.5))
    assert test.features.shape == (1, 2)  # neither Male nor what is predicted


def test_the_runs_kept_are_no_rows_of_people() -> None:
    file = command.ROOT / "docs" / "studies" / "bias-correction-celeba.jsonl"
    for line in file.read_text().splitlines():
        assert set(json.loads(line)["result"]) == {"cases", "cpu_seconds"}


def test_the_page_is_that_of_the_runs() -> None:
    docs = command.ROOT / "docs" / "studies"
    text = page(runs.read(docs / "bias-correction-celeba.jsonl"))
    assert (docs / "bias-correction-celeba.md").read_text(encoding="utf-8") == text
