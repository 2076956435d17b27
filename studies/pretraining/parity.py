"""Whether a form is as good as the dense one: paired differences over seeds, by two rules.

The first is the usual one of two standard errors. With three seeds it calls differences real too easily; Student's t
asks for 4.3 standard errors at 5%.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studies.common.paired import Difference, paired

__all__ = ["NAMES", "TITLES", "Parity", "by_problem", "parities"]

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""The two-sided 95% point of Student's t, by the number of pairs; without end for others."""

NAMES = {"dense": "dense", "cp": "CP", "tr": "tensor ring"}
TITLES = {"gpt": "GPT", "mixer": "Mixer"}

Found = Mapping[str, Mapping[str, Mapping[int, Mapping[str, Any]]]]
"""By problem, form and seed: what a run gave."""


@dataclass(frozen=True)
class Parity:
    """A form's difference from the dense form.

    Attributes:
        difference: The mean paired difference.
        lower_is_better: Whether what differs is a loss.
    """

    difference: Difference
    lower_is_better: bool

    @property
    def word(self) -> str:
        """``"a tie"`` within two standard errors, else ``"better"`` or ``"worse"``; ``"unknown"`` from one pair."""
        if math.isnan(self.difference.error):
            return "unknown"
        if self.difference.is_tie:
            return "a tie"
        return "better" if (self.difference.mean < 0) == self.lower_is_better else "worse"

    @property
    def half_width(self) -> float:
        """Half the 95% interval of the mean difference, by Student's t."""
        return T_95.get(self.difference.pairs, math.inf) * self.difference.error

    @property
    def beyond_t(self) -> bool:
        """Whether that interval leaves zero out."""
        return abs(self.difference.mean) > self.half_width

    def text(self, scale: float = 1.0, digits: int = 3) -> str:
        """The mean and its standard error, and the interval.

        Examples:
            >>> Parity(paired([2.0, 3.0, 4.0], [1.0, 3.0, 2.0]), True).text()
            '+1.000 ± 0.577 [-1.484, +3.484]'
        """
        mean, error, half = (scale * value for value in (self.difference.mean, self.difference.error, self.half_width))
        return f"{mean:+.{digits}f} ± {error:.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"


def by_problem(runs: Sequence[Mapping[str, Any]], problems: Sequence[str] = tuple(TITLES)) -> Found:
    """The runs by problem, form and seed; those with something else changed are left out.

    Args:
        runs: What `studies.common.runs.read` gives.
        problems: Which problems.
    """
    found: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {problem: {} for problem in problems}
    for entry in runs:
        settings = entry["settings"]
        if settings["problem"] in found and "tried" not in settings:
            found[settings["problem"]].setdefault(settings["form"], {})[settings["seed"]] = entry["result"]
    return {problem: forms for problem, forms in found.items() if forms}


def parities(forms: Mapping[str, Mapping[int, Mapping[str, Any]]], measure: str) -> dict[str, Parity]:
    """Each form of experts against the dense form, over the seeds that both have.

    Args:
        forms: By form and seed.
        measure: ``"loss"`` or ``"accuracy"``.
    """
    found = {}
    for form in (form for form in forms if form != "dense"):
        seeds = sorted(forms[form].keys() & forms["dense"].keys())
        values = ([forms[name][seed][measure] for seed in seeds] for name in (form, "dense"))
        found[form] = Parity(paired(*values), measure == "loss")
    return found
