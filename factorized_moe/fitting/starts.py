"""Several starts for one fit, each improved as far as it goes; the best one is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from factorized_moe.decompositions import Decomposition
from factorized_moe.decompositions.base import Rank
from factorized_moe.fitting.first_order import improve_by_gradients
from factorized_moe.fitting.least_squares import alternating_least_squares, sweep
from factorized_moe.fitting.problem import Problem, Report, Tensors
from factorized_moe.fitting.second_order import improve_together, is_small
from factorized_moe.fitting.tensorly_algorithms import tensorly_fits

__all__ = ["Found", "best_of_starts", "improve_start"]

SWEEPS = 200
FURTHER_SWEEPS = 20
SMALL_SWEEPS = 30
STEPS = 60
"""The most sweeps: from a random start, from TensorLy's result, before the steps for small problems; and such steps."""

RANDOM_STARTS = 2
"""With no algorithm of TensorLy's, or where its result can be improved at little cost."""

SMALL_STARTS = 10
"""The most random starts of a small problem."""

EXACT = 1e-9
ENOUGH = 3
SAME = 1e-5
"""Errors that differ by less than this part of them are taken for the same minimum."""


@dataclass(frozen=True, eq=False)
class Found:
    """The parameters that one start led to, and their error.

    Attributes:
        tensors: The parameters by name, float64.
        error: The relative error.
        iterations: Sweeps and steps, those of the other starts included.
        method: What found it, in words.
    """

    tensors: Tensors
    error: float
    iterations: int
    method: str


def best_of_starts(
    problem: Problem,
    decomposition: Decomposition,
    rank: Rank,
    seed: int,
    bound: float,
    report: Report,
    starts: int | None = None,
) -> Found:
    """The best result of TensorLy's algorithm and of random starts.

    No further start is made once the error is as small as it can be, or `ENOUGH` starts have reached the best one.

    Args:
        problem: The problem.
        decomposition: The decomposition, for TensorLy's algorithm.
        rank: Its rank.
        seed: Where random starts come from.
        bound: The least error possible, as far as it is known.
        report: Called with the error after each sweep and step.
        starts: The most random starts; by default few, and more where they are small.
    """
    generator = torch.Generator().manual_seed(seed)
    best: Found | None = None
    iterations, errors = 0, []
    for tensors, origin, sweeps in _starts(problem, decomposition, rank, generator, starts):
        found = improve_start(problem, Found(tensors, float("inf"), 0, origin), report, sweeps)
        iterations += found.iterations
        errors.append(found.error)
        if best is None or found.error < best.error:
            best = found
        reached = sum(error <= best.error * (1.0 + SAME) for error in errors)
        if reached >= ENOUGH or best.error <= max(EXACT, bound * (1.0 + SAME)):
            break
    assert best is not None  # there is always a start
    return Found(best.tensors, best.error, iterations, best.method)


def _starts(
    problem: Problem, decomposition: Decomposition, rank: Rank, generator: torch.Generator, starts: int | None
) -> Iterator[tuple[Tensors, str, int]]:
    known = decomposition.tensorly_algorithm is not None and problem.target.ndim > 2 and not problem.is_weighted
    if known:
        for start in range(len(decomposition.tensorly_starts)):
            try:
                tensors = tensorly_fits(problem.target, decomposition, rank, start)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # singular where experts are equal
                known = False
            else:
                yield tensors, f"TensorLy's {decomposition.tensorly_algorithm}", FURTHER_SWEEPS
    if starts is None:
        starts = SMALL_STARTS if is_small(problem) else 0 if known else RANDOM_STARTS
    for _ in range(starts):
        tensors = problem.random(generator)
        if problem.is_linear:
            sweep(problem, tensors, greedy=True)
        yield tensors, "random start", SWEEPS


def improve_start(problem: Problem, start: Found, report: Report, sweeps: int = SWEEPS) -> Found:
    """Improve a start by the methods that suit the problem, and return the best parameters seen.

    Args:
        problem: The problem.
        start: The start, changed by nothing.
        report: Called with the error after each sweep and step.
        sweeps: The most sweeps, if the problem is not small.
    """
    small = is_small(problem)
    improvements: list[tuple[str, Callable[[Problem, Tensors, int, Report], tuple[float, int]], int]] = []
    if problem.is_linear:
        most = SMALL_SWEEPS if small else sweeps
        improvements.append(("alternating least squares", alternating_least_squares, most))
    elif not small:
        improvements.append(("L-BFGS", improve_by_gradients, SWEEPS))
    if small:
        improvements.append(("Levenberg-Marquardt", improve_together, STEPS))
    tensors, words = start.tensors, [start.method]
    error, total = problem.error(tensors), start.iterations
    for name, improve, count in improvements:
        trial = dict(tensors)
        reached, made = improve(problem, trial, count, report)
        total += made
        if reached < error:
            tensors, error = trial, reached
            words.append(name)
    return Found(tensors, error, total, ", ".join(words))
