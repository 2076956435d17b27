"""Finished runs as curves of quality against tokens, and what the page calls these."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studies.common.paired import Difference, paired
from studies.real_models.forms import Form
from studies.real_models.language import DIVERGENCE
from studies.real_models.plan import RATE_SEED, Cell
from studies.real_models.sentences import DISTANCE

__all__ = ["FAIR", "STILL", "Curve", "Point", "Reference", "curves", "references"]

FAIR = 0.9
"""The share of what an ablated MLP costs that a form must undo, in each seed, to be called fair."""

STILL = 0.9
"""A curve still rises if four times the tokens leave at most this share of what was missing to 1."""

FIXED = ("original", "mean", "zeros")

Entries = Sequence[Mapping[str, Any]]


def harm(measured: Mapping[str, float]) -> float:
    """How far a model is from the unchanged one: nats a token, or ``1 - cosine``."""
    return measured[DIVERGENCE] if DIVERGENCE in measured else measured[DISTANCE]


@dataclass(frozen=True)
class Reference:
    """What one place costs when something fixed takes its MLPs' places.

    Attributes:
        measured: What was measured with the MLPs as they are, their mean output, and zeros in their place.
    """

    measured: Mapping[str, Mapping[str, float]]

    @property
    def ablation(self) -> str:
        """Which of the mean output and zeros does less harm: to be compared with the other would be too kind."""
        return min(("mean", "zeros"), key=lambda kind: harm(self.measured[kind]))

    def made_good(self, measured: Mapping[str, float]) -> float:
        """The share of the ablation's harm that is undone: 1 as the original, below 0 worse than no MLP."""
        return 1.0 - harm(measured) / harm(self.measured[self.ablation])


@dataclass(frozen=True)
class Point:
    """One length of a curve.

    Attributes:
        steps: Of the optimiser.
        tokens: Seen in training, counted each time.
        made_good: By seed.
        measured: All that was measured, by seed.
    """

    steps: int
    tokens: float
    made_good: Mapping[int, float]
    measured: Mapping[int, Mapping[str, float]]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.made_good.values())

    @property
    def is_fair(self) -> bool:
        """Whether every seed is."""
        return min(self.made_good.values()) >= FAIR


@dataclass(frozen=True)
class Curve:
    """One form in one place.

    Attributes:
        place: The place.
        form: The form.
        loss: ``"layers"`` or ``"model"``.
        share: Its parameters as a share of the MLPs'.
        points: The lengths that were run, shortest first.
    """

    place: str
    form: Form
    loss: str
    share: float
    points: tuple[Point, ...]

    @property
    def cell(self) -> Cell:
        """Place, form and loss, as in the plan."""
        return self.place, self.form, self.loss

    @property
    def last(self) -> Point:
        """The longest length that was run."""
        return self.points[-1]

    @property
    def fair_from(self) -> float | None:
        """The tokens of the shortest length from which on all are fair; None if the longest is not."""
        found = None
        for point in reversed(self.points):
            if not point.is_fair:
                break
            found = point.tokens
        return found

    @property
    def change(self) -> str:
        """What the last fourfold of tokens did: ``"rises"``, ``"slow"``, ``"falls"``, or ``"unknown"``."""
        means = self._last_two()
        if means is None:
            return "unknown"
        before, after = (1.0 - mean for mean in means)
        if after <= STILL * before:
            return "rises"
        return "falls" if after * STILL > before else "slow"

    @property
    def gain(self) -> float | None:
        """What the last fourfold of tokens added to what is made good; None where two lengths are not there."""
        means = self._last_two()
        return None if means is None else means[1] - means[0]

    def _last_two(self) -> tuple[float, float] | None:
        """The means of the last two lengths of training, over the seeds that have both."""
        if len(self.points) < 2 or not self.points[-2].steps:
            return None
        before, after = self.points[-2].made_good, self.points[-1].made_good
        seeds = before.keys() & after.keys()
        if not seeds:
            return None
        return statistics.fmean(before[seed] for seed in seeds), statistics.fmean(after[seed] for seed in seeds)

    def minus(self, other: Curve) -> dict[int, Difference]:
        """By steps, for each length that another curve has in a common seed: this less the other, paired by seed."""
        found = {}
        for point in self.points:
            against = other.at(point.steps)
            seeds = sorted(point.made_good.keys() & against.made_good.keys()) if against is not None else []
            if against is not None and seeds:
                one, another = ([of.made_good[seed] for seed in seeds] for of in (point, against))
                found[point.steps] = paired(one, another)
        return found

    def at(self, steps: int) -> Point | None:
        """The point of a length."""
        return next((point for point in self.points if point.steps == steps), None)


def references(entries: Entries) -> dict[str, Reference]:
    """By place, in the order of the runs; those of which one is missing are left out."""
    found: dict[str, dict[str, Mapping[str, float]]] = {}
    for entry in entries:
        if entry["settings"]["kind"] in FIXED:
            found.setdefault(entry["settings"]["place"], {})[entry["settings"]["kind"]] = entry["result"]["measured"]
    return {place: Reference(kinds) for place, kinds in found.items() if len(kinds) == len(FIXED)}


def curves(entries: Entries) -> list[Curve]:
    """Every form of every place, in the order of the runs; the runs that learning rates are chosen by do not count."""
    known = references(entries)
    found: dict[tuple[str, Form, str], dict[int, dict[int, Any]]] = {}
    for entry in entries:
        settings = entry["settings"]
        if settings["kind"] in FIXED or settings["place"] not in known or settings["seed"] == RATE_SEED:
            continue
        form = Form(settings["kind"], settings["experts"], settings["fraction"], settings["start"])
        every = found.setdefault((settings["place"], form, settings["loss"]), {})
        every.setdefault(settings["steps"], {})[settings["seed"]] = entry["result"]
    return [
        Curve(place, form, loss, _one(lengths)["share"], tuple(_points(lengths, known[place])))
        for (place, form, loss), lengths in found.items()
    ]


def _points(lengths: Mapping[int, Mapping[int, Any]], reference: Reference) -> list[Point]:
    return [
        Point(
            steps,
            statistics.fmean(result["tokens"] for result in seeds.values()),
            {seed: reference.made_good(result["measured"]) for seed, result in seeds.items()},
            {seed: result["measured"] for seed, result in seeds.items()},
        )
        for steps, seeds in sorted(lengths.items())
    ]


def _one(lengths: Mapping[int, Mapping[int, Any]]) -> Any:
    return next(iter(next(iter(lengths.values())).values()))
