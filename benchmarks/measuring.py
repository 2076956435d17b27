"""Times as ratios: contenders take turns, round after round, so that a change of the machine's speed meets them all."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "Call", "Effort", "Ratio", "alone", "alternate", "measure_ratio"]

Call = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        seconds: The time for one comparison; more if the fewest rounds take longer.
        fewest: The fewest rounds.
        most: The most rounds.
        turn: The least seconds of one contender's turn in a round: faster calls are repeated within it.
        compiled: Whether the cases with ``torch.compile`` are measured, at half a minute of compilation each.
    """

    seconds: float
    fewest: int
    most: int = 201
    turn: float = 0.01
    compiled: bool = True


FULL = Effort(seconds=1.5, fewest=11)
QUICK = Effort(seconds=0.1, fewest=3, turn=0.002, compiled=False)


@dataclass(frozen=True)
class Ratio:
    """A contender's time over a baseline's, of each round.

    Attributes:
        median: The median of the rounds' ratios.
        lower: Their first quartile.
        upper: Their third quartile.
        seconds: The contender's median time for one call.
        baseline_seconds: The baseline's.
        rounds: The number of rounds.
    """

    median: float
    lower: float
    upper: float
    seconds: float
    baseline_seconds: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.lower:.2f}, {self.upper:.2f}]"


def alternate(calls: Sequence[Call], effort: Effort) -> list[list[float]]:
    """The seconds of one call, for each contender and each round.

    Args:
        calls: The contenders. The first call of each is not counted: memory is allocated and code compiled in it.
        effort: How long to measure.

    Returns:
        One list for each contender, with one entry for each round.
    """
    repeats = [_repeats(call, effort.turn) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    turns = list(zip(calls, repeats, times, strict=True))
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = time.perf_counter() + effort.seconds
        while len(times[0]) < effort.fewest or (time.perf_counter() < end and len(times[0]) < effort.most):
            for call, repeat, mine in turns:
                start = time.perf_counter()
                for _ in range(repeat):
                    call()
                mine.append((time.perf_counter() - start) / repeat)
            turns.reverse()  # nobody always runs first, after the pause between rounds
    finally:
        if collecting:
            gc.enable()
    return times


def measure_ratio(contender: Call, baseline: Call, effort: Effort) -> Ratio:
    """How many times as long the contender takes.

    Examples:
        >>> ratio = measure_ratio(lambda: sum(range(9000)), lambda: sum(range(3000)), Effort(0.02, fewest=3))
        >>> ratio.lower <= ratio.median <= ratio.upper
        True
    """
    mine, theirs = alternate([contender, baseline], effort)
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, lower, upper, statistics.median(mine), statistics.median(theirs), len(ratios))


def alone(comparisons: Sequence[Ratio]) -> Ratio:
    """The baseline of some comparisons, as they have measured it: its ratio is 1 by definition."""
    seconds = statistics.median(ratio.baseline_seconds for ratio in comparisons)
    return Ratio(1.0, 1.0, 1.0, seconds, seconds, min(ratio.rounds for ratio in comparisons))


def _repeats(call: Call, turn: float) -> int:
    """How often to call within a turn."""
    call()
    call()
    start = time.perf_counter()
    call()
    return max(1, math.ceil(turn / max(time.perf_counter() - start, 1e-7)))
