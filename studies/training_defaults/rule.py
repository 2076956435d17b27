"""The rule that chooses a default: the smallest worst regret, in loss, over all problems.

A *cell* is a problem with its expert modes; within one, contenders are compared seed by seed. The *regret* of a
contender in a cell is its mean paired difference in loss from the cell's best one under which every mode learns. A
contender that leaves a mode dead cannot be chosen, whatever its loss. Worst regrets within two standard errors of the
smallest are ties, and ties go to the first in `SIMPLEST`.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from studies.common.paired import Difference, paired
from studies.training_defaults.contenders import DENSE, RATE_SEED, SIMPLEST, Contender

__all__ = ["Cells", "cells_of", "choose", "difference", "in_use", "learns", "ranking", "share_in_use", "worst_regret"]

Cells = dict[tuple[str, tuple[int, ...]], dict[Contender, dict[int, Mapping[str, Any]]]]


def cells_of(runs: Sequence[Mapping[str, Any]], stage: str, decomposition: str = "cp") -> Cells:
    """The results of a stage's runs by cell, contender and seed; those that chose a learning rate are left out.

    Args:
        runs: What `studies.common.runs.read` gives.
        stage: The stage's name.
        decomposition: That of the experts; dense models take part in each.
    """
    found: Cells = defaultdict(lambda: defaultdict(dict))
    for entry in runs:
        settings = entry["settings"]
        if (
            settings["stage"] == stage
            and settings["seed"] != RATE_SEED
            and settings.get("decomposition") in ("", decomposition)
        ):
            key = settings["problem"], tuple(settings["expert_dims"])
            found[key][Contender(settings["init"], settings["gate"])][settings["seed"]] = entry["result"]
    return found


def difference(cells: Cells, key: Any, one: Contender, other: Contender, measure: str = "loss") -> Difference | None:
    """One contender less another over the seeds that both have; the dense model is in a cell of its own."""
    first, second = (cells.get((key[0], ()) if who == DENSE else key, {}).get(who, {}) for who in (one, other))
    seeds = sorted(first.keys() & second.keys())
    return paired([first[s][measure] for s in seeds], [second[s][measure] for s in seeds]) if seeds else None


def worst_regret(cells: Cells, who: Contender) -> tuple[Difference, str] | None:
    """A contender's largest regret and its cell; None if it was not run in every cell with experts."""
    found = []
    for key in (key for key in cells if key[1]):
        able = [one for one in cells[key] if learns(cells, one)]
        if who not in cells[key] or not able:
            return None
        best = min(able, key=lambda one: statistics.fmean(r["loss"] for r in cells[key][one].values()))
        regret = difference(cells, key, who, best)
        if regret is None:
            return None
        found.append((regret, f"{key[0]} {' x '.join(map(str, key[1]))}"))
    return max(found, key=lambda one: one[0].mean) if found else None


def ranking(cells: Cells) -> list[tuple[Contender, Difference, str]]:
    """Contenders with a worst regret, smallest first; those that leave a mode dead come last."""
    everyone = dict.fromkeys(who for key in cells if key[1] for who in cells[key])
    found = [(who, *regret) for who in everyone if (regret := worst_regret(cells, who)) is not None]
    return sorted(found, key=lambda one: (not learns(cells, one[0]), one[1].mean))


def choose(cells: Cells) -> tuple[Contender, list[Contender]] | None:
    """The contender that the rule chooses, and all that tie with the smallest worst regret."""
    able = [one for one in ranking(cells) if learns(cells, one[0])]
    if not able:
        return None
    least = able[0][1]
    ties = [who for who, regret, _ in able if regret.mean - least.mean <= 2.0 * _together(regret, least)]
    return min(ties, key=lambda who: SIMPLEST.index(who.gate) if who.gate in SIMPLEST else len(SIMPLEST)), ties


def _together(one: Difference, other: Difference) -> float:
    """The standard error of the difference of two regrets; of one seed nothing is known, and the smallest wins."""
    return math.hypot(*(0.0 if math.isnan(regret.error) else regret.error for regret in (one, other)))


def learns(cells: Cells, who: Contender) -> bool:
    """Whether no mode is dead at the end of any run."""
    return all(number > 0.0 for key in cells if key[1] for number, _ in in_use(cells, key, who))


def share_in_use(cells: Cells, who: Contender) -> float:
    """The share of experts in use at the end, a mean over modes and cells."""
    modes = [mode for key in cells if key[1] for mode in in_use(cells, key, who)]
    return statistics.fmean(number / experts for number, experts in modes) if modes else 0.0


def in_use(cells: Cells, key: Any, who: Contender, measure: str = "in_use") -> list[tuple[float, int]]:
    """For each mode of a cell the experts in use at the end, a mean over layers and seeds, and how many there are.

    Args:
        cells: The results.
        key: The cell.
        who: The contender.
        measure: Another measure of a mode's use to take the mean of.
    """
    totals: dict[int, list[float]] = defaultdict(list)
    for result in cells[key].get(who, {}).values():
        for mode in result["usage"][max(result["usage"], key=int)] if result["usage"] else []:
            totals[mode["mode"]].append(mode[measure])
    return [(statistics.fmean(values), key[1][mode]) for mode, values in sorted(totals.items())]
