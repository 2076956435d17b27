"""The study of faces runs from made-up people to its page, and its sentences follow the figures."""

import csv
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from factorized_moe import CPMuMoE
from factorized_moe.demo.training import predict
from factorized_moe.interpret import ExpertThreshold, intervene
from studies.bias_correction.adult import People
from studies.bias_correction_celeba import run as command
from studies.bias_correction_celeba.cases import CASES, Settings, correct
from studies.bias_correction_celeba.faces import Parts, read
from studies.bias_correction_celeba.page import BLIND, EXCESS, LINEAR, MEASURES, NONE, OURS, OVERSAMPLED, page, verdicts
from studies.common import runs

pytestmark = pytest.mark.thorough

HOW = Settings(experts=4, rank=3, width=6, epochs=2, batch_size=64, steps=4, most_accuracy_lost=0.1)


def made_up(seed: int, count: int = 240) -> People:
    """People of two sexes; the label shows less in the features of sex 1."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(count) % 2
    labels = (torch.rand(count, generator=generator) < 0.4).long()
    features = torch.randn(count, 5, generator=generator)
    features[:, 0] += 2 * labels * torch.where(groups == 0, 2.0, 0.5)
    features[:, 1] = groups.float()
    return People(features, labels, groups)


PARTS: Parts = (made_up(0), made_up(1), made_up(2))


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
    row = f"| CP | as it is | expert threshold | {sum(mine) / 2:.3f} [{min(mine):.3f}, {max(mine):.3f}] |"
    assert row in text.partition("## Blond men")[2]
    assert all(f"## {case.name}" in text for case in CASES)
    assert len(text.partition("## Old women")[2].partition("\n\n## ")[0].splitlines()) == 2 + 2 + 11


def test_measures_of_a_run_are_those_of_the_corrected_layer() -> None:
    """The same correction as an intervention inside the layer gives the same predictions."""
    how = replace(HOW, epochs=20, batch_size=32)
    settings = {"attribute": "Blond_Hair", "model": "CP", "training": "as it is", "seed": 3}
    found = correct(settings, PARTS, how)["cases"]["Blond men"]
    assert found["group"] == 1
    assert found == correct(settings, PARTS, how)["cases"]["Blond men"]
    training, validation, test = PARTS
    with pytest.MonkeyPatch.context() as patch:
        kept: list[CPMuMoE] = []
        make = CPMuMoE.__init__
        patch.setattr(
            CPMuMoE, "__init__", lambda self, *given, **named: (make(self, *given, **named), kept.append(self))[0]
        )
        correct(settings, PARTS, how)
    (model,) = kept
    with torch.no_grad():
        rule = ExpertThreshold.of(model.gate(training.features[(training.groups == 1) & (training.labels == 1)])[0], 1)
        mean = float(rule.affinity(model.gate(validation.features)[0]).mean())
    strength = found["shifts"]["expert threshold"] / mean
    with intervene(model, rule.intervention(strength)):
        granted = predict(model, test.features).argmax(dim=-1) == 1
    blond = test.labels == 1
    men = blond & (test.groups == 1)
    measures = found["measures"]["expert threshold"]
    assert strength > 0
    assert measures["equality_of_opportunity"] > 0
    assert measures["recognised"] == pytest.approx(float(granted[men].double().mean()))
    assert measures["accuracy"] == pytest.approx(float((granted == blond).double().mean()))
    cells = [
        float((granted == blond)[(test.groups == group) & (blond == label)].double().mean())
        for group in (0, 1)
        for label in (False, True)
    ]
    assert measures["worst_cell"] == pytest.approx(min(cells))
    assert measures["std_of_cells"] == pytest.approx(float(torch.tensor(cells).std(correction=0)), abs=1e-6)


def rows(opportunity: dict[tuple[str, str, str], list[float]], shift: float = 1.0) -> dict:
    return {
        row: {measure: [0.8, 0.8, 0.8] for measure in MEASURES}
        | {"equality_of_opportunity": values, "shift": [shift] * 3}
        for row, values in opportunity.items()
    }


BETTER = {
    LINEAR: [0.3, 0.3, 0.3],
    NONE: [0.2, 0.21, 0.2],
    BLIND: [0.15, 0.16, 0.16],
    OURS: [0.1, 0.11, 0.12],
    EXCESS: [0.1, 0.11, 0.1],
    OVERSAMPLED: [0.05, 0.05, 0.05],
}


def test_a_smaller_difference_in_every_seed_is_reproduced() -> None:
    found = rows(BETTER)
    found[OURS]["worst_cell"] = [0.7, 0.71, 0.72]
    found[OVERSAMPLED]["accuracy"] = [0.75, 0.75, 0.75]
    first, second, excess, third, case = verdicts({"Old women": found})
    assert "reproduced in 1 of 1 cases** (old women); not reproduced in 0." in first
    assert "raises the worst cell's in 0 of 1 cases." in second
    assert "than the expert threshold in 0 of 1 cases." in excess  # one seed in three: a tie
    assert "costs 5.0 to 5.0 points of accuracy" in third
    assert "smaller difference of opportunity than the expert threshold in 1 (old women)" in third
    assert "*Old women*: **reproduced.** The difference of opportunity is 0.203 without a correction" in case
    assert "It makes better: the difference of opportunity (0.203 to 0.110). It makes worse: the worst cell" in case
    assert "(0.800 to 0.710)" in case


def test_no_correction_chosen_and_ties_are_not_reproduced() -> None:
    unmoved = rows({row: [0.2, 0.21, 0.2] for row in BETTER}, shift=0.0)
    tied = rows(BETTER | {OURS: [0.1, 0.21, 0.14]})
    first, *_, one, other = verdicts({"Blond men": unmoved, "Old women": tied})
    assert "reproduced in 0 of 2 cases**; not reproduced in 2 (blond men, old women)." in first
    assert "**not reproduced.**" in one
    assert "In 3 of 3 seeds validation chose no expert threshold: nothing moves." in one
    assert "It makes better: nothing. It makes worse: nothing." in one
    assert "**not reproduced.**" in other


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
