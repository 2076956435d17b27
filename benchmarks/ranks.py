"""Ranks that give a layer or a block as many parameters as what it replaces, and never more.

Legend: I in_features, H hidden_features, O out_features, N experts (one expert mode), R the CP rank,
(S, S, R, S) the tensor ring's bonds. Biases, the gate and an input LayerNorm are counted.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["RING_BOND", "block_parameters", "largest_rank", "layer_parameters", "rank_name", "rank_of", "rank_step"]

RING_BOND = 4
"""The bonds of the tensor ring beside the expert mode, as in the paper (Oldfield et al. 2024)."""


def rank_of(decomposition: str, size: int, modes: int = 1) -> int | tuple[int, ...]:
    """The rank that one number stands for: CP's, or the tensor ring's bond between input and output."""
    return size if decomposition == "cp" else (*(RING_BOND,) * (modes + 1), size, RING_BOND)


def rank_name(decomposition: str, size: int, modes: int = 1) -> str:
    """A rank in words.

    Examples:
        >>> rank_name("cp", 552), rank_name("tr", 146)
        ('CP, rank 552', 'TR, bonds 4/4/146')
    """
    rank = rank_of(decomposition, size, modes)
    return f"CP, rank {rank}" if isinstance(rank, int) else f"TR, bonds {'/'.join(map(str, rank[:-1]))}"


def layer_parameters(decomposition: str, experts: int, in_features: int, out_features: int, size: int) -> int:
    """Parameters of a gated layer: ``R (N + I + 1 + O) + I N`` for CP, for a ring ``S S N + S R (I + 1 + O) + I N``."""
    gate = in_features * experts
    return _tensor(decomposition, experts, in_features, out_features, size) + gate


def block_parameters(
    decomposition: str, experts: int, in_features: int, hidden_features: int, out_features: int, size: int
) -> int:
    """Parameters of a block: two expert tensors, one gate ``I N`` and a LayerNorm of ``2 I``."""
    first = _tensor(decomposition, experts, in_features, hidden_features, size)
    second = _tensor(decomposition, experts, hidden_features, out_features, size)
    return first + second + in_features * experts + 2 * in_features


def rank_step(decomposition: str) -> int:
    """Ranks are multiples of this, so that the widths of the products are multiples of 16.

    Products of other widths leave a part of the vector registers empty.
    """
    return 16 if decomposition == "cp" else 16 // RING_BOND


def largest_rank(parameters: Callable[[int], int], limit: int, step: int = 1) -> int:
    """The largest rank with at most ``limit`` parameters, by bisection.

    Args:
        parameters: The number of parameters of a rank, growing with it.
        limit: The most parameters.
        step: What the rank is a multiple of, if it can be.

    Returns:
        The rank. The paper's code rounds up instead, so its ranks can be one larger.

    Raises:
        ValueError: If rank 1 has too many already.

    Examples:
        >>> mlp = 2 * 768 * 3072 + 3072 + 768
        >>> largest_rank(lambda size: block_parameters("cp", 256, 768, 3072, 768, size), mlp)
        552
    """
    if parameters(1) > limit:
        raise ValueError(f"rank 1 has {parameters(1):,} parameters, more than the limit of {limit:,}")
    low, high = 1, 2
    while parameters(high) <= limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(middle) <= limit else (low, middle)
    return low - low % step if low >= step else low


def _tensor(decomposition: str, experts: int, in_features: int, out_features: int, size: int) -> int:
    if decomposition == "cp":
        return size * (experts + in_features + 1 + out_features)
    return RING_BOND**2 * experts + RING_BOND * size * (in_features + 1 + out_features)
