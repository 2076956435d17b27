"""Fits the planner's constants on the machine at hand: ``python -m benchmarks.cost_model``.

``MOVED`` of ``contraction/search.py`` says how many FLOPs take as long as reading or writing one element, ``COPIED``
how many take as long as copying one element of a parameter into another order, ``SCANNED`` how many take as long as
looking at one coefficient for whether it is zero. Here they are read off matrix products, elementwise products,
permuted copies and searches for the non-zero coefficients, of the sizes that the layers have.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.measuring import FULL, Call, Effort, alternate
from factorized_moe.activations import entmax15
from factorized_moe.contraction.search import COPIED, MOVED, SCANNED

__all__ = ["SIZES", "Sizes", "constants", "fit"]


@dataclass(frozen=True)
class Sizes:
    """What is timed.

    Attributes:
        products: Samples, contracted and resulting size of matrix products.
        elements: Elements of elementwise products.
        copies: Shapes of parameters, with the permutations that make a contracted axis the last.
        scans: Samples and experts of sparse coefficients.
    """

    products: tuple[tuple[int, int, int], ...] = ((64, 768, 512), (256, 256, 128), (1024, 512, 768), (1024, 768, 64))
    elements: tuple[int, ...] = (2**14, 2**17, 2**19, 2**21)
    copies: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
        ((64, 32, 32), (0, 2, 1)),
        ((8, 4, 32, 32), (0, 1, 3, 2)),
        ((8, 4, 4, 32, 32), (3, 0, 1, 2, 4)),
        ((769, 4, 95), (1, 0, 2)),
        ((4, 95, 768), (2, 0, 1)),
    )
    scans: tuple[tuple[int, int], ...] = ((64, 1024), (1024, 1024), (256, 4096))


SIZES = Sizes()


@dataclass(frozen=True)
class Fit:
    """Seconds for one unit of each kind of work: the median over the sizes.

    Attributes:
        flop: For a multiplication or an addition in a matrix product.
        moved: For an element read or written by an elementwise product.
        copied: For an element copied into another order.
        scanned: For a coefficient looked at for whether it is zero.
    """

    flop: float
    moved: float
    copied: float
    scanned: float


def fit(effort: Effort, sizes: Sizes = SIZES) -> Fit:
    """Time all sizes in turn.

    Returns:
        The seconds for one unit of each kind of work.
    """
    calls: list[tuple[str, int, Call]] = []
    for samples, inner, outer in sizes.products:
        x, weight = torch.randn(samples, inner), torch.randn(inner, outer)
        calls.append(("flop", 2 * samples * inner * outer, _product(x, weight)))
    for elements in sizes.elements:
        x, y = torch.randn(elements), torch.randn(elements)
        calls.append(("moved", 3 * elements, _elementwise(x, y)))
    for shape, permutation in sizes.copies:
        x = torch.randn(shape).permute(permutation)
        calls.append(("copied", math.prod(shape), _copy(x)))
    for samples, experts in sizes.scans:
        coefficients = entmax15(torch.randn(samples, experts))
        calls.append(("scanned", samples * experts, _scan(coefficients)))
    times = alternate([call for _, _, call in calls], effort)
    units = [(kind, statistics.median(mine) / work) for (kind, work, _), mine in zip(calls, times, strict=True)]
    kinds = ("flop", "moved", "copied", "scanned")
    return Fit(**{name: statistics.median(u for kind, u in units if kind == name) for name in kinds})


def constants(found: Fit) -> dict[str, dict[str, float]]:
    """The constants as fitted and as in use.

    Examples:
        >>> constants(Fit(flop=1e-11, moved=8e-11, copied=2e-9, scanned=1e-9))["COPIED"]["fitted"]
        200.0
    """
    return {
        "MOVED": {"fitted": round(found.moved / found.flop, 2), "used": MOVED},
        "COPIED": {"fitted": round(found.copied / found.flop, 2), "used": COPIED},
        "SCANNED": {"fitted": round(found.scanned / found.flop, 2), "used": SCANNED},
    }


def _product(x: Tensor, weight: Tensor) -> Call:
    return lambda: torch.mm(x, weight)


def _elementwise(x: Tensor, y: Tensor) -> Call:
    return lambda: x * y


def _copy(x: Tensor) -> Call:
    return x.contiguous


def _scan(coefficients: Tensor) -> Call:
    def call() -> Tensor:
        rows, columns = coefficients.nonzero(as_tuple=True)
        return coefficients[rows, columns]

    return call


if __name__ == "__main__":
    found = fit(FULL)
    print(
        f"{1e-9 / found.flop:.1f} GFLOP/s; {1e9 * found.moved:.3f} ns moved, {1e9 * found.copied:.3f} ns copied, "
        f"{1e9 * found.scanned:.3f} ns scanned"
    )
    for name, value in constants(found).items():
        print(f"{name}: {value['fitted']:.1f} fitted, {value['used']} in use")
