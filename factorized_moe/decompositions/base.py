"""The contract for a decomposition: one method that describes a network; everything else has a derived default.

Legend: ``N_k`` experts of mode k, ``I`` in_features (one more with a bias), ``O`` out_features.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any

from torch import Tensor

from factorized_moe._scalars import is_whole
from factorized_moe.contraction.costs import num_parameters
from factorized_moe.decompositions.initialisation import Initialisation, balanced, variance_preserving
from factorized_moe.network import TensorNetwork

__all__ = [
    "Decomposition",
    "GivenNetwork",
    "Initialisation",
    "Rank",
    "RankLike",
    "find_initialisation",
    "largest_within",
    "leave_empty",
    "variance_preserving",
]

Rank = int | tuple[int, ...]
"""A rank in its canonical form: an int, or one int for each mode or bond."""


RankLike = int | float | str | Sequence[int]
"""What a rank may be given as: an int, a tuple, ``"same"``, or a fraction of the dense size."""


class Decomposition(ABC):
    """The base class of tensor decompositions: subclass it, write `network`, and register an instance.

    Attributes:
        initialisations: Ways to fill the parameters, by name; the first is the default. Every decomposition has
            ``"balanced"`` and ``"variance_preserving"``.
        tensorly_algorithm: The name of the function in ``tensorly.decomposition`` that fits it, if there is one.
        tensorly_starts: Keyword arguments for that function; each is tried, and the best result is kept.
        tltorch_name: The name of the same factorisation in TensorLy-Torch, if there is one.

    Examples:
        >>> from factorized_moe import FactorizedExpertTensor, register
        >>> class SharedInput(Decomposition):
        ...     def network(self, expert_dims, in_features, out_features, rank):
        ...         experts = [f"expert_{k}" for k in range(len(expert_dims))]
        ...         nodes = {"input": "in rank", "core": [*experts, "rank", "out"]}
        ...         return TensorNetwork.from_modes(
        ...             expert_dims, in_features, out_features, nodes=nodes, bonds={"rank": rank}
        ...         )
        >>> w = FactorizedExpertTensor((4,), 8, 6, decomposition=SharedInput(), rank=3)
        >>> w.to_dense().shape
        torch.Size([4, 8, 6])
    """

    initialisations: Mapping[str, Initialisation] = MappingProxyType(
        {"balanced": balanced, "variance_preserving": variance_preserving}
    )
    tensorly_algorithm: str | None = None
    tensorly_starts: Sequence[Mapping[str, Any]] = (MappingProxyType({}),)
    tltorch_name: str | None = None

    @abstractmethod
    def network(self, expert_dims: tuple[int, ...], in_features: int, out_features: int, rank: Any) -> TensorNetwork:
        """Describe the tensor network of a weight of given sizes and rank: the one method to write.

        Args:
            expert_dims: The sizes of the expert modes, none or more.
            in_features: The size of the input mode; with a bias, one more than the layer's.
            out_features: The size of the output mode.
            rank: A rank as `check_rank` returns it.
        """

    def check_rank(self, rank: Rank, shape: tuple[int, ...]) -> Rank:
        """Hook: bring a rank to its canonical form, or refuse it.

        Args:
            rank: A positive int, or a tuple of positive ints.
            shape: The dense shape, ``(*expert_dims, I, O)``.

        Raises:
            ValueError: If the rank does not suit this decomposition. By default, if it is not one int.
        """
        if not isinstance(rank, int):
            raise ValueError(f"rank of {type(self).__name__} is one int, got {rank}")
        return rank

    def useful_rank(self, rank: Rank, shape: tuple[int, ...]) -> Rank:
        """Hook: a rank cut down to where more parameters would add nothing; by default the rank itself.

        A rank given as ints is taken as it is. Budgets choose among useful ranks, and a fit pads with zeros.

        Args:
            rank: A rank as `check_rank` returns it.
            shape: The dense shape, ``(*expert_dims, I, O)``.
        """
        return rank

    def to_tensorly(self, tensors: Mapping[str, Tensor]) -> Any:
        """Hook: TensorLy's tuple type holding views of the parameters, which are given by name."""
        raise TypeError(f"TensorLy has no tensor type for {type(self).__name__}")

    def from_tensorly(self, value: Any) -> dict[str, Tensor]:
        """Hook: the parameters by name, from TensorLy's tuple type (or a plain tuple or list of the same form)."""
        raise TypeError(f"TensorLy has no tensor type for {type(self).__name__}")

    def tltorch_arguments(self, value: Any) -> tuple[Any, ...]:
        """Hook: what the TensorLy-Torch class is made from, given what `to_tensorly` returns."""
        return tuple(value)

    def from_tltorch(self, value: Any) -> dict[str, Tensor]:
        """Hook: the parameters by name, from the TensorLy-Torch class."""
        return self.from_tensorly(value.decomposition)

    def resolve_rank(self, rank: RankLike, shape: tuple[int, ...]) -> Rank:
        """The canonical rank for a dense shape.

        Args:
            rank: An int, a tuple of ints in TensorLy's convention, ``"same"`` (as many parameters as the dense
                tensor), or a float between 0 and 1 (that fraction of them). The last two never give more parameters
                than asked for.
            shape: The dense shape, ``(*expert_dims, I, O)``.

        Raises:
            TypeError: If the rank is of no such type.
            ValueError: If it is out of range, of the wrong length, or a budget is too small.
        """
        if isinstance(rank, bool | bytes | bytearray) or not isinstance(rank, Integral | Real | str | Sequence):
            raise TypeError(f"rank is an int, a tuple of ints, 'same', a fraction or a Budget, got {rank!r}")
        if isinstance(rank, str):
            if rank != "same":
                raise ValueError(f"the only rank given as a word is 'same', got {rank!r}")
            return self._rank_for_budget(math.prod(shape), shape)
        if isinstance(rank, Integral):
            if rank < 1:
                raise ValueError(f"rank must be at least 1, got {rank}")
            return self.check_rank(int(rank), shape)
        if isinstance(rank, Real):
            if not 0.0 < float(rank) <= 1.0:
                raise ValueError(
                    f"a float rank is a fraction of the dense size, above 0 and at most 1, got {rank!r}; "
                    "give an int for a rank"
                )
            return self._rank_for_budget(int(float(rank) * math.prod(shape)), shape)
        entries = tuple(rank)
        if any(not is_whole(entry) or entry < 1 for entry in entries):
            raise ValueError(f"every entry of a rank tuple is a positive int, got {entries}")
        return self.check_rank(tuple(int(entry) for entry in entries), shape)

    def _rank_for_budget(self, budget: int, shape: tuple[int, ...]) -> Rank:
        """The useful part of the largest int rank within a budget, by bisection."""
        *expert_dims, in_features, out_features = shape

        def cost(size: int) -> int:
            rank = self.useful_rank(self.check_rank(size, shape), shape)
            return num_parameters(self.network(tuple(expert_dims), in_features, out_features, rank))

        size = largest_within(cost, budget)
        if not size:
            raise ValueError(
                f"a budget of {budget:,} parameters is too small for {type(self).__name__} of shape {shape}: "
                f"the smallest possible is {cost(1):,}"
            )
        return self.useful_rank(self.check_rank(size, shape), shape)


def largest_within(cost: Callable[[int], int], limit: int) -> int:
    """The largest size whose cost is within a limit, by bisection; 0 if there is none.

    Args:
        cost: From a size, 1 or more, to its cost, which grows with it or at some size stops growing.
        limit: The most that it may cost. A size above the limit is not looked for.

    Examples:
        >>> largest_within(lambda size: 7 * size, 50)
        7
    """
    low, high = 0, max(2, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2 if low else 1
        if cost(middle) <= limit:
            low = middle
        elif low:
            high = middle
        else:
            return 0
    return low


@dataclass(frozen=True)
class GivenNetwork(Decomposition):
    """A decomposition from one network: the same nodes and labels, for other sizes too.

    The rank is one int for each bond, in the network's order, or one int for all. The number of expert modes is the
    network's, and an input or output mode that is split into a group keeps its size.

    Args:
        given: The network, for instance from `TensorNetwork.parse`.

    Examples:
        >>> from factorized_moe import FactorizedExpertTensor
        >>> given = TensorNetwork.parse("expert_0 a in, a b, b out; expert_0=2 in=2 out=2 a=2 b=2")
        >>> w = FactorizedExpertTensor((8,), 16, 32, decomposition=GivenNetwork(given), rank=(4, 6))
        >>> {name: tuple(p.shape) for name, p in w.weight.named_parameters()}
        {'expert_0_input': (8, 4, 16), 'core': (4, 6), 'output': (6, 32)}
    """

    given: TensorNetwork

    def check_rank(self, rank: Rank, shape: tuple[int, ...]) -> Rank:
        bonds = self.given.bonds
        ranks = (rank,) * len(bonds) if isinstance(rank, int) else rank
        if len(ranks) != len(bonds):
            raise ValueError(f"rank of GivenNetwork is one int for each of the bonds {bonds}, got {ranks}")
        return ranks

    def network(
        self, expert_dims: tuple[int, ...], in_features: int, out_features: int, rank: tuple[int, ...]
    ) -> TensorNetwork:
        given = self.given
        if len(expert_dims) != len(given.expert_labels):
            raise ValueError(f"the given network has {len(given.expert_labels)} expert modes, asked was {expert_dims}")
        sizes = given.sizes | dict(zip(given.expert_labels, expert_dims, strict=True))
        sizes |= dict(zip(given.bonds, rank, strict=True))
        for labels, size in ((given.in_labels, in_features), (given.out_labels, out_features)):
            if len(labels) == 1:
                sizes[labels[0]] = size
        return replace(given, label_sizes=tuple(sizes.items()))


def find_initialisation(decomposition: Decomposition, init: str | Initialisation | None) -> Initialisation:
    """The initialisation of a name, the first one for ``None``; a function is returned as it is.

    Raises:
        TypeError: If it is neither.
        ValueError: If the decomposition has none of that name, or none at all.
    """
    known = decomposition.initialisations
    if not known and not callable(init):
        name = type(decomposition).__name__
        raise ValueError(f"{name} has no initialisations; name one there or give init a function")
    if init is None:
        return next(iter(known.values()))
    if isinstance(init, str):
        if init not in known:
            raise ValueError(f"{type(decomposition).__name__} has no initialisation {init!r}; it has {sorted(known)}")
        return known[init]
    if not isinstance(init, Callable):  # type: ignore[arg-type]
        raise TypeError(f"init is a name or a function that fills the parameters, got {init!r}")
    return init


def leave_empty(network: TensorNetwork, tensors: Mapping[str, Tensor]) -> None:
    """An initialisation of zeros, for parameters that are about to be assigned."""
    for tensor in tensors.values():
        tensor.zero_()
