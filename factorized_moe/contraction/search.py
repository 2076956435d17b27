"""What a step of pairwise contractions costs; `exhaustive` searches orders of few operands, `large` of many.

opt_einsum's dynamic programming counts FLOPs alone, and FLOPs are not time: among orders of nearly equal FLOPs one may
copy a parameter at every call or write large intermediates. Here each step is charged for the elements it moves as
well, which needs to know the memory order of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

from factorized_moe.network import BATCH

__all__ = [
    "COPIED",
    "COPIED_PER_SAMPLE",
    "MOVED",
    "SCANNED",
    "Operand",
    "Pairs",
    "copy_price",
    "merged_operand",
    "pair_flops",
    "step_cost",
]

MOVED = 8
"""FLOPs that reading or writing one element counts for.

``python -m benchmarks --only cost_model`` fits 4 to 29, depending on the machine. Little is charged, so that an order
has more FLOPs than another only where it clearly pays.
"""

COPIED = 12
"""The same for an element of a parameter that is copied into another order: timed alone, fitted as 35 to 215.

Less is charged, because within plans copies cost less: plans made at 200 are slower at 1 and 64 samples, and those made
at 0 at one sample (``python -m benchmarks --only copies``). Between, few plans differ and little can be told.
"""

COPIED_PER_SAMPLE = 4
"""So much at most is charged for each sample, and in a step on parameters alone: twice the FLOPs of a copied element.

So no step takes more than three times the FLOPs to avoid a copy.
"""

SCANNED = 256
"""The same for a coefficient that is looked at to find out whether it is zero: fitted as 116 to 120 on one machine.

It is the price of reading only the rows of non-zero coefficients, so that pays only for rows of more elements than half
of it: in CP's factors with one element for each rank, hardly in a tensor ring's. More is charged than was fitted,
because on another machine, which was not fitted, skipping rows of 256 elements saved nothing.
"""

Pairs = list[tuple[int, int]]
"""An order: positions in the list of operands; the result of pair k takes position ``len(operands) + k``."""


@dataclass(frozen=True)
class Operand:
    """An operand of the search.

    Attributes:
        labels: Its labels.
        memory: Their order in memory if it is a parameter, which a step may have to copy; otherwise ``None``.
    """

    labels: frozenset[str]
    memory: tuple[str, ...] | None = None


def copy_price(samples: int) -> int:
    """What an element of a parameter that is copied counts for, in FLOPs.

    Args:
        samples: The samples that take part in the step it is copied for; 1 if none do.
    """
    return min(COPIED, COPIED_PER_SAMPLE * samples)


def merged_operand(left: Operand, right: Operand, output: frozenset[str], rest: Iterable[Operand]) -> Operand:
    """What one step makes of two operands: the labels of either that the output or another operand has.

    Args:
        left: An operand.
        right: The other.
        output: The labels that the order's result keeps.
        rest: All operands that are left.
    """
    return Operand((left.labels | right.labels) & output.union(*(operand.labels for operand in rest)))


def pair_flops(
    left: frozenset[str], right: frozenset[str], kept: frozenset[str], size_of: Callable[[frozenset[str]], int]
) -> int:
    """Multiplications and additions of one step on two operands.

    A label that one operand alone has, and the result has not, is summed before the operands meet.

    Args:
        left: The labels of the left operand.
        right: Those of the right one.
        kept: Those of the result.
        size_of: The product of some labels' sizes.
    """
    both = left & right
    flops = (1 if both <= kept else 2) * size_of((left | right) & (both | kept))
    for mine in (left, right):
        alone = mine - both - kept
        if alone and size_of(alone) > 1:
            flops += size_of(mine)
    return flops


def step_cost(
    left: Operand, right: Operand, kept: frozenset[str], size_of: Callable[[frozenset[str]], int], moved: float
) -> float:
    """The cost of one step in FLOPs: its FLOPs, the elements of values moved, and the elements of a parameter copied.

    Args:
        left: An operand.
        right: The other.
        kept: The labels of the result.
        size_of: The product of some labels' sizes.
        moved: The cost of an element moved.
    """
    flops = pair_flops(left.labels, right.labels, kept, size_of)
    elements = size_of(kept)
    for mine, theirs in ((left, right), (right, left)):
        if mine.memory is None:
            elements += size_of(mine.labels)
        else:
            # A product reads the parameter in place if its labels lie in blocks: those that are summed with the other
            # operand, those that both keep, and those of its own. Without a sum nothing is rearranged.
            common = mine.labels & theirs.labels
            kinds = [(x in common, x in common and x in kept) for x in mine.memory if x in mine.labels]
            blocks = 1 + sum(one != two for one, two in pairwise(kinds))
            if not common <= kept and blocks > len(set(kinds)):
                flops += copy_price(size_of(kept & {BATCH})) * size_of(mine.labels)
    return float(flops + moved * elements)
