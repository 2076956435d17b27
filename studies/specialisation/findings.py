"""What the runs say of each claim, as numbers and single words; `verdicts` and `sections` say it in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from studies.common.paired import Difference
from studies.specialisation.figures import TITLES, contenders
from studies.specialisation.plan import DEFAULT, LINEAR, SOFTMAX
from studies.specialisation.spans import Span, figure, is_clear, move, span, way
from studies.specialisation.table import Runs, difference, known, mean

__all__ = [
    "EXCESSES",
    "FEWEST_LOST",
    "KINDS",
    "RULES",
    "Gates",
    "Kind",
    "fall",
    "gates",
    "matched",
    "special",
    "with_classes",
]

RULES = {"mean": "left out", "mean_dead_one": "counted 1", "mean_dead_zero": "counted 0"}
"""What becomes of experts without effect."""
EXCESSES = {"mean": "experts with an effect", "mean_dead_one": "all experts"}
"""The excess over the null is one and the same whether experts without effect count 1 or 0."""
FEWEST_LOST = 2.0
"""Samples lost by an expert with an effect below which its polysemanticity is hardly more than its null."""


@dataclass(frozen=True)
class Kind:
    """A way to say how far experts are more special than chance has it.

    Attributes:
        name: Its name on the page.
        measure: The figure.
        form: As for `studies.specialisation.spans.figure`.
        sign: 1 where a larger figure is a more special expert, else -1.
    """

    name: str
    measure: str
    form: str
    sign: int


KINDS = (
    Kind("bits", "mutual_information", "excess", 1),
    Kind("bits, as a share of the bound", "mutual_information", "bound", 1),
    Kind("concentration", "concentration", "excess", 1),
    Kind("classes, in numbers", "effective_classes", "excess", -1),
    Kind("classes, as a share of the null", "effective_classes", "share", -1),
)


def with_classes(runs: Runs, name: str) -> dict[str, Span]:
    """The data on which a span has two numbers of experts and two seeds, with those numbers.

    Args:
        runs: The runs.
        name: A span's name.
    """
    found = {data: span(runs, data, name) for data in TITLES}
    return {data: ends for data, ends in found.items() if ends and way(move(runs, data, ends, "mean")) != "unknown"}


def fall(runs: Runs, data: str, ends: Span, like: Mapping[str, Any] = DEFAULT) -> bool:
    """Whether polysemanticity falls, and further than its null does, under every rule for experts without effect.

    Args:
        runs: The runs.
        data: The name of the data.
        ends: From how many experts to how many.
        like: Settings that name the head.
    """
    forms = ("value", "excess")
    return all(is_clear(move(runs, data, ends, rule, form, like), -1) for rule in RULES for form in forms)


def special(runs: Runs, data: str, ends: Span, kind: Kind) -> Difference | None:
    """How much more special than chance experts become, positive for more.

    Args:
        runs: The runs.
        data: The name of the data.
        ends: From how many experts to how many.
        kind: What is measured.
    """
    found = move(runs, data, ends, kind.measure, kind.form)
    return found and replace(found, mean=kind.sign * found.mean)


@dataclass(frozen=True)
class Gates:
    """Entmax's figures less softmax's, or both, for one number of experts.

    Attributes:
        data: The name of the data.
        size: The number of experts.
        values: Of polysemanticity, by rule for experts without effect; ``None`` if no softmax expert has an effect.
        excess: Of its excess over the null, by `EXCESSES`.
        with_effect: Experts with an effect, entmax and softmax.
        lost: Samples lost by an expert that has an effect.
        bits: Bits beyond the null.
    """

    data: str
    size: int
    values: dict[str, Difference | None]
    excess: dict[str, Difference | None]
    with_effect: tuple[float, float]
    lost: tuple[float, float]
    bits: tuple[float, float]

    @property
    def is_vacuous(self) -> bool:
        """Whether experts of a gate lose so little that their polysemanticity is that of the null."""
        return not min(self.lost) >= FEWEST_LOST


def gates(runs: Runs) -> list[Gates]:
    """Every comparison of entmax with softmax.

    Args:
        runs: The runs.
    """
    found = []
    for data in TITLES:
        for size in runs.sizes(data, SOFTMAX):
            pair = (DEFAULT, SOFTMAX)
            effect, bits, lost = [], [], []
            for like in pair:
                living = known(runs.values(data, like, size, "with_effect"))
                losses = known(runs.values(data, like, size, "lost"))
                effect.append(sum(living) / max(len(living), 1))
                lost.append(max(1.0, size * sum(losses) / sum(living)) if sum(living) else 0.0)
                bits.append(mean(figure(runs, data, like, size, "mutual_information", "excess")))
            both = [
                {
                    name: difference(*(figure(runs, data, like, size, name, form) for like in pair))
                    for name in (RULES if form == "value" else EXCESSES)
                }
                for form in ("value", "excess")
            ]
            found.append(
                Gates(data, size, *both, (effect[0], effect[1]), (lost[0], lost[1]), (bits[0], bits[1])),
            )
    return found


def matched(runs: Runs, data: str) -> list[tuple[str, Difference]]:
    """The accuracy of each head with a linear head's parameters, less that of the linear head.

    Args:
        runs: The runs.
        data: The name of the data.
    """
    linear = runs.values(data, LINEAR, 0, "accuracy")
    found = []
    for name, like, size in contenders(runs, data):
        if "equal parameters" in name:
            apart = difference(runs.values(data, like, size, "accuracy"), linear)
            found += [] if apart is None else [(name, apart)]
    return found
