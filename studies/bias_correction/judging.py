"""What runs of corrections say: verdicts by a rule set beforehand, differences paired by seed, and tables."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from studies.bias_correction.correcting import TRAININGS, Case
from studies.common.paired import Difference, paired, student

__all__ = ["BLIND", "EXCESS", "GROUPS", "LINEAR", "MEASURES", "NONE", "OURS", "OVERSAMPLED", "SHUFFLED"]
__all__ += ["first_seeds", "minutes", "rows_of", "rule", "section", "verdicts", "wronged"]

GROUPS = ("women", "men")
"""The people by the number of their group; the data know no other sexes."""

MEASURES = {
    "equality_of_opportunity": ("difference of opportunity", -1),
    "accuracy": ("accuracy", 1),
    "std_of_accuracies": ("spread of the sexes' accuracies", -1),
    "worst_accuracy": ("worse sex's accuracy", 1),
    "std_of_cells": ("spread of the cells' accuracies", -1),
    "worst_cell": ("worst cell's accuracy", 1),
}
"""What each measure is called, and whether more of it is better (1) or less (-1)."""

OPPORTUNITY, *OTHERS = MEASURES
Row = tuple[str, str, str]
"""A classifier, how it was trained, and its correction."""
NONE, BLIND, SHUFFLED, OURS, EXCESS = (
    ("CP", "as it is", correction)
    for correction in ("none", "blind threshold", "shuffled threshold", "expert threshold", "excess rule")
)
OVERSAMPLED = ("CP", "oversampled", "none")
LINEAR = ("linear", "as it is", "none")
COMPARED = {
    "expert less none": (OURS, NONE),
    "expert less blind": (OURS, BLIND),
    "expert less shuffled": (OURS, SHUFFLED),
    "excess less expert": (EXCESS, OURS),
    "oversampled less expert": (OVERSAMPLED, OURS),
}
KINDS = {
    "reproduced": "reproduced",
    "in part": "reproduced in part",
    "not reproduced": "not reproduced",
    "not compared": "no correction chosen and nothing compared",
}

RULE = """\
Two rows are compared by their differences, paired by seed and taken before rounding. One is *better* or *worse* if the
mean is off 0 by more than {t:.2f} standard errors (Student's t for {seeds} seeds, 95%); else it is *unclear*. A case
is *reproduced* if the expert threshold's difference of opportunity is better than without a correction and with the
blind threshold, and stays so in 95% of drawings of the test people anew; *in part* if another measure is then worse
than with the blind threshold; *not reproduced* otherwise; and *not compared* if validation chose neither threshold in
any seed."""

Found = Mapping[Row, Mapping[str, Sequence[Any]]]
"""For each row the values of each measure, one for each seed; of a correction also the mean ``shift`` chosen."""


def rule(seeds: int) -> str:
    """How the verdicts are made.

    Args:
        seeds: How many there are.
    """
    return RULE.format(t=student(seeds), seeds=seeds)


def verdicts(found: Mapping[str, Found]) -> list[str]:
    """What the figures say: sentences for all cases, then one for each.

    Args:
        found: For each case its rows.
    """
    kinds = {name: _kind(rows) for name, rows in found.items()}
    by_kind = defaultdict(list)
    for name, kind in kinds.items():
        by_kind[kind].append(name)
    told = "; ".join(
        f"{words} in {len(by_kind[kind])} of {len(found)} cases{_listed(by_kind[kind])}" if len(found) > 1 else words
        for kind, words in KINDS.items()
        if by_kind[kind]
    )
    moved = {name: rows for name, rows in found.items() if kinds[name] != "not compared"}
    sentences = [
        f"**Thresholds by experts correct better than blind ones: {told}.**",
        *(
            _of_measures(moved, other, words)
            for other, words in ((BLIND, "the blind threshold"), (NONE, "no correction"))
        ),
        _of_opportunity(
            moved, OURS, SHUFFLED, "Control: beside the expert threshold's shifts shuffled among people, its"
        ),
        _of_opportunity(found, EXCESS, OURS, "Beside the expert threshold, the excess rule's"),
        _of_oversampling(found),
    ]
    return [*(s for s in sentences if s), *(_of_case(name, rows, kinds[name]) for name, rows in found.items())]


def _kind(rows: Found) -> str:
    if not any([*rows[OURS]["shift"], *rows[BLIND]["shift"]]):
        return "not compared"
    smaller = all(
        _verdict(rows, OURS, other, OPPORTUNITY) == "better" and _over_people(rows, other)[1] < 0.0
        for other in (BLIND, NONE)
    )
    if not smaller:
        return "not reproduced"
    return "in part" if any(_verdict(rows, OURS, BLIND, measure) == "worse" for measure in OTHERS) else "reproduced"


def _of_measures(found: Mapping[str, Found], other: Row, words: str) -> str:
    counts = []
    for name, rows in found.items():
        count = Counter(_verdict(rows, OURS, other, measure) for measure in MEASURES)
        parts = ", ".join(f"{count[word]} {word}" for word in ("better", "worse", "unclear"))
        counts.append(f"{name.lower()} {parts}")
    return (
        f"Of {len(MEASURES)} measures, beside {words}, the expert threshold's: {'; '.join(counts)}." if counts else ""
    )


def _of_opportunity(found: Mapping[str, Found], one: Row, other: Row, lead: str) -> str:
    parts = [f"{name.lower()} {_told(rows, one, other, OPPORTUNITY)}" for name, rows in found.items()]
    return f"{lead} difference of opportunity: {'; '.join(parts)}." if parts else ""


def _of_oversampling(found: Mapping[str, Found]) -> str:
    costs = [-100 * _difference(rows, OVERSAMPLED, NONE, "accuracy").mean for rows in found.values()]
    apart = f"{min(costs):.1f} to {max(costs):.1f}" if len(costs) > 1 else f"{costs[0]:.1f}"
    lead = f"Oversampling the same layer costs {apart} points of accuracy. Beside the expert threshold, its"
    return _of_opportunity(found, OVERSAMPLED, OURS, lead)


def _of_case(name: str, rows: Found, kind: str) -> str:
    seeds = len(rows[NONE][OPPORTUNITY])
    mean = {row: statistics.fmean(rows[row][OPPORTUNITY]) for row in (LINEAR, NONE, BLIND, OURS)}
    start = f"{mean[NONE]:.3f} without a correction ({mean[LINEAR]:.3f} of the linear classifier)"
    if kind == "not compared":
        return (
            f"*{name}*: **{KINDS[kind]}.** In {seeds} of {seeds} seeds no size of either threshold that was tried made "
            "the difference of opportunity smaller on the validation people within the accuracy allowed. On the test "
            f"people it is {start}."
        )
    low, high = _over_people(rows, BLIND)
    text = (
        f"*{name}*: **{KINDS[kind]}.** Difference of opportunity {start}, {mean[BLIND]:.3f} with the blind and "
        f"{mean[OURS]:.3f} with the expert threshold; expert less blind {_difference(rows, OURS, BLIND, OPPORTUNITY)} "
        f"over seeds, [{low:+.3f}, {high:+.3f}] over people."
    )
    worse = [
        f"the {words} ({_difference(rows, OURS, BLIND, measure)})"
        for measure, (words, _) in MEASURES.items()
        if _verdict(rows, OURS, BLIND, measure) == "worse"
    ]
    text += f" Worse than blind: {', '.join(worse) or 'nothing'}."
    lost = {
        row: [100 * (a - b) for a, b in zip(rows[NONE]["accuracy"], rows[row]["accuracy"], strict=True)]
        for row in (OURS, BLIND)
    }
    text += (
        f" Points of accuracy lost, mean and worst seed: expert {statistics.fmean(lost[OURS]):.2f} and "
        f"{max(lost[OURS]):.2f}, blind {statistics.fmean(lost[BLIND]):.2f} and {max(lost[BLIND]):.2f}."
    )
    usual = statistics.mode(rows[OURS]["group"])
    columns = (rows[OURS][OPPORTUNITY], rows[BLIND][OPPORTUNITY], rows[OURS]["shift"], rows[OURS]["group"])
    against = [
        f"seed {seed} ({ours:.3f} against {blind:.3f}"
        + ("" if shift else "; no expert threshold was chosen")
        + ("" if group == usual else f"; found wronged: {GROUPS[group]}, not {GROUPS[usual]}")
        + ")"
        for seed, (ours, blind, shift, group) in enumerate(zip(*columns, strict=True))
        if ours >= blind
    ]
    return text + (f" Not smaller than blind in {', '.join(against)}." if against else "")


def first_seeds(rows: Found, number: int) -> str:
    """What some of the seeds say alone: for a study that began with them.

    Args:
        rows: From `rows_of`.
        number: How many seeds.
    """
    some = {row: {name: values[:number] for name, values in rows[row].items()} for row in (OURS, BLIND)}
    told = _told(some, OURS, BLIND, OPPORTUNITY)
    return (
        f"The study began with {number} seeds; more were run when those had been looked at. They alone: "
        f"expert less blind {told}."
    )


def minutes(runs: Sequence[Mapping[str, Any]]) -> str:
    """How long all runs take on one core.

    Args:
        runs: The finished runs.
    """
    number = max(1, round(sum(run["result"]["cpu_seconds"] for run in runs) / 60))
    return f"{number} minute{'s' if number > 1 else ''}"


def _over_people(rows: Found, other: Row) -> tuple[float, float]:
    """The interval over resampled people, its ends' means over seeds."""
    lows, highs = zip(*rows[OURS][f"over people, {other[2]}"], strict=True)
    return statistics.fmean(lows), statistics.fmean(highs)


def _verdict(rows: Found, one: Row, other: Row, measure: str) -> str:
    difference = _difference(rows, one, other, measure)
    if difference.is_unclear:
        return "unclear"
    return "better" if difference.mean * MEASURES[measure][1] > 0 else "worse"


def _told(rows: Found, one: Row, other: Row, measure: str) -> str:
    if list(rows[one][measure]) == list(rows[other][measure]):
        return "the same"
    return f"{_difference(rows, one, other, measure)} ({_verdict(rows, one, other, measure)})"


def _difference(rows: Found, one: Row, other: Row, measure: str) -> Difference:
    return paired(rows[one][measure], rows[other][measure])


def _listed(names: Sequence[str]) -> str:
    return f" ({', '.join(name.lower() for name in names)})" if names else ""


def rows_of(runs: Sequence[Mapping[str, Any]], case: Case, models: Sequence[str]) -> Found:
    """The rows of a case in the table's order, each measure with a value for each seed in the seeds' order.

    Args:
        runs: The finished runs.
        case: The case.
        models: The classifiers in the table's order.
    """
    found: dict[Row, dict[str, list[Any]]] = {}
    order = {name: place for names in (models, TRAININGS) for place, name in enumerate(names)}
    mine = [run for run in runs if run["settings"]["attribute"] == case.attribute]
    mine.sort(
        key=lambda run: [order[run["settings"]["model"]], order[run["settings"]["training"]], run["settings"]["seed"]]
    )
    for run in mine:
        result = run["result"]["cases"][case.name]
        for correction, measures in result["measures"].items():
            row = found.setdefault(
                (run["settings"]["model"], run["settings"]["training"], correction), defaultdict(list)
            )
            for measure, value in measures.items():
                row[measure].append(value)
            row["shift"].append(result["shifts"].get(correction, 0.0))
            row["people"].append(result["people"])
            row["group"].append(result["group"])
            if correction == OURS[2]:
                for other, interval in result["over_people"].items():
                    row[f"over people, {other}"].append(interval)
    return found


def section(case: Case, rows: Found) -> str:
    """A case's part of the page: who was tested, the differences, and the values of every row.

    Args:
        case: The case.
        rows: From `rows_of`.
    """
    negative, positive = case.words
    group = "the sex found to be wronged" if case.group is None else GROUPS[case.group]
    names = [f"{sex} {word}" for sex in GROUPS for word in (negative, positive)]
    people = ", ".join(f"{count:,} {name}" for name, count in zip(names, rows[NONE]["people"][0], strict=True))
    lines = [
        f"## {case.name}",
        "",
        f"Positive: {positive}; corrected for {group}. Tested: {people}.",
        "",
        f"| measure | {' | '.join(COMPARED)} |",
        f"|---|{'---|' * len(COMPARED)}",
    ]
    for measure, (words, _) in MEASURES.items():
        cells = [_told(rows, one, other, measure) for one, other in COMPARED.values()]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    heads = [words for words, _ in MEASURES.values()] + [f"{sex} recognised" for sex in GROUPS] + ["shift"]
    lines += [
        "",
        f"| classifier | training | correction | {' | '.join(heads)} |",
        f"|---|---|---|{'---:|' * len(heads)}",
    ]
    for (model, training, correction), measures in rows.items():
        values = {measure: _spread(measures[measure]) for measure in MEASURES}
        means = [statistics.fmean(values) for values in zip(*measures["cells"], strict=True)]
        values["worst_cell"] += f" {names[means.index(min(means))]}"
        recognised = [_spread(shares) for shares in zip(*measures["recognised"], strict=True)]
        shift = "" if correction == "none" else _spread(measures["shift"], 2)
        cells = [*values.values(), *recognised, shift]
        lines.append(f"| {model} | {training} | {correction} | {' | '.join(cells)} |")
    return "\n".join(lines)


def wronged(runs: Sequence[Mapping[str, Any]], case: Case) -> str:
    """Which sex was found to be wronged by the layer of experts, and how often.

    Args:
        runs: The finished runs.
        case: The case.
    """
    mine = [
        GROUPS[run["result"]["cases"][case.name]["group"]]
        for run in runs
        if run["settings"]["attribute"] == case.attribute
        and (run["settings"]["model"], run["settings"]["training"]) == NONE[:2]
    ]
    counts = " and ".join(f"{group} in {count}" for group, count in Counter(mine).most_common())
    return f"{counts} of {len(mine)} seeds"


def _spread(values: Sequence[float], digits: int = 3) -> str:
    return f"{statistics.fmean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"
