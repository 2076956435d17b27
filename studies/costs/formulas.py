"""What the equations of the layers say about parameters, FLOPs and ranks, written out by hand.

Nothing here asks the library, so that its counts have something to be compared with. A formula is the text that the
page prints, and its value is computed from that text.

FLOPs are counted by one rule throughout: two for a multiplication with its addition, one for a product alone.

Legend: ``N`` experts of one mode, ``I`` in_features and one for the bias, ``O`` out_features, ``R`` ranks, ``K``
experts chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

__all__ = ["CHOSEN", "FORMULAS", "Formula", "value"]

CHOSEN = 2
"""``K`` of a sparse mixture."""


def value(text: str, sizes: Mapping[str, int]) -> int:
    """What a sum of products comes to.

    Args:
        text: Terms between plus signs, each of factors between spaces: numbers and names.
        sizes: The names' values.

    Raises:
        KeyError: If a name has no value.

    Examples:
        >>> value("2 N I + N", {"N": 3, "I": 5})
        33
    """
    return sum(prod(int(f) if f.isdecimal() else sizes[f] for f in term.split()) for term in text.split(" + "))


@dataclass(frozen=True)
class Formula:
    """The costs of one layer with a bias in every expert, its gate left out.

    Attributes:
        title: The layer.
        ranks: The names of the rank's entries.
        parameters: The formula of parameters.
        flops: The same of FLOPs for one input.
        max_rank: Those of which the least is the largest rank of an expert's matrix.
        built: FLOPs for one input if the dense tensor is built first, its nodes taken from left to right, and then
            contracted with the outer product of coefficients and input; empty where the page has none.
    """

    title: str
    ranks: tuple[str, ...]
    parameters: str
    flops: str
    max_rank: tuple[str, ...]
    built: str = ""

    def sizes(self, n: int, i: int, o: int, rank: tuple[int, ...]) -> dict[str, int]:
        """The values of the names, from ``(N, I + 1, O, rank)``."""
        return {"N": n, "I": i, "O": o, "K": CHOSEN, **dict(zip(self.ranks, rank, strict=True))}


DENSE = ("N I O", "2 N I O + N I", ("I", "O"))

FORMULAS = {
    "dense": Formula("dense MoE", (), *DENSE),
    "sparse": Formula(f"sparse MoE, {CHOSEN} chosen", (), DENSE[0], "2 K I O + K I", DENSE[2]),
    "cp": Formula(
        "CP",
        ("R",),
        "N R + I R + O R",
        "2 N R + 2 I R + R + 2 O R",
        ("I", "O", "R"),
        "N I R + 2 N I O R + N I + 2 N I O",
    ),
    "tucker": Formula(
        "Tucker",
        ("Rₙ", "Rᵢ", "Rₒ"),
        "N Rₙ + I Rᵢ + O Rₒ + Rₙ Rᵢ Rₒ",
        "2 N Rₙ + 2 I Rᵢ + Rₙ Rᵢ + 2 Rₙ Rᵢ Rₒ + 2 O Rₒ",
        ("I", "O", "Rᵢ", "Rₒ"),
    ),
    "tt": Formula(
        "tensor train",
        ("R₁", "R₂", "R₃", "R₄"),
        "N R₂ + R₂ I R₃ + R₃ O",
        "2 N R₂ + 2 R₂ I R₃ + 2 R₂ R₃ + 2 R₃ O",
        ("I", "O", "R₃"),
    ),
    "tr": Formula(
        "tensor ring",
        ("R₁", "R₂", "R₃", "R₄"),
        "R₁ N R₂ + R₂ I R₃ + R₃ O R₁",
        "2 R₁ N R₂ + 2 R₂ I R₃ + 2 R₁ R₂ R₃ + 2 R₃ O R₁",
        ("I", "O", "R₃ R₁", "R₃ R₂"),
        "2 R₁ R₂ R₃ N I + 2 R₁ R₃ N I O + N I + 2 N I O",
    ),
}
"""By decomposition, and the sparse mixture, which is none. Trains and rings have their last rank at both ends."""
