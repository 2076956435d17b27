"""What the equations of the layers say about parameters, multiply-adds and ranks, written out by hand.

Nothing here asks the library, so that its counts have something to be compared with.

Legend: ``N`` experts of one mode, ``I`` in_features, ``O`` out_features, ``R`` ranks, ``K`` experts chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["CHOSEN", "FORMULAS", "MATERIALISED", "Formula"]

CHOSEN = 2
"""``K`` of a sparse mixture."""


@dataclass(frozen=True)
class Formula:
    """The costs of one layer with a bias in every expert, its gate left out.

    Attributes:
        title: The layer.
        parameters: The formula as text.
        multiply_adds: The same of multiply-adds for one input.
        max_rank: The same of the largest rank of an expert's matrix.
        count: From ``(N, I + 1, O, rank)`` to parameters, multiply-adds, products alone, and the largest rank. A
            product alone is a multiplication without an addition: one FLOP, not two.
    """

    title: str
    parameters: str
    multiply_adds: str
    max_rank: str
    count: Callable[[int, int, int, tuple[int, ...]], tuple[int, int, int, int]]


def _dense(n: int, i: int, o: int, rank: tuple[int, ...]) -> tuple[int, int, int, int]:
    return n * i * o, n * i * o, n * i, min(i, o)


def _sparse(n: int, i: int, o: int, rank: tuple[int, ...]) -> tuple[int, int, int, int]:
    return n * i * o, CHOSEN * i * o, CHOSEN * i, min(i, o)


def _cp(n: int, i: int, o: int, rank: tuple[int, ...]) -> tuple[int, int, int, int]:
    (r,) = rank
    return r * (n + i + o), r * (n + i + o), r, min(i, o, r)


def _tucker(n: int, i: int, o: int, rank: tuple[int, ...]) -> tuple[int, int, int, int]:
    rn, ri, ro = rank
    size = n * rn + i * ri + o * ro + rn * ri * ro
    return size, size, rn * ri, min(i, o, ri, ro)


def _tt(n: int, i: int, o: int, rank: tuple[int, ...]) -> tuple[int, int, int, int]:
    _, r2, r3, _ = rank
    size = n * r2 + r2 * i * r3 + r3 * o
    return size, size + r2 * r3, 0, min(i, o, r3)


def _tr(n: int, i: int, o: int, rank: tuple[int, ...]) -> tuple[int, int, int, int]:
    r1, r2, r3, _ = rank
    size = r1 * n * r2 + r2 * i * r3 + r3 * o * r1
    return size, size + r1 * r2 * r3, 0, min(i, o, r3 * min(r1, r2))


FORMULAS = {
    "dense": Formula("dense MoE", "N I O", "N I O", "min(I, O)", _dense),
    "sparse": Formula(f"sparse MoE, {CHOSEN} chosen", "N I O", "K I O", "min(I, O)", _sparse),
    "cp": Formula("CP", "R (N + I + O)", "R (N + I + O)", "min(I, O, R)", _cp),
    "tucker": Formula("Tucker", "N Rₙ + I Rᵢ + O Rₒ + Rₙ Rᵢ Rₒ", "as many as parameters", "min(I, O, Rᵢ, Rₒ)", _tucker),
    "tt": Formula("tensor train", "N R₂ + R₂ I R₃ + R₃ O", "parameters + R₂ R₃", "min(I, O, R₃)", _tt),
    "tr": Formula(
        "tensor ring", "R₁ N R₂ + R₂ I R₃ + R₃ O R₁", "parameters + R₁ R₂ R₃", "min(I, O, R₃ min(R₁, R₂))", _tr
    ),
}
"""By decomposition, and the sparse mixture, which is none. ``I`` counts the bias row."""


def _cp_built(n: int, i: int, o: int, rank: tuple[int, ...]) -> int:
    (r,) = rank
    return r * n * i * o + n * i * o


def _tr_built(n: int, i: int, o: int, rank: tuple[int, ...]) -> int:
    r1, r2, r3, _ = rank
    return r1 * r2 * r3 * n * i + r1 * r3 * n * i * o + n * i * o


MATERIALISED = {"cp": _cp_built, "tr": _tr_built}
"""Multiply-adds of one output, from ``(N, I + 1, O, rank)``, if the dense tensor is built first.

Of a ring the cores are taken from left to right: experts with inputs, then with outputs.
"""
