"""The finished runs, looked up by what was trained."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from studies.common.paired import Difference, paired
from studies.specialisation.plan import RATE_SEED

__all__ = ["Runs", "Values", "difference", "known", "less", "mean", "share", "told"]

Values = dict[int, float]
"""A figure by seed; NaN where there is none."""


class Runs:
    """The runs of the page.

    Args:
        found: What `studies.common.runs.read` gives.
    """

    def __init__(self, found: Sequence[Mapping[str, Any]]) -> None:
        self.all = found
        self.kept = [entry for entry in found if entry["settings"]["seed"] != RATE_SEED]

    def of(self, data: str, like: Mapping[str, Any], experts: int) -> dict[int, Mapping[str, Any]]:
        """The results of one head on one data, by seed.

        Args:
            data: The name of the data.
            like: Settings that name the head.
            experts: Its number of experts.
        """
        wanted = {"data": data, **like, "experts": experts}
        return {
            entry["settings"]["seed"]: entry["result"]
            for entry in self.kept
            if {k: v for k, v in entry["settings"].items() if k not in ("seed", "learning_rate")} == wanted
        }

    def values(self, data: str, like: Mapping[str, Any], experts: int, measure: str, part: int = 0) -> Values:
        """One figure by seed.

        Args:
            data: The name of the data.
            like: Settings that name the head.
            experts: Its number of experts.
            measure: The name of the figure.
            part: Where it has a null: 0 for the figure, 1 for the mean of the null.
        """
        found = {seed: result[measure] for seed, result in self.of(data, like, experts).items() if measure in result}
        return {seed: float(value[part] if isinstance(value, list) else value) for seed, value in sorted(found.items())}

    def sizes(self, data: str, like: Mapping[str, Any]) -> list[int]:
        """The numbers of experts of a head on some data."""
        wanted = {"data": data, **like}
        return sorted(
            {
                entry["settings"]["experts"]
                for entry in self.kept
                if {k: v for k, v in entry["settings"].items() if k not in ("seed", "learning_rate", "experts")}
                == wanted
            }
        )

    def learning_rate(self, data: str, like: Mapping[str, Any], experts: int) -> float:
        """The learning rate that a head was given."""
        wanted = {"data": data, **like, "experts": experts}
        return next(
            float(entry["settings"]["learning_rate"])
            for entry in self.kept
            if {k: v for k, v in entry["settings"].items() if k not in ("seed", "learning_rate")} == wanted
        )


def difference(one: Values, other: Values) -> Difference | None:
    """``one - other`` over the seeds in which both are known."""
    seeds = [s for s in sorted(one.keys() & other.keys()) if not math.isnan(one[s]) and not math.isnan(other[s])]
    return paired([one[s] for s in seeds], [other[s] for s in seeds]) if seeds else None


def less(one: Values, other: Values) -> Values:
    """``one - other`` by seed."""
    return {seed: one[seed] - other[seed] for seed in one.keys() & other.keys()}


def share(one: Values, other: Values) -> Values:
    """``one / other - 1`` by seed."""
    return {seed: one[seed] / other[seed] - 1.0 for seed in one.keys() & other.keys()}


def told(found: Difference) -> str:
    """A difference with its standard error, in as many digits as show that it is not 0, five at most.

    Examples:
        >>> told(Difference(-0.25, 0.04, 3)), told(Difference(-0.0081, 0.0004, 3)), told(Difference(0.5, math.nan, 1))
        ('-0.250 ± 0.040', '-0.0081 ± 0.0004', '+0.500 (one seed)')
    """
    if math.isnan(found.error):
        return f"{found.mean:+.3f} (one seed)"
    shown = [d for d in (3, 4, 5) if round(found.error, d)] or [3]
    digits = next((d for d in shown if round(found.mean, d)), shown[0])
    return f"{found.mean:+.{digits}f} ± {found.error:.{digits}f}"


def known(values: Values) -> list[float]:
    """The figures that are there."""
    return [value for value in values.values() if not math.isnan(value)]


def mean(values: Values) -> float:
    """Their mean; NaN if there are none."""
    found = known(values)
    return statistics.fmean(found) if found else math.nan
