"""Several starts for one fit, each improved as far as it goes; the best one is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from factorized_moe.decompositions import Decomposition
from factorized_moe.decompositions.base import Rank
from factorized_moe.fitting.least_squares import alternating_least_squares, sweep
from factorized_moe.fitting.problem import Problem, Tensors
from factorized_moe.fitting.tensorly_algorithms import tensorly_fits
from factorized_moe.network import TensorNetwork

__all__ = ["Found", "best_of_starts"]

SWEEPS = 200
RANDOM_STARTS = 4
EXACT = 1e-9


@dataclass(frozen=True, eq=False)
class Found:
    """A result of one start.

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
    target: Tensor, decomposition: Decomposition, network: TensorNetwork, rank: Rank, seed: int
) -> Found:
    """The best result of TensorLy's algorithm and of random starts."""
    problem = Problem(network, target)
    generator = torch.Generator().manual_seed(seed)
    best: Found | None = None
    iterations = 0
    known = decomposition.tensorly_algorithm is not None and target.ndim > 2
    for start in range(len(decomposition.tensorly_starts) if known else RANDOM_STARTS):
        if known:
            tensors = tensorly_fits(target, decomposition, rank, start)
        else:
            tensors = problem.random(generator)
            sweep(problem, tensors, greedy=True)
        kept, before = dict(tensors), problem.error(tensors)
        error, sweeps = alternating_least_squares(problem, tensors, SWEEPS)
        iterations += sweeps
        tensors, error = (tensors, error) if error < before else (kept, before)
        if best is None or error < best.error:
            best = Found(tensors, error, iterations, "least squares")
        if error < EXACT:
            break
    assert best is not None  # there is always a start
    return best
