"""The studies of corrections run from a table of people to their page, and their sentences follow the figures."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from factorized_moe import CPMuMoE
from factorized_moe.demo.training import predict
from factorized_moe.interpret import ExpertThreshold, intervene
from studies.bias_correction import run as command
from studies.bias_correction.adult import COLUMNS, People, read
from studies.bias_correction.correcting import Case, Parts, Settings, correct, resampled
from studies.bias_correction.judging import (
    BLIND,
    EXCESS,
    LINEAR,
    MEASURES,
    NONE,
    OURS,
    OVERSAMPLED,
    SHUFFLED,
    first_seeds,
    rows_of,
    rule,
    section,
    verdicts,
    wronged,
)
from studies.bias_correction.page import CASE, MODELS, page
from studies.common import runs

pytestmark = pytest.mark.thorough

HOW = Settings(experts=4, rank=3, width=6, epochs=2, batch_size=64, steps=4, most_accuracy_lost=0.1, draws=50)
MEN = Case("Blond men", "Blond_Hair", 1, 1, True, ("not blond", "blond"))


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


def test_the_page_is_written_from_the_runs(tmp_path: Path) -> None:
    command.run(made_up(0), made_up(1), range(2), HOW, tmp_path)
    found = runs.read(tmp_path / "bias-correction.jsonl")
    assert len(found) == 2 * 2 * 2  # seeds, classifiers, trainings
    text = page(found, HOW, 0.15)
    rows = rows_of(found, CASE, MODELS)
    assert len(rows) == 2 + 1 + 5 + 1  # linear with its blind threshold, oversampled; experts, oversampled
    values = rows[OURS]["accuracy"]
    assert (
        f"| {sum(values) / 2:.3f} [{min(values):.3f}, {max(values):.3f}] |" in text.partition("expert threshold |")[2]
    )
    assert "of 2 seeds.\n" in text
    command.main(["--page", "--out", str(tmp_path)])
    assert (tmp_path / "bias-correction.md").read_text(encoding="utf-8").startswith("# Bias correction\n")


def test_seeds_keep_different_people_and_each_only_once() -> None:
    people = made_up(0)
    training, validation, test = command.split(people, made_up(1), 0)
    assert (len(training), len(validation), len(test)) == (204, 36, 240)
    both = torch.cat([training.features, validation.features])
    torch.testing.assert_close(both.sort(dim=0).values, people.features.sort(dim=0).values)
    again = command.split(people, made_up(1), 1)[1]
    assert not torch.equal(again.features, validation.features)


def test_measures_of_a_run_are_those_of_the_corrected_layer() -> None:
    """The same correction as an intervention inside the layer gives the same predictions."""
    how = replace(HOW, epochs=20, batch_size=32)
    settings = {"attribute": "Blond_Hair", "model": "CP", "training": "as it is", "seed": 3}
    found = correct(settings, PARTS, [MEN], how)["cases"]["Blond men"]
    assert found["group"] == 1
    assert found == correct(settings, PARTS, [MEN, CASE], how)["cases"]["Blond men"]
    training, validation, test = PARTS
    with pytest.MonkeyPatch.context() as patch:
        kept: list[CPMuMoE] = []
        make = CPMuMoE.__init__
        patch.setattr(
            CPMuMoE, "__init__", lambda self, *given, **named: (make(self, *given, **named), kept.append(self))[0]
        )
        correct(settings, PARTS, [MEN], how)
    (model,) = kept
    with torch.no_grad():
        rule = ExpertThreshold.of(model.gate(training.features[(training.groups == 1) & (training.labels == 1)])[0], 1)
        mean = float(rule.affinity(model.gate(validation.features)[0]).mean())
    strength = found["shifts"]["expert threshold"] / mean
    with intervene(model, rule.intervention(strength)):
        granted = predict(model, test.features).argmax(dim=-1) == 1
    blond = test.labels == 1
    women, men = ((granted[blond & (test.groups == group)]).double().mean() for group in (0, 1))
    measures = found["measures"]["expert threshold"]
    assert strength > 0
    assert measures["recognised"] == pytest.approx([float(women), float(men)])
    assert measures["equality_of_opportunity"] == pytest.approx(abs(float(women - men)))
    assert measures["accuracy"] == pytest.approx(float((granted == blond).double().mean()))
    each = [(test.groups == group) & (blond == label) for group in (0, 1) for label in (False, True)]
    cells = [float((granted == blond)[cell].double().mean()) for cell in each]
    assert found["people"] == [int(cell.sum()) for cell in each]
    assert measures["cells"] == pytest.approx(cells)
    assert measures["worst_cell"] == pytest.approx(min(cells))
    assert measures["std_of_cells"] == pytest.approx(float(torch.tensor(cells).std(correction=0)), abs=1e-6)
    assert set(found["over_people"]) == set(found["measures"]) - {"expert threshold"}


def test_shuffled_shifts_are_as_large_and_other_people_s() -> None:
    how = replace(HOW, epochs=20, batch_size=32)
    settings = {"attribute": "Blond_Hair", "model": "CP", "training": "as it is", "seed": 3}
    found = correct(settings, PARTS, [MEN], how)["cases"]["Blond men"]
    assert found["shifts"]["shuffled threshold"] > 0
    assert found["measures"]["shuffled threshold"] != found["measures"]["expert threshold"]


def test_resampled_people_give_the_interval_of_a_share() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(2000) % 2
    labels = torch.ones(2000).long()
    one = ((groups == 0) | (torch.rand(2000, generator=generator) < 0.5)).long()  # a difference near 0.5
    low, high = resampled(labels, groups, one, labels, 2000, 0)  # the other: none
    men = float(one[groups == 1].double().mean())
    error = (men * (1 - men) / 1000) ** 0.5
    assert low == pytest.approx(1 - men - 1.96 * error, abs=0.003)
    assert high == pytest.approx(1 - men + 1.96 * error, abs=0.003)
    assert resampled(labels, groups, one, one, 100, 0) == (0.0, 0.0)  # both judge the same people


Rows = dict[tuple[str, str, str], dict[str, list[Any]]]
BETTER = {
    LINEAR: [0.3, 0.3, 0.3],
    NONE: [0.2, 0.21, 0.2],
    BLIND: [0.15, 0.16, 0.16],
    SHUFFLED: [0.15, 0.15, 0.16],
    OURS: [0.1, 0.11, 0.12],
    EXCESS: [0.1, 0.11, 0.1],
    OVERSAMPLED: [0.05, 0.05, 0.05],
}


def made(opportunity: dict[tuple[str, str, str], list[float]] = BETTER, shift: float = 1.0) -> Rows:
    found: Rows = {
        row: {measure: [0.8, 0.8, 0.8] for measure in MEASURES}
        | {
            "equality_of_opportunity": values,
            "shift": [shift] * 3,
            "people": [[10, 20, 30, 4000]] * 3,
            "group": [0] * 3,
        }
        | {"cells": [[0.9, 0.5, 0.8, 0.7]] * 3, "recognised": [[0.5, 0.7]] * 3}
        for row, values in opportunity.items()
    }
    for other in (NONE, BLIND, SHUFFLED, EXCESS):
        found[OURS][f"over people, {other[2]}"] = [[-0.1, -0.02], [-0.1, -0.04], [-0.1, 0.0]]
    return found


def test_a_smaller_difference_that_makes_nothing_worse_is_reproduced() -> None:
    found = made()
    found[OURS]["worst_cell"] = [0.9, 0.91, 0.92]
    found[OVERSAMPLED]["accuracy"] = [0.75, 0.75, 0.75]
    first, blind, none, control, excess, oversampled, case = verdicts({"Old women": found})
    assert first == "**Thresholds by experts correct better than blind ones: reproduced.**"
    assert (
        blind
        == "Of 6 measures, beside the blind threshold, the expert threshold's: old women 2 better, 0 worse, 4 unclear."
    )
    assert "beside no correction, the expert threshold's: old women 2 better, 0 worse, 4 unclear." in none
    assert "shuffled among people, its difference of opportunity: old women -0.043 ± 0.003 (better)." in control
    assert excess.endswith("old women -0.007 ± 0.007 (unclear).")
    assert oversampled.startswith("Oversampling the same layer costs 5.0 points of accuracy. Beside the expert")
    assert oversampled.endswith("old women -0.060 ± 0.006 (better).")
    assert "*Old women*: **reproduced.** Difference of opportunity 0.203 without a correction (0.300 of the" in case
    assert (
        "expert less blind -0.047 ± 0.003 over seeds, [-0.100, -0.020] over people. Worse than blind: nothing." in case
    )
    assert "Points of accuracy lost, mean and worst seed: expert 0.00 and 0.00, blind 0.00 and 0.00." in case


def test_a_measure_that_is_worse_than_blind_makes_it_reproduced_in_part() -> None:
    found = made()
    found[OURS]["accuracy"] = [0.79, 0.79, 0.785]
    first, blind, *_, case = verdicts({"Old women": found, "Young": made()})[:-1]
    assert "reproduced in 1 of 2 cases (young); reproduced in part in 1 of 2 cases (old women).**" in first
    assert "old women 1 better, 1 worse, 4 unclear; young 1 better" in blind
    assert "**reproduced in part.**" in case
    assert "Worse than blind: the accuracy (-0.012 ± 0.002)." in case
    assert "expert 1.17 and 1.50, blind" in case


def test_what_seeds_or_people_leave_open_is_not_reproduced() -> None:
    two_errors = made(BETTER | {OURS: [0.02, 0.12, 0.13]})  # beyond two standard errors, within Student's t of three
    assert "**not reproduced.**" in verdicts({"Young": two_errors})[-1]
    people = made()
    people[OURS]["over people, blind threshold"] = [[-0.1, 0.01]] * 3
    assert "**not reproduced.**" in verdicts({"Young": people})[-1]
    against = made(BETTER | {OURS: [0.1, 0.17, 0.11]})
    against[OURS]["shift"] = [1.0, 0.0, 1.0]
    case = verdicts({"Young": against})[-1]
    assert "Not smaller than blind in seed 1 (0.170 against 0.160; no expert threshold was chosen)." in case
    against[OURS] |= {"shift": [1.0, 1.0, 1.0], "group": [0, 1, 0]}
    assert "in seed 1 (0.170 against 0.160; found wronged: men, not women)." in verdicts({"Young": against})[-1]


def test_no_correction_chosen_is_not_compared() -> None:
    unmoved = made({row: [0.2, 0.21, 0.2] for row in BETTER}, shift=0.0)
    first, blind, *_, case = verdicts({"Blond men": unmoved, "Young": made()})[:-1]
    assert (
        "reproduced in 1 of 2 cases (young); no correction chosen and nothing compared in 1 of 2 cases (blond" in first
    )
    assert "blond men" not in blind
    assert "*Blond men*: **no correction chosen and nothing compared.** In 3 of 3 seeds no size" in case
    assert "| the same | the same | the same |" in section(MEN, unmoved)
    alone = verdicts({"Blond men": unmoved})
    assert len(alone) == 4  # no count of measures and no control
    half = copy.deepcopy(unmoved)
    half[BLIND]["shift"] = [0.0, 0.5, 0.0]
    assert "**not reproduced.**" in verdicts({"Blond men": half})[-1]


def test_tables_name_the_worst_cell_and_the_people() -> None:
    text = section(MEN, made())
    assert "Tested: 10 women not blond, 20 women blond, 30 men not blond, 4,000 men blond." in text
    assert "| 0.800 [0.800, 0.800] women blond | 0.500 [0.500, 0.500] | 0.700 [0.700, 0.700] |" in text
    line = next(line for line in text.splitlines() if line.startswith("| difference of opportunity |"))
    assert line.split(" | ")[1:3] == ["-0.093 ± 0.007 (better)", "-0.047 ± 0.003 (better)"]
    assert "-0.060 ± 0.006 (better) |" in line


def test_the_rule_says_how_many_errors_count() -> None:
    assert "4.30 standard errors (Student's t for 3 seeds, 95%)" in rule(3)


def test_first_seeds_alone() -> None:
    rows = made(BETTER | {OURS: [0.1, 0.11, 0.3]})
    assert first_seeds(rows, 2).endswith(
        "2 seeds; more were run when those had been looked at. They alone: expert less blind -0.050 ± 0.000 (better)."
    )


def test_who_is_wronged_is_counted_of_the_layer_of_experts() -> None:
    def one(model: str, training: str, group: int) -> dict[str, Any]:
        return {
            "settings": {"attribute": "income", "model": model, "training": training},
            "result": {"cases": {CASE.name: {"group": group}}},
        }

    found = [one("CP", "as it is", 0), one("CP", "as it is", 0), one("CP", "as it is", 1), one("linear", "as it is", 1)]
    assert wronged([*found, one("CP", "oversampled", 1)], CASE) == "women in 2 and men in 1 of 3 seeds"


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


def test_the_page_is_that_of_the_runs() -> None:
    docs = command.ROOT / "docs" / "studies"
    text = page(runs.read(docs / "bias-correction.jsonl"), command.SETTINGS, command.KEPT)
    assert (docs / "bias-correction.md").read_text(encoding="utf-8") == text
