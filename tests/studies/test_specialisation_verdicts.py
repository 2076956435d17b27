"""The verdicts of the study of specialisation, on runs made by hand of which the right answer is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from studies.common.paired import Difference
from studies.specialisation import sections
from studies.specialisation.findings import KINDS, RULES, fall, gates, special
from studies.specialisation.page import page
from studies.specialisation.plan import DEFAULT, LINEAR, MATCHED_CP, RATE_SEED, SOFTMAX, TWO_MAPS
from studies.specialisation.spans import FEW, MANY, TURN, WHOLE, figure, grows_from, move, span, way
from studies.specialisation.table import Runs, told
from studies.specialisation.verdicts import in_short

SEEDS = range(3)
SHIFTS = (0.0, 1 / 64, 3 / 64)
"""What the seeds add to a figure and to its null alike; like most figures below, sums of a few powers of two, so that
differences that are to be 0 are 0."""


def entry(data: str, like: Mapping[str, Any], size: int, seed: int, **figures: Any) -> dict[str, Any]:
    """A run; a figure with a null is a pair."""
    result = {"accuracy": 0.5, "with_effect": size, "lost": 9.0, "parameters": 100 + size}
    for name in (*RULES, "mutual_information", "concentration", "effective_classes"):
        result[name] = figures.pop(name, (1.0, 1.0))
    settings = {"data": data, **like, "experts": size, "seed": seed, "learning_rate": 0.01}
    kept = {name: list(value) if isinstance(value, tuple) else value for name, value in {**result, **figures}.items()}
    return {"settings": settings, "result": kept, "seconds": 60.0}


def over(
    data: str,
    pairs: Mapping[int, tuple[float, float]],
    measures: Sequence[str] = tuple(RULES),
    like: Mapping[str, Any] = DEFAULT,
    **more: Any,
) -> list[dict[str, Any]]:
    """Three seeds of each number of experts; a figure and its null by number."""
    return [
        entry(data, like, size, seed, **dict.fromkeys(measures, (p + SHIFTS[seed], null + SHIFTS[seed])), **more)
        for size, (p, null) in pairs.items()
        for seed in SEEDS
    ]


def line(runs: list[dict[str, Any]], lead: str) -> str:
    (found,) = [each for each in in_short(Runs(runs)) if each.startswith(f"**{lead}")]
    return found


ALL = dict.fromkeys((4, 16, 64, 128, 256, 1024), (1.0, 1.0))


def test_spans_end_at_half_and_at_all_of_the_classes() -> None:
    runs = Runs([*over("wn252", ALL), *over("wn10", {4: (1.0, 1.0), 16: (1.0, 1.0)}), *over("wn50", ALL)])
    between = Runs(over("wn10", dict.fromkeys((4, 8, 16, 64), (1.0, 1.0))))
    assert [span(between, "wn10", name) for name in (FEW, TURN, MANY)] == [None, (4, 16), (16, 64)]
    names = (FEW, TURN, MANY, WHOLE)
    assert [span(runs, "wn252", name) for name in names] == [(4, 128), (128, 256), (256, 1024), (4, 1024)]
    assert [span(runs, "wn50", name) for name in names] == [(4, 16), (16, 64), (64, 1024), (4, 1024)]
    assert [span(runs, "wn10", name) for name in names] == [None, (4, 16), None, (4, 16)]


def test_the_forms_of_a_figure() -> None:
    runs = Runs([entry("wn10", DEFAULT, size, 0, mutual_information=(6.0, 2.0)) for size in (4, 1024)])
    found = {form: figure(runs, "wn10", DEFAULT, 4, "mutual_information", form) for form in ("value", "excess")}
    assert found == {"value": {0: 6.0}, "excess": {0: 4.0}}
    assert figure(runs, "wn10", DEFAULT, 4, "mutual_information", "share") == {0: 2.0}
    # 4 experts tell 2 bits at most, 1,024 no more than 10 classes have.
    assert figure(runs, "wn10", DEFAULT, 4, "mutual_information", "bound") == {0: 2.0}
    assert figure(runs, "wn10", DEFAULT, 1024, "mutual_information", "bound") == {0: 4.0 / math.log2(10)}


def test_an_excess_is_paired_over_seeds() -> None:
    # Seeds differ by more than the move, but each moves alike.
    runs = Runs(over("wn252", {4: (0.50, 1.0), 64: (0.49, 1.0)}))
    found = move(runs, "wn252", (4, 64), "mean", "excess")
    assert found is not None
    assert (found.pairs, round(found.mean, 6), round(found.error, 6)) == (3, -0.01, 0.0)


@pytest.mark.parametrize(
    ("pairs", "falls"),
    [
        ({4: (1.2, 1.0), 64: (0.8, 0.9)}, True),
        ({4: (1.2, 1.0), 64: (0.8, 0.5)}, False),  # the null falls further
        ({4: (0.8, 1.0), 64: (0.9, 1.3)}, False),  # the excess falls, polysemanticity rises
        ({4: (1.0, 1.0), 64: (1.0, 1.0)}, False),
    ],
)
def test_a_fall_counts_only_beyond_the_nulls_own(pairs: dict[int, tuple[float, float]], falls: bool) -> None:
    runs = over("wn252", pairs)
    assert fall(Runs(runs), "wn252", (4, 64)) is falls
    word = ": reproduced: " if falls else ": not reproduced: "
    assert word in line(runs, "More experts are less polysemantic")


def test_a_fall_has_to_hold_under_every_rule_and_on_all_data() -> None:
    down = {4: (1.2, 1.0), 16: (0.8, 1.0)}
    runs = over("wn252", down)
    for each in runs:
        each["result"]["mean_dead_zero"] = [1.0, 1.0]
    assert not fall(Runs(runs), "wn252", (4, 16))
    mixed = [*over("wn252", down), *over("gl", {4: (1.0, 1.0), 16: (1.1, 1.0)}), *over("wn10", {4: (1.0, 1.0)})]
    found = line(mixed, "More experts are less polysemantic")
    assert "reproduced in part: " in found
    assert "on 1 of 2 data (glosses 252; not glyphs 256)" in found
    assert "Glosses 252, glosses 10 are the same texts, so not independent." in found
    assert "with a linear head's parameters" not in found
    matched = [*mixed, *over("wn252", down, like=MATCHED_CP), *over("gl", down, like=MATCHED_CP)]
    assert "at every number of experts on 2 of 2" in line(matched, "More experts are less polysemantic")


def test_a_rise_begins_after_the_last_step_that_is_none() -> None:
    up = {4: 1.2, 16: 0.8, 64: 0.9, 128: 0.85, 256: 0.86, 1024: 0.87}
    runs = Runs(over("wn252", {size: (p, 1.0) for size, p in up.items()}))
    assert grows_from(runs, "wn252", "mean") == 128
    tie = Runs(over("wn252", {size: (p, 1.0) for size, p in ({**up, 1024: 0.86}).items()}))
    assert grows_from(tie, "wn252", "mean") is None


def test_what_many_experts_do_is_said_by_rule_and_by_data() -> None:
    fine = over("wn252", {4: (1.2, 1.0), 128: (0.6, 1.0), 256: (0.7, 1.0), 1024: (0.8, 1.0)})
    for each in fine:
        each["result"]["mean_dead_zero"] = [1.0 / each["settings"]["experts"], 1.0]
    coarse = over("wn10", {4: (0.5, 1.0), 16: (0.5, 1.0), 64: (0.875, 1.375)})
    found = line([*fine, *coarse], "With as many experts as classes or more")
    assert "rises on 2 of 2 data with experts without effect left out or counted 1; " in found
    assert "rises on 1 of 2 data (glosses 10), falls on 1 (glosses 252) with them counted 0." in found
    assert "the excess over the null rises on 1 of 2 data (glosses 252), ties on 1 (glosses 10)" in found
    assert "at every step from 128 (glosses 252), 16 (glosses 10) experts on" in found
    assert "From half to all of the classes it rises on 1 of 2 data (glosses 252), ties on 1 (glosses 10)." in found


def test_experts_are_more_special_only_beyond_a_null_that_moves() -> None:
    # All three figures move far and end beyond their nulls, as before; only the bits gain on theirs.
    runs = [
        entry(
            "wn252",
            DEFAULT,
            size,
            seed,
            mutual_information=bits,
            concentration=concentration,
            effective_classes=classes,
        )
        for size, bits, concentration, classes in (
            (4, (0.25, 0.125), (0.25, 0.125), (60.0, 100.0)),
            (16, (2.25, 1.125), (0.875, 0.75), (1.2, 2.0)),
        )
        for seed in SEEDS
    ]
    words = {kind.name: way(special(Runs(runs), "wn252", (4, 16), kind)) for kind in KINDS}
    assert words == {
        "bits": "rises",
        "bits, as a share of the bound": "rises",
        "concentration": "ties",
        "classes, in numbers": "falls",
        "classes, as a share of the null": "ties",
    }
    found = line(runs, "More special beyond chance")
    assert "by bits alone on all data" in found
    assert "over the whole range by bits 1/0/0, concentration 0/1/0, classes by expert 0/1/0." in found


def test_bits_beyond_as_many_experts_as_classes_are_told_by_data() -> None:
    figures = {16: (2.0, 0.5), 64: (3.0, 1.25)}
    runs = over("wn10", figures, ["mutual_information"])
    assert "they change by +0.25 (glosses 10) beyond the null" in line(runs, "More special beyond chance")


def _gates(entmax: tuple[float, float], softmax: tuple[float, float], size: int = 64, **more: Any) -> list[Any]:
    return [*over("wn252", {size: entmax}), *over("wn252", {size: softmax}, like=SOFTMAX, **more)]


def test_gates_are_compared_beside_their_nulls() -> None:
    lead = "Entmax against softmax, from 64 experts on"
    assert ": reproduced, of 1 comparisons" in line(_gates((0.5, 0.9), (0.8, 0.9)), lead)
    found = line(_gates((0.5, 0.625), (0.75, 0.875)), lead)
    assert ": reproduced in part, " in found
    assert "is lower in 1 with experts without effect left out or counted 1 or counted 0; " in found
    assert "its excess over the null is a tie in 1 (+0.000), over experts with an effect and over all." in found
    assert ": not reproduced, " in line(_gates((0.9, 0.9), (0.8, 0.9)), lead)
    small = line([*_gates((0.5, 0.9), (0.8, 0.9)), *_gates((0.9, 1.0), (0.8, 0.9), 16)], lead)
    assert small.endswith("Below 64 experts: glosses 252 with 16 higher, its excess a tie.")


def test_where_nearly_nothing_is_lost_gates_are_not_compared() -> None:
    lead = "Entmax against softmax, from 64 experts on"
    # 12 of 64 experts lose 20 samples between them.
    nothing = _gates((0.5, 0.9), (0.9, 0.9), with_effect=12, lost=20 / 64)
    (found,) = gates(Runs(nothing))
    assert found.is_vacuous
    assert found.lost == (9.0, pytest.approx(20 / 12))
    assert ": not testable. Vacuous are 1 (glosses 252 with 64 experts)" in line(nothing, lead)
    more = line([*nothing, *_gates((0.5, 0.9), (0.8, 0.9), 256)], lead)
    assert ": reproduced, of 1 comparisons that can tell (of another 1 nothing can be said): entmax" in more
    (row, _) = [
        text for text in sections.entmax(Runs([*nothing, *_gates((0.5, 0.9), (0.8, 0.9), 256)])) if "252" in text
    ]
    assert "vacuous" in row
    assert "**" not in row


def test_seeds_without_any_effect_are_said_to_be_missing() -> None:
    runs = _gates((0.5, 0.9), (0.8, 0.9))
    runs[-1]["result"]["mean"] = [math.nan, math.nan]
    assert gates(Runs(runs))[0].values["mean"] == Difference(pytest.approx(-0.3), pytest.approx(0.0), 2)
    (row,) = [text for text in sections.entmax(Runs(runs)) if "252" in text]
    assert row.count("(n 2)") == 2
    assert "| 0.808 (0.908) (n 2) |" in page(Runs(runs), [])


def test_parity_is_within_two_standard_errors() -> None:
    linear = [entry("wn252", LINEAR, 0, seed, accuracy=p) for seed, p in ((0, 0.5), (1, 0.45))]
    tie = [entry("wn252", MATCHED_CP, 16, seed, accuracy=p) for seed, p in ((0, 0.45), (1, 0.5))]
    worse = [entry("wn252", MATCHED_CP, 64, seed, accuracy=p) for seed, p in ((0, 0.25), (1, 0.199))]
    maps = [entry("wn252", TWO_MAPS, 256, seed, accuracy=p) for seed, p in ((0, 0.512), (1, 0.448))]
    runs = [*linear, *tie, *worse, *maps]
    found = sections.accuracy(Runs(runs))
    assert "N = 16, 64: +0.000 ± 0.050, -0.251 ± 0.001 (1 a tie, 1 worse, n 2)" in found[0]
    assert "two linear maps on glosses 252 (+0.005 ± 0.007, 356 parameters)" in found[1]
    told_so = line(runs, "As accurate as a linear head")
    assert "not reproduced, worse in 1 of 2 comparisons, a tie in 1;" in told_so


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Difference(-0.25, 0.04, 3), "**-0.250 ± 0.040**"),
        (Difference(-0.0081, 0.0004, 3), "**-0.0081 ± 0.0004**"),
        (Difference(0.05, 0.04, 3), "+0.050 ± 0.040"),
        (Difference(-0.0003, 0.001, 3), "-0.0003 ± 0.0010"),
        (Difference(0.5, math.nan, 1), "+0.500 (one seed)"),
        (None, "none"),
    ],
)
def test_cells_show_errors_above_zero_and_bold_beyond_two(found: Difference | None, text: str) -> None:
    assert sections.cell(found) == text
    assert found is None or told(found) == text.strip("*")


def test_tables_have_a_column_for_each_of_the_data_and_its_spans() -> None:
    runs = Runs([*over("wn252", ALL), *over("wn10", {4: (1.0, 1.0), 16: (0.9, 1.0), 64: (1.0, 1.0)})])
    head, _, *rows = sections.polysemanticity(runs)
    assert head == "| | span | glosses 252 | glosses 10 |"
    assert "| `p`, left out | to C/2 | +0.000 ± 0.000 |  |" in rows
    assert "| `p`, left out | C/2 to C | +0.000 ± 0.000 | **-0.100 ± 0.000** |" in rows
    (line_of_spans, _) = sections.spans_of(runs)
    assert line_of_spans == (
        "The spans end at 4, 128, 256, 1,024 experts (glosses 252); 4, 16, 64 experts (glosses 10)."
    )


def test_other_forms_are_told_with_their_parameters() -> None:
    steps = {16: (1.0, 1.0), 128: (0.8, 0.9), 256: (0.7, 0.9)}
    runs = Runs([*over("wn252", steps), *over("wn252", steps, like=MATCHED_CP)])
    rows = sections.forms(runs)[2:]
    assert "| CP entmax | glosses 252 | 16 to 256 | 116 to 356 | **-0.300 ± 0.000** | **-0.200 ± 0.000** |" in rows
    assert any(row.startswith("| CP equal parameters | glosses 252 | 16 to 256 | 116 to 356 |") for row in rows)


def test_rates_at_the_edge_are_marked() -> None:
    runs = [*over("wn252", {16: (1.0, 1.0)}), *over("wn252", {0: (1.0, 1.0)}, like=LINEAR)]
    for each in runs[:3]:
        each["settings"]["learning_rate"] = 0.003
    assert sections.rates(Runs(runs)) == "Glosses 0.003 CP entmax; 0.01* linear"


def test_a_page_without_runs_claims_nothing() -> None:
    text = page(Runs([]), [])
    assert "reproduced" not in text
    assert "##" in text


def test_the_page_counts_heads_and_the_search_for_rates_apart() -> None:
    search = [entry("wn252", DEFAULT, 16, RATE_SEED) for _ in range(2)]
    text = page(Runs([*over("wn252", {16: (1.0, 1.0)}), *search]), [])
    assert "3 are done; with the\n2 runs that chose learning rates this took 5 minutes in total" in text
