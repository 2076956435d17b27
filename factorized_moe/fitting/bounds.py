"""A bound from below on the error of every tensor that a network can be: no fit can do better, whoever makes it.

Cutting the network in two leaves a matrix whose rank is at most the product of the cut bonds' sizes, so the dense
tensor's singular values beyond that rank are lost (Eckart & Young 1936). The bound is the largest over all ways to
put the modes on two sides.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from factorized_moe._validation import check_dense
from factorized_moe.contraction.cuts import rank_bound
from factorized_moe.network import TensorNetwork

__all__ = ["error_bound"]

LARGEST_SIDE = 4096
"""Matrices whose smaller side is larger are left out: the bound is lower then, and still true."""

ROUNDING = 1e-13
"""Of the sum of squares: what the singular values' own errors may add up to."""


def error_bound(target: Tensor, network: TensorNetwork, *, split: bool = True) -> float:
    """A lower bound on the relative error, in the Frobenius norm, of any fit of a network to a tensor.

    Args:
        target: The dense tensor, ``(*expert_dims, I, O)``.
        network: A network of that shape.
        split: Whether to cut through an input or output mode that is split into a group of labels, too. Not true of
            a target whose input or output mode has been multiplied by a matrix.

    Returns:
        The bound, 0 where no cut is smaller than the matrix it leaves, and for a target of zeros.

    Raises:
        TypeError: If the target is not a tensor of a real floating type.
        ValueError: If it is not of the network's shape, or has an entry that is not finite.

    Examples:
        >>> from factorized_moe.decompositions import get_decomposition
        >>> matrix = torch.diag(torch.tensor([3.0, 4.0]))
        >>> bound = error_bound(matrix, get_decomposition("low_rank").network((), 2, 2, rank=1))
        >>> round(bound, 6)  # 3 of 5 is lost
        0.6
    """
    check_dense(target, network.shape)
    arranged = target.detach().to(torch.float64)
    if not torch.isfinite(arranged).all():
        raise ValueError("the target has a NaN or an infinite entry; a bound needs finite values")
    if not arranged.any():
        return 0.0
    arranged = arranged / arranged.norm()
    groups: list[tuple[str, ...]] = [(label,) for label in network.expert_labels]
    if network.in_padding or not split:
        # Padding is no part of the target's input mode, so the mode is left whole.
        groups += [network.in_labels, network.out_labels]
    else:
        groups += [(label,) for label in (*network.in_labels, *network.out_labels)]
        arranged = arranged.reshape([network.sizes[label] for label in network.external_labels])
    worst = 0.0
    for rows in _sides(len(groups)):
        columns = [k for k in range(len(groups)) if k not in rows]
        left, right = ([x for k in side for x in groups[k]] for side in (rows, columns))
        kept = rank_bound(network, left, right)
        matrix = arranged.permute(*rows, *columns).flatten(0, len(rows) - 1).flatten(1)
        if kept < min(matrix.shape) <= LARGEST_SIDE:
            worst = max(worst, _tail(matrix, kept))
    return float(worst**0.5)


def _sides(count: int) -> Iterator[tuple[int, ...]]:
    """Every way to put modes on two sides, once: the first mode is always on the first side."""
    for size in range(1, count):
        yield from (side for side in itertools.combinations(range(count), size) if side[0] == 0)


def _tail(matrix: Tensor, kept: int) -> float:
    """The sum of the squared singular values after the first ``kept``."""
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    if short.numel() <= 2**16:
        squares = torch.linalg.svdvals(short).square()
    else:
        squares = torch.linalg.eigvalsh(short @ short.mT).flip(0).clamp_min(0.0)
    return max(0.0, float(squares[kept:].sum()) - ROUNDING * len(squares))
