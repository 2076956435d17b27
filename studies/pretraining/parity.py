"""Whether a form is as good as the dense one: paired differences over seeds, judged by Student's t.

A verdict goes by the 95% interval alone. Two standard errors, this project's rule for parity, call differences of three
seeds real too easily: what they alone find is called suggestive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studies.common.paired import Difference, paired

__all__ = ["CLAIM", "NAMES", "TITLES", "Parity", "by_problem", "gathered", "parities"]

NAMES = {"dense": "dense", "cp": "CP", "tr": "tensor ring"}
TITLES = {"gpt": "GPT", "mixer": "Mixer"}
CLAIM = {
    "worse": "not reproduced",
    "not told apart": "not told apart",
    "better": "reproduced",
    "unknown": "one seed cannot tell",
}
"""What a verdict says of the claim that a form is as good."""

Found = Mapping[str, Mapping[str, Mapping[int, Mapping[str, Any]]]]
"""By problem, form and seed: what a run gave."""


@dataclass(frozen=True)
class Parity:
    """A form's difference from the dense form, or of anything else that was paired by seed.

    Attributes:
        difference: The mean paired difference.
        lower_is_better: Whether what differs is a loss.
    """

    difference: Difference
    lower_is_better: bool

    @property
    def verdict(self) -> str:
        """``"better"`` or ``"worse"`` if the interval leaves zero out, else ``"not told apart"``.

        It is ``"unknown"`` from one pair.
        """
        if math.isnan(self.difference.error):
            return "unknown"
        return self._side if abs(self.difference.mean) > self.half_width else "not told apart"

    @property
    def suggestive(self) -> str:
        """``"better"`` or ``"worse"`` beyond two standard errors, where the interval has zero in it; else empty."""
        return self._side if self.verdict == "not told apart" and not self.difference.is_tie else ""

    @property
    def _side(self) -> str:
        return "better" if (self.difference.mean < 0) == self.lower_is_better else "worse"

    @property
    def half_width(self) -> float:
        """Half the 95% interval of the mean difference, by Student's t."""
        return self.difference.half_width

    def text(self, scale: float = 1.0, digits: int = 3) -> str:
        """The mean and its interval.

        Examples:
            >>> Parity(paired([2.0, 3.0, 4.0], [1.0, 3.0, 2.0]), True).text()
            '+1.000 [-1.483, +3.483]'
        """
        mean, half = scale * self.difference.mean, scale * self.half_width
        return f"{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"

    def remark(self, scale: float = 1.0, digits: int = 3) -> str:
        """What is to be said of a difference that is not told apart, rounded so that it stays true; else empty.

        Examples:
            >>> Parity(paired([2.0, 3.0, 4.0], [1.0, 3.0, 2.0]), True).remark(digits=1)
            'within 3.5 either way, rounded up; parity by two standard errors'
        """
        if self.verdict != "not told apart":
            return ""
        reach = scale * (abs(self.difference.mean) + self.half_width) * 10**digits
        last = f"suggestive: {self.suggestive}" if self.suggestive else "parity by two standard errors"
        return f"within {math.ceil(reach) / 10**digits:.{digits}f} either way, rounded up; {last}"


def gathered(words: Mapping[str, str]) -> str:
    """One word if all agree, else each word with those that it is said of.

    Args:
        words: What is said of each.

    Examples:
        >>> gathered({"CP": "worse", "tensor ring": "worse"})
        'worse'
        >>> gathered({"CP": "not told apart", "tensor ring": "worse"})
        'not told apart for CP, worse for tensor ring'
    """
    by_word: dict[str, list[str]] = {}
    for name, word in words.items():
        by_word.setdefault(word, []).append(name)
    if len(by_word) == 1:
        return next(iter(by_word))
    return ", ".join(f"{word} for {' and '.join(names)}" for word, names in by_word.items())


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
