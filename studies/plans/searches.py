"""The searches of other libraries, stopped when their processor time is up."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["NAMES", "OPTIMAL", "Find", "searches", "within"]

Find = Callable[[list[tuple[str, ...]], tuple[str, ...], dict[str, int]], Any]
"""From the operands' labels, the result's and the sizes to a path in opt_einsum's linear format."""

DYNAMIC, GREEDY, OPTIMAL = "opt_einsum, dynamic programming", "cotengra, greedy", "cotengra, optimal"
NAMES = (DYNAMIC, GREEDY, OPTIMAL)

FEW = 10
"""Up to so many operands the exhaustive search is tried too."""


def searches(operands: int) -> dict[str, Find]:
    """The searches for a network of so many operands.

    Args:
        operands: The nodes and vectors.
    """
    import cotengra
    import opt_einsum

    def dynamic(inputs: list[tuple[str, ...]], output: tuple[str, ...], sizes: dict[str, int]) -> Any:
        number = {label: count for count, label in enumerate(sizes)}
        sets = [frozenset(number[x] for x in labels) for labels in inputs]
        search = opt_einsum.paths.DynamicProgramming(minimize="flops")
        return search(sets, frozenset(number[x] for x in output), dict(enumerate(sizes.values())))

    found: dict[str, Find] = {DYNAMIC: dynamic, GREEDY: cotengra.GreedyOptimizer()}
    if operands <= FEW:
        found[OPTIMAL] = cotengra.OptimalOptimizer(search_outer=True)
    return found


def within(seconds: float, find: Callable[[], Any]) -> tuple[Any, float] | None:
    """What a search finds and the processor time it took, or ``None`` if it takes more than is allowed.

    Args:
        seconds: Of this process, in all threads: what others do on the machine does not count.
        find: The search.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    start = time.process_time()
    try:
        try:
            found = find()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except TimeoutError:  # in the search, or late, while the timer was being stopped
        return None
    finally:
        signal.signal(signal.SIGPROF, before)
    return found, time.process_time() - start
