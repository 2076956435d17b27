"""How far a figure, or what it has beyond its null, moves as experts are added; spans of numbers by classes.

Legend: ``N`` experts, ``C`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from studies.common.paired import Difference
from studies.specialisation.figures import CLASSES
from studies.specialisation.plan import DEFAULT
from studies.specialisation.table import Runs, Values, difference, less, share

__all__ = ["FEW", "HALF", "MANY", "TURN", "WHOLE", "Span", "figure", "grows_from", "is_clear", "move", "span", "way"]

HALF = 0.52
"""Experts by class that count as half: the upper end of the paper's range, rounded up."""
FEW, TURN, MANY, WHOLE = "to C/2", "C/2 to C", "from C on", "all"

Span = tuple[int, int]


def span(runs: Runs, data: str, name: str, like: Mapping[str, Any] = DEFAULT) -> Span | None:
    """The first and the last number of experts of a span; none where there are not two.

    Args:
        runs: The runs.
        data: The name of the data.
        name: `FEW`, `TURN`, `MANY` or `WHOLE`.
        like: Settings that name the head.
    """
    sizes = runs.sizes(data, like)
    few = [size for size in sizes if size <= HALF * CLASSES[data]]
    many = [size for size in sizes if size >= CLASSES[data]]
    found = {FEW: few, TURN: few[-1:] + many[:1], MANY: many, WHOLE: sizes}[name]
    return (found[0], found[-1]) if len(found) > 1 else None


def figure(runs: Runs, data: str, like: Mapping[str, Any], size: int, measure: str, form: str = "value") -> Values:
    """A figure by seed: its value, its *excess* over its null, or the excess as a share of the null or of a bound.

    Args:
        runs: The runs.
        data: The name of the data.
        like: Settings that name the head.
        size: The number of experts.
        measure: The name of the figure.
        form: ``"value"``, ``"excess"``, ``"share"`` of the null, or ``"bound"``: as a share of the bits that ``N``
            experts can tell of ``C`` classes.
    """
    value = runs.values(data, like, size, measure)
    if form == "value":
        return value
    null = runs.values(data, like, size, measure, 1)
    if form == "share":
        return share(value, null)
    scale = math.log2(min(size, CLASSES[data])) if form == "bound" else 1.0
    return {seed: excess / scale for seed, excess in less(value, null).items()}


def move(
    runs: Runs, data: str, ends: Span, measure: str, form: str = "value", like: Mapping[str, Any] = DEFAULT
) -> Difference | None:
    """How far a figure goes from the first number of experts to the last, in pairs of the same seed.

    Args:
        runs: The runs.
        data: The name of the data.
        ends: The two numbers.
        measure: The name of the figure.
        form: As for `figure`.
        like: Settings that name the head.
    """
    few, many = (figure(runs, data, like, size, measure, form) for size in ends)
    return difference(many, few)


def is_clear(found: Difference | None, sign: int) -> bool:
    """Whether a difference is of a sign, by more than two standard errors."""
    return found is not None and not found.is_tie and found.mean * sign > 0


def way(found: Difference | None) -> str:
    """``"rises"``, ``"falls"`` or ``"ties"``, by two standard errors; ``"unknown"`` with fewer than two seeds."""
    if found is None or found.pairs < 2:
        return "unknown"
    return "ties" if found.is_tie else "rises" if found.mean > 0 else "falls"


def grows_from(runs: Runs, data: str, measure: str) -> int | None:
    """The number of experts from which a figure rises at every step up to the largest number; none if it does not.

    Args:
        runs: The runs.
        data: The name of the data.
        measure: The name of the figure.
    """
    sizes, found = runs.sizes(data, DEFAULT), None
    for few, many in zip(reversed(sizes[:-1]), reversed(sizes[1:]), strict=True):
        if way(move(runs, data, (few, many), measure)) != "rises":
            break
        found = few
    return found
