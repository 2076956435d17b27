"""hypothesis strategies that draw structures: sizes, ranks, batch shapes, whole networks. Values come from a seed.

Legend: `N_k` experts of mode k, `I` in_features, `O` out_features, `*batch` any leading shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from factorized_moe.decompositions import Decomposition, get_decomposition
from factorized_moe.decompositions.base import Rank, RankLike
from factorized_moe.network import Node, TensorNetwork
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["BATCH_SHAPES", "DrawInt", "DrawRank", "Structure", "draw_rank", "networks", "structures"]

DrawInt = Callable[[int, int], int]
"""Draws an int between two bounds, both included."""

DrawRank = Callable[[tuple[int, ...], DrawInt], RankLike]
"""From the dense shape and a way to draw ints to a rank."""

BATCH_SHAPES: tuple[tuple[int, ...], ...] = ((3,), (), (2, 3), (1,), (0,), (2, 0))
"""Leading shapes of inputs: a single sample, batches of one and two axes, empty ones."""


@dataclass(frozen=True)
class _SeededGaussians:
    """An initialisation, as a class so that it pickles."""

    seed: int

    def __call__(self, network: TensorNetwork, tensors: Mapping[str, Tensor]) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        for tensor in tensors.values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))


@dataclass(frozen=True)
class Structure:
    """The sizes, rank and batch shape of one test case, and the seed of its numbers.

    Args:
        expert_dims: The sizes of the expert modes.
        in_features: `I`.
        out_features: `O`.
        rank: A rank that suits the decomposition at these sizes.
        bias: Whether the experts have a bias.
        batch_shape: The leading shape of the input.
        seed: Where values come from.

    Examples:
        >>> structure = Structure((3, 2), 4, 5, rank=2, bias=True, batch_shape=(7,))
        >>> w, (x, coefficients) = structure.tensor("cp"), structure.arguments()
        >>> w(x, coefficients).shape
        torch.Size([7, 5])
    """

    expert_dims: tuple[int, ...]
    in_features: int
    out_features: int
    rank: RankLike
    bias: bool = False
    batch_shape: tuple[int, ...] = (3,)
    seed: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The dense shape, `(*expert_dims, I (+1), O)`."""
        return (*self.expert_dims, self.in_features + self.bias, self.out_features)

    def network(self, decomposition: str | Decomposition) -> TensorNetwork:
        """The decomposition's network of this structure."""
        source = get_decomposition(decomposition)
        *expert_dims, rows, out_features = self.shape
        return source.network(tuple(expert_dims), rows, out_features, source.resolve_rank(self.rank, self.shape))

    def tensor(self, decomposition: str | Decomposition, dtype: torch.dtype = torch.float64) -> FactorizedExpertTensor:
        """The factorised tensor of this structure; its parameters are standard Gaussians from the seed."""
        return FactorizedExpertTensor(
            self.expert_dims,
            self.in_features,
            self.out_features,
            decomposition,
            self.rank,
            bias=self.bias,
            init=_SeededGaussians(self.seed),
            dtype=dtype,
        )

    def arguments(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Tensor]]:
        """An input `(*batch, I)` and coefficients `(*batch, N_k)`, Gaussians from the seed that want gradients."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        x, *coefficients = (
            torch.randn((*self.batch_shape, size), generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
            for size in (self.in_features, *self.expert_dims)
        )
        return x, coefficients

    def cotangent(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """What a backward pass starts from, `(*batch, O)`, Gaussian from the seed."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        return torch.randn((*self.batch_shape, self.out_features), generator=generator, dtype=torch.float64).to(dtype)


def draw_rank(decomposition: str | Decomposition, largest: int = 4) -> DrawRank:
    """The default way to draw a rank: an int, or a tuple of different ints where the decomposition takes tuples.

    Args:
        decomposition: Its `check_rank` says which tuples it takes.
        largest: The largest entry.
    """
    source = get_decomposition(decomposition)

    def accepts(rank: Rank, shape: tuple[int, ...]) -> bool:
        try:
            return source.check_rank(rank, shape) == rank
        except ValueError:
            return False

    def draw(shape: tuple[int, ...], draw_int: DrawInt) -> RankLike:
        size = draw_int(1, largest)
        small, large = source.check_rank(1, shape), source.check_rank(2, shape)
        if isinstance(small, int) or isinstance(large, int):
            return size
        # Entries that do not follow the int are fixed, such as the first and last of a tensor train.
        entries = tuple(draw_int(1, largest) if a != b else a for a, b in zip(small, large, strict=True))
        ring = (*entries[:-1], entries[0])
        return next((rank for rank in (entries, ring) if accepts(rank, shape)), size)

    return draw


@st.composite
def structures(
    draw: st.DrawFn,
    decomposition: str | Decomposition = "cp",
    rank: DrawRank | None = None,
    expert_modes: int | None = None,
    largest: int = 4,
) -> Structure:
    """Draws a `Structure`: 0 to 5 expert modes, sizes from 1, any batch shape, with and without a bias.

    Args:
        draw: Given by hypothesis.
        decomposition: The decomposition that the rank must suit.
        rank: How to draw the rank; `draw_rank` by default.
        expert_modes: The number of expert modes, if it is not to be drawn.
        largest: The largest size of a mode.

    Examples:
        >>> from hypothesis import given, settings
        >>> @settings(max_examples=3, database=None)
        ... @given(structures("tucker"))
        ... def test(structure):
        ...     assert structure.tensor("tucker").to_dense().shape == structure.shape
        >>> test()
    """

    def draw_int(low: int, high: int) -> int:
        # hypothesis tries the first value first and shrinks to it: a size of 2 is simpler than the corner case 1.
        return draw(st.sampled_from(sorted(range(low, high + 1), key=lambda value: (abs(value - 2), value))))

    modes = draw(st.integers(0, 5)) if expert_modes is None else expert_modes
    expert_dims = tuple(draw_int(1, largest) for _ in range(modes))
    in_features, out_features = draw_int(1, largest + 1), draw_int(1, largest + 1)
    bias = draw(st.booleans())
    shape = (*expert_dims, in_features + bias, out_features)
    drawn_rank = (draw_rank(decomposition) if rank is None else rank)(shape, draw_int)
    batch_shape = draw(st.sampled_from(BATCH_SHAPES))
    seed = draw(st.integers(0, 2**16))
    return Structure(expert_dims, in_features, out_features, drawn_rank, bias, batch_shape, seed)


@st.composite
def networks(draw: st.DrawFn, expert_modes: int | None = None, largest: int = 3) -> TensorNetwork:
    """Draws any network: bonds that join two or more nodes, split and padded modes, sums, shared parameters.

    Args:
        draw: Given by hypothesis.
        expert_modes: The number of expert modes, 0 to 3 by default.
        largest: The largest size of a label.
    """
    sizes = st.integers(1, largest)
    modes = draw(st.integers(0, 3)) if expert_modes is None else expert_modes
    experts = {f"expert_{k}": draw(sizes) for k in range(modes)}
    inputs = {f"in_{k}": draw(sizes) for k in range(draw(st.integers(1, 2)))}
    outputs = {f"out_{k}": draw(sizes) for k in range(draw(st.integers(1, 2)))}
    external = experts | inputs | outputs
    label_sizes = external
    terms = []
    for term in range(draw(st.integers(1, 2))):
        # In a sum, a term without an expert label is the same for all of that mode's experts; the first has them all.
        carried = [x for x in external if not (term and x in experts and draw(st.booleans()))]
        bonds = {f"bond_{term}_{k}": draw(sizes) for k in range(draw(st.integers(0, 3)))}
        count = draw(st.integers(2 if bonds else 1, 4))
        label_lists: list[list[str]] = [[] for _ in range(count)]
        for label in (*carried, *bonds):
            fewest = 2 if label in bonds else 1
            places = draw(st.sets(st.integers(0, count - 1), min_size=fewest, max_size=min(count, fewest + 1)))
            for place in places:
                label_lists[place].append(label)
        label_sizes = label_sizes | bonds
        terms.append([Node(f"node_{term}_{k}", tuple(draw(st.permutations(x)))) for k, x in enumerate(label_lists)])
    return TensorNetwork(
        terms=tuple(tuple(_share(draw, term, label_sizes)) for term in terms),
        label_sizes=tuple(label_sizes.items()),
        expert_labels=tuple(experts),
        in_labels=tuple(inputs),
        out_labels=tuple(outputs),
        in_padding=draw(st.integers(0, math.prod(list(inputs.values())[1:]) - 1)),
    )


def _share(draw: st.DrawFn, term: list[Node], sizes: Mapping[str, int]) -> list[Node]:
    """Sometimes lets the last node read the first's parameter, where the shapes are equal."""
    first, last = term[0], term[-1]
    same = [sizes[x] for x in first.labels] == [sizes[x] for x in last.labels]
    if first is last or not same or not draw(st.booleans()):
        return term
    return [*term[:-1], Node(last.name, last.labels, parameter=first.name)]
