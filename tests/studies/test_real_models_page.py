"""The page of the study of real models, from runs that are made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from studies.common.command import DOCS
from studies.real_models import curves, plan, report, run, verdicts
from studies.real_models.forms import Form

pytestmark = pytest.mark.thorough


def entry(
    kind: str,
    steps: int,
    harm: float,
    *,
    seed: int = 0,
    start: str = "whitened",
    place: str = plan.MIDDLE,
    fraction: float = 0.5,
    loss: str = "layers",
    rate: float = 3e-3,
) -> Any:
    form = Form(kind, 16 if kind in ("cp", "tr", "tucker") else 0, fraction, start)
    result = {
        "share": fraction,
        "ranks": [[3, 3]],
        "tokens": steps * (256 if loss == "layers" else 500),
        "validation": [harm],
        "measured": {"distance": harm, "nearest": 1.0},
        "machine": {"cores": "2"},
    }
    settings = plan._run(place, form, seed, steps, rate if steps else 0.0, loss)
    return {"settings": settings, "result": result, "seconds": 60.0}


def fixed(place: str = plan.MIDDLE) -> list[Any]:
    return [
        entry(kind, 0, harm, place=place, fraction=0.0)
        for kind, harm in (("original", 0.0), ("mean", 2.0), ("zeros", 1.0))
    ]


FIXED = fixed()


def curve(*harms: float, kind: str = "cp", **rest: Any) -> list[Any]:
    return [entry(kind, steps, harm, **rest) for steps, harm in zip(plan.LENGTHS, harms, strict=False)]


def seeds(*harms: Sequence[float], **rest: Any) -> list[Any]:
    """A curve for each seed."""
    return [one for seed, each in enumerate(harms) for one in curve(*each, seed=seed, **rest)]


def page_of(entries: Sequence[Any]) -> str:
    return report.page(entries, "python -m studies real_models")


def found(entries: Sequence[Any], word: str) -> str:
    """The one verdict that begins with a word."""
    (sentence,) = [s for s in verdicts.verdicts(entries, curves.curves(entries)) if s.startswith(f"**{word}")]
    return sentence


def test_made_good_is_of_the_ablation_that_costs_less() -> None:
    (one,) = curves.curves([*FIXED, entry("cp", 32, 0.25)])
    assert one.points[0].made_good == {0: 0.75}
    assert curves.references(FIXED)[plan.MIDDLE].ablation == "zeros"
    assert curves.references(FIXED[:2]) == {}


@pytest.mark.parametrize(
    ("harms", "fair", "change", "gain"),
    [
        ((0.05, 0.04, 0.04), 0, "slow", 0.0),
        ((0.5, 0.2, 0.09), 32768, "rises", 0.11),
        ((0.5, 0.09, 0.2), None, "falls", -0.11),  # fair once is not fair from there on
        ((0.5, 0.101), None, "unknown", None),
        ((0.5, 0.30, 0.26), None, "rises", 0.04),
        ((0.5, 0.30, 0.28), None, "slow", 0.02),
    ],
)
def test_what_a_curve_is_called(harms: tuple[float, ...], fair: int | None, change: str, gain: float | None) -> None:
    (one,) = curves.curves([*FIXED, *curve(*harms)])
    assert (one.fair_from, one.change, one.gain) == (fair, change, pytest.approx(gain))


def test_a_gain_is_of_the_seeds_that_have_both_lengths() -> None:
    (one,) = curves.curves([*FIXED, *curve(0.5, 0.3, 0.2), *curve(0.5, 0.9, seed=1)])
    assert one.gain == pytest.approx(0.1)


def test_a_form_is_fair_only_in_every_seed() -> None:
    (one,) = curves.curves([*FIXED, *curve(0.5, 0.05), *curve(0.5, 0.2, seed=1)])
    assert one.fair_from is None
    assert one.points[1].mean == pytest.approx(0.875)


def test_runs_that_rates_are_chosen_by_are_in_no_figure() -> None:
    tried = [entry("cp", 128, 0.2, seed=plan.RATE_SEED), entry("cp", 128, 0.3)]
    (one,) = curves.curves([*FIXED, *tried])
    assert one.points[0].made_good == {0: 0.7}


# -- verdicts


def test_what_is_missing_is_said_first_and_by_place() -> None:
    runs = [*FIXED, *curve(0.5, 0.4)]
    first = verdicts.verdicts(runs, curves.curves(runs))[0]
    of = {place: count for place, (_, count) in plan.missing([]).items()}
    middle, total = of[plan.MIDDLE], sum(of.values())
    assert first.startswith(f"**Not all was run**: {total - 5} of {total} planned runs are missing (")
    assert f"encoder {middle - 5} of {middle}; encoder's last three layers {of[plan.LAST]} of {of[plan.LAST]};" in first


def test_nothing_is_missing_of_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "missing", lambda entries: {plan.MIDDLE: (0, 7), plan.LAST: (2, 3)})
    assert "2 of 10 planned runs are missing (encoder's last three layers 2 of 3)." in found(FIXED, "Not all was run")
    monkeypatch.setattr(verdicts, "missing", lambda entries: {plan.MIDDLE: (0, 7)})
    assert found(FIXED, "All 7 planned").startswith("**All 7 planned runs were made.**")


def test_no_form_with_experts_is_fair_but_a_control_is() -> None:
    runs = [*FIXED, *curve(0.5, 0.3, 0.2), *curve(0.3, 0.2, 0.05, kind="narrow"), *curve(0.4, 0.3, 0.2, kind="dense")]
    said = found([*runs, entry("cp", 128, 0.15, loss="model")], "None of 2")
    assert "were fair" not in said
    assert "was fair at 50% of the MLPs' parameters**, before training or after up to 64,000 tokens" in said
    assert "Of 2 controls 1 was: encoder: narrower MLP (control) from 32,768 tokens on (95.0%;" in said
    assert "CP, trained through the whole model 85.0%, narrower MLP (control) 95.0%." in said


def test_a_form_with_experts_that_is_fair_is_named() -> None:
    runs = [*FIXED, *seeds((0.5, 0.08, 0.05), (0.5, 0.06, 0.05), (0.5, 0.07)), *curve(0.5, 0.4, kind="tr")]
    runs += [*curve(0.5, 0.4, kind="narrow"), *curve(0.01, fraction=1.0)]
    said = found(runs, "1 of 2 forms with experts was fair")
    assert ": encoder: CP from 8,192 tokens on (93.0%; fewest seeds of a length: 2). Of 1 controls none was." in said
    both = [*runs, *fixed(plan.LAST), *curve(0.05, 0.05, place=plan.LAST)]
    assert "from 8,192 tokens" in found(both, "2 of 3 forms with experts were fair")


def test_fair_before_training_by_share_counts_what_is_fitted() -> None:
    runs = [*FIXED, *curve(0.2), *curve(0.05, kind="narrow"), *curve(0.01, kind="dense")]
    assert not [s for s in verdicts.verdicts(runs, curves.curves(runs)) if s.startswith("**Fair before")]
    said = found([*runs, *curve(0.05, fraction=0.75), *curve(0.3, fraction=0.25)], "Fair before any training")
    assert said.endswith("75%: CP (1 of 1); 50%: narrower MLP (control) (1 of 2); 25%: none (0 of 1).")


def test_what_is_open_is_rising_slow_or_unknown() -> None:
    runs = [*FIXED, *curve(0.6, 0.3, 0.15), *curve(0.2, 0.18, 0.17, 0.16, kind="narrow"), *curve(0.5, 0.3, kind="tr")]
    runs += [*curve(0.5, 0.2, 0.05, kind="tucker"), *curve(0.01, 0.01, 0.01, kind="low-rank")]
    said = found(runs, "Open")
    assert said.startswith("**Open**, of the 3 that are not fair: 1 still *rise*")
    assert "encoder: CP 85.0% (+15.0)." in said
    assert "1 are *slow*: the last fourfold of tokens added +1.0 to +1.0 points. That does not exclude 90%" in said
    assert "on more text; the nearest, encoder: narrower MLP (control), lacks 6.0 points. Too few lengths were" in said
    assert said.endswith("run of encoder: tensor ring 70.0%.")
    fair = [*FIXED, *curve(0.01, 0.01)]
    assert not [s for s in verdicts.verdicts(fair, curves.curves(fair)) if s.startswith("**Open")]


@pytest.mark.parametrize(
    ("harms", "other", "said"),
    [
        ([(0.5, 0.30)], [(0.5, 0.20)], "cannot tell, -10.00 (n=1, 8,192 tokens; +0.00 at 0)."),
        (
            [(0.5, 0.30), (0.5, 0.31)],
            [(0.4, 0.20), (0.4, 0.20)],
            "behind, -10.50 ± 0.50 (n=2, 8,192 tokens; -10.00 at 0).",
        ),
        (
            [(0.5, 0.20), (0.5, 0.20)],
            [(0.5, 0.30), (0.5, 0.31)],
            "ahead, +10.50 ± 0.50 (n=2, 8,192 tokens; +0.00 at 0).",
        ),
        (
            [(0.5, 0.20), (0.5, 0.30)],
            [(0.5, 0.25), (0.5, 0.28)],
            "cannot tell, +1.50 ± 3.50 (n=2, 8,192 tokens; +0.00 at 0).",
        ),
        (  # judged where two seeds are, however long the longest is
            [(0.5, 0.30, 0.1), (0.5, 0.31)],
            [(0.5, 0.20, 0.2), (0.5, 0.20)],
            "behind, -10.50 ± 0.50 (n=2, 8,192 tokens; +0.00 at 0, +10.00 at 32,768).",
        ),
    ],
)
def test_experts_against_a_control_are_judged_by_pairs(harms: Any, other: Any, said: str) -> None:
    sentence = found([*FIXED, *seeds(*harms), *seeds(*other, kind="low-rank")], "CP minus low rank (control)")
    word = said.partition(",")[0]
    assert f"**CP minus low rank (control): {word} in 1 of 1 places.** Points: encoder: {said}" in sentence
    assert sentence.endswith("only the change from there can be the experts' doing.")


def test_a_comparison_that_was_not_run_is_not_one_that_was_not_planned() -> None:
    runs = [*FIXED, *curve(0.5, 0.4), *curve(0.5, 0.4, kind="narrow")]
    for place in (plan.LAST, plan.LANGUAGE):
        runs += [*fixed(place), *curve(0.5, 0.4, place=place)]
    said = found(runs, "CP minus narrower MLP")
    assert said.startswith("**CP minus narrower MLP (control): cannot tell in 1 of 1 places.**")
    assert "; encoder's last three layers: not planned; language model: not run yet." in said


def test_a_start_that_still_rises_is_said_to_be_open() -> None:
    runs = [*FIXED, *curve(0.2, 0.19, 0.18), *curve(0.9, 0.5, 0.3, start="weights")]
    assert found(runs, "CP minus CP from").endswith(
        " CP from the weights alone still rises (encoder): its end is open."
    )
    slow = [*FIXED, *curve(0.2, 0.19, 0.18), *curve(0.9, 0.3, 0.29, start="weights")]
    assert "open" not in found(slow, "CP minus CP from")


def test_no_change_has_a_plus() -> None:
    assert [verdicts.points(share) for share in (-0.0004, 0.0, -0.0006)] == ["+0.0", "+0.0", "-0.1"]


def test_training_through_the_whole_model_is_told_with_its_tokens() -> None:
    runs = [*FIXED, *curve(0.5, 0.3, 0.2, 0.1), entry("cp", 128, 0.15, loss="model")]
    said = found(runs, "CP, trained through the whole model, minus layer by layer: cannot tell.")
    assert "encoder: +5.00 (n=1, 128 steps of both). It made good 85.0% on 64,000 tokens, layer by" in said
    assert said.endswith("layer 80.0% on 32,768 tokens, 90.0% on 131,072 tokens. No control was trained so.")
    again = [*runs, entry("low-rank", 128, 0.15, loss="model")]
    assert "No control" not in found(again, "CP, trained through the whole model")


# -- the page


def test_page_has_every_figure(tmp_path: Path) -> None:
    runs = [*FIXED, *seeds((0.5, 0.25, 0.1), (0.5, 0.2, 0.1)), *curve(0.3, 0.3, 0.3, kind="narrow")]
    runs.append(entry("cp", 128, 0.15, loss="model"))
    report.write(runs, tmp_path, "python -m studies real_models")
    page = (tmp_path / "real-models.md").read_text(encoding="utf-8")
    assert (
        "| CP | 50.0% | 50.0 (2/3) | 77.5 [75.0, 80.0] (2/3) | 90.0 (2/3) | not run | not run | 32,768 | rises +12.5 |"
        in page
    )
    assert "| narrower MLP (control) | 50.0% | 70.0 (1/3) | 70.0 (1/3) | 70.0 (1/3) |" in page
    assert "| tensor ring |  | not run | not run | not run | not run | - |  |  |" in page
    assert "| CP, trained through the whole model | 50.0% | - | - | 85.0 (1/1, 64,000 tokens) | - |" in page
    assert f"| passes over the text |  | 0.0 | 0.1 | 0.3 | {131072 / 99611:.1f} |" in page
    assert "| encoder | CP minus narrower MLP (control) | -20.00 | +5.00 (1) | +20.00 (1) |" in page
    assert f"{len(runs)} runs, {len(runs)} minutes" in page
    assert max(len(line) for line in page.partition("## What was found")[0].splitlines()) <= 120
    for table in page.split("\n\n"):
        if table.startswith("|"):
            assert len({line.count("|") for line in table.splitlines()}) == 1
    picture = (tmp_path / "real-models.svg").read_text(encoding="utf-8")
    assert picture.startswith("<?xml")
    for name in ("fair: 90%", "narrower MLP (control)", "minus low rank, points"):
        assert f"<!-- {name} -->" in picture


def test_a_difference_beyond_two_standard_errors_is_bold() -> None:
    runs = [
        *FIXED,
        *seeds((0.5, 0.3, 0.2), (0.5, 0.31, 0.3)),
        *seeds((0.4, 0.2, 0.25), (0.4, 0.2, 0.28), kind="narrow"),
    ]
    assert "| -10.00 | **-10.50 ± 0.50** (2) | +1.50 ± 3.50 (2) |" in page_of(runs)


def test_rates_at_the_edge_and_falls_are_said() -> None:
    tried = [entry("cp", 128, h, seed=plan.RATE_SEED, rate=r) for h, r in ((0.2, 1e-3), (0.3, 3e-3))]
    tried += [entry("narrow", 128, h, seed=plan.RATE_SEED, rate=r) for h, r in ((0.3, 1e-3), (0.2, 3e-3))]
    page = page_of([*FIXED, *tried, *curve(0.5, 0.3), *curve(0.2, 0.25, kind="narrow")])
    assert "Chosen: CP 0.001, narrower MLP (control) 0.003. For narrower MLP (control) that is the largest" in page
    assert "the rate perhaps too large: narrower MLP (control) (encoder, -5.0 points)." in page
    assert "the largest tried" not in page_of([*FIXED, *tried[:2], *curve(0.5, 0.3)])


def test_published_page_is_that_of_the_published_runs() -> None:
    published = [json.loads(line) for line in (DOCS / run.FILE).read_text(encoding="utf-8").splitlines()]
    assert page_of(published) == (DOCS / "real-models.md").read_text(encoding="utf-8")


# -- what is planned

ONES = {(settings["kind"], settings["start"]): 1.0 for settings in plan.rate_runs()}


def test_command_makes_no_page_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no finished runs to make a page of"):
        run.main(["--page", "--out", str(tmp_path)])


def test_cells_are_the_planned_curves() -> None:
    cells = plan.cells()
    assert cells[plan.MIDDLE, Form("cp", 16, 0.5), "layers"] == {0: {0, 1, 2}, 32: {0, 1, 2}, 128: {0, 1, 2}} | {
        512: {0, 1, 2},
        2048: {0},
    }
    assert cells[plan.LAST, Form("cp", 16, 0.5), "model"] == {128: {0}}
    assert (plan.LAST, Form("narrow", 0, 0.5), "layers") not in cells


def test_missing_runs_are_told_by_all_but_the_learning_rate() -> None:
    rates = list(plan.rate_runs())
    every = [{"settings": s} for s in (*rates, *plan.plan(ONES))]
    assert {place: lacking for place, (lacking, _) in plan.missing(every).items()} == dict.fromkeys(
        (plan.MIDDLE, plan.LAST, plan.LANGUAGE), 0
    )
    assert plan.missing([])[plan.LAST] == (28, 28)
    assert sum(of for _, of in plan.missing([]).values()) == len(every)
    assert plan.missing(every[1:])[plan.MIDDLE][0] == 1
    assert plan.missing([*every[1:], {"settings": rates[1]}])[plan.MIDDLE][0] == 1  # of another rate
