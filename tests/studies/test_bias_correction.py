"""The example runs from a table of people to its page, on a made-up table and without a download."""

import json
from pathlib import Path

import pytest
import torch

from factorized_moe.interpret import GroupMeasures
from studies.bias_correction.adult import COLUMNS, People, read
from studies.bias_correction.pipeline import Settings, correct_for_seed
from studies.bias_correction.report import page
from studies.bias_correction.run import run

pytestmark = pytest.mark.thorough

SETTINGS = Settings(experts=4, rank=3, epochs=2, steps=4, most_accuracy_lost=0.1)


def made_up(seed: int, count: int = 240) -> People:
    """People of two groups; what earns one a label shows less in the features of group 1."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(count) % 2
    labels = (torch.rand(count, generator=generator) < 0.4).long()
    features = torch.randn(count, 5, generator=generator)
    features[:, 0] += 2 * labels * torch.where(groups == 0, 2.0, 0.5)
    features[:, 1] = groups.float()
    return People(features, labels, groups)


def test_the_page_is_written_from_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(made_up(0), made_up(1), ("round", "square"), "made up", (0, 1), SETTINGS, tmp_path)
    stored = json.loads((tmp_path / "bias-correction.json").read_text(encoding="utf-8"))
    text = (tmp_path / "bias-correction.md").read_text(encoding="utf-8")
    names = ["linear", "linear, blind threshold", "experts", "experts, blind threshold", "experts, expert threshold"]
    assert [list(seed["measures"]) for seed in stored["seeds"]] == [names, names]
    for name in names:
        values = [seed["measures"][name]["accuracy"] for seed in stored["seeds"]]
        assert f"| {name} | {sum(values) / 2:.3f} [{min(values):.3f}, {max(values):.3f}] |" in text
    assert "*round* (120 in the test) and *square* (120 in the test)" in text
    assert "seed 1  experts, expert threshold: accuracy" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_figures() -> None:
    first, second = (correct_for_seed(made_up(0), made_up(1), 3, SETTINGS) for _ in range(2))
    assert first == second


def of(accuracy: float, difference: float) -> GroupMeasures:
    return GroupMeasures(accuracy, difference, 0.1, 0.7, {}, {})


def test_the_sentences_follow_the_figures() -> None:
    facts = dict.fromkeys(
        ["command", "data", "groups", "experts", "rank", "steps", "most_accuracy_lost", "versions"], "x"
    )
    seeds = [
        {
            "linear": of(0.8, 0.2),
            "experts": of(0.82, 0.15),
            "experts, blind threshold": of(0.81, ours + 0.01),
            "experts, expert threshold": of(0.815, ours),
        }
        for ours in (0.05, 0.16)
    ]
    text = page(seeds, facts)
    assert "lowers the difference of opportunity from 0.150 to 0.105 on average; it lowers it in 1 of 2 seeds." in text
    assert "leaves the worst group's accuracy from 0.700 to 0.700 on average" in text
    assert (
        "smaller difference of opportunity in 2 of 2 seeds: 0.105 against 0.115 on average, for 0.50 against 1.00"
        in text
    )


def test_the_census_files_are_read(tmp_path: Path) -> None:
    row = "39, State-gov, 7, Bachelors, 13, Never-married, Sales, Not-in-family, White, {}, {}, 0, 40, Cuba, {}"
    (tmp_path / "adult.data").write_text(
        "\n".join(row.format(*values) for values in (("Male", 100, ">50K"), ("Female", 0, "<=50K"))) + "\n"
    )
    (tmp_path / "adult.test").write_text("|1x3 Cross validator\n" + row.format("Female", 50, ">50K.") + "\n")
    people, test, names = read(tmp_path)
    assert names == ("Female", "Male")
    assert (people.labels.tolist(), people.groups.tolist()) == ([1, 0], [1, 0])
    assert (test.labels.tolist(), test.groups.tolist(), len(test)) == ([1], [0], 1)
    assert len(COLUMNS) == 15
    assert people.features.shape[1] == test.features.shape[1]
