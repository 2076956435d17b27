"""Spectra of the experts' matrices and their similarity, through the factors: no expert is built at full size.

Legend: ``N`` experts of the whole grid, ``I`` in_features, ``O`` out_features, ``r`` singular values.

A factor that joins the input mode to the rest of the network by fewer than ``I`` entries is ``Q R``, with ``Q`` of
orthonormal columns, and ``R`` has the place of the factor in a smaller network; the output mode is treated alike. The
smaller network's experts have the singular values and inner products of the large ones. For CP they are ``R x R``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from factorized_moe._validation import check_kind
from factorized_moe.contraction import Request, dense_tensor, execute, make_plan
from factorized_moe.interpret.measures.measurement import Measurement, expert_columns
from factorized_moe.network import Node, TensorNetwork
from factorized_moe.spread import whole
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["ExpertSimilarity", "ExpertSpectra", "measure_similarity", "measure_spectra"]

MATRIX_ELEMENTS = 2**22
"""Elements of the matrices that are held at a time: 32 MiB."""

MOST_SIMILAR = 2**14
"""Experts up to which all pairs are compared: 2 GiB of similarities."""


@dataclass(frozen=True, eq=False)
class ExpertSpectra(Measurement):
    """The singular values of each expert's matrix, without its bias.

    Attributes:
        singular_values: The largest first, ``(N, r)``, float64. ``r`` is at most ``min(I, O)``; where the factors show
            that further ones are 0, these are left out.
        grid: The sizes of the expert modes.
    """

    singular_values: Tensor
    grid: tuple[int, ...]

    @property
    def effective_rank(self) -> Tensor:
        """The exponential of the entropy of the singular values' shares of their sum, ``(N,)``; 0 for a zero matrix.

        From 1 to the rank, which it is when all non-zero singular values are equal (Roy and Vetterli 2007).
        """
        total = self.singular_values.sum(dim=1, keepdim=True)
        shares = self.singular_values / torch.where(total > 0, total, 1.0)
        ranks: Tensor = torch.exp(-torch.special.xlogy(shares, shares).sum(dim=1))
        return ranks.where(total.squeeze(1) > 0, 0.0)

    @property
    def norms(self) -> Tensor:
        """The Frobenius norm of each expert's matrix, ``(N,)``."""
        norms: Tensor = torch.linalg.vector_norm(self.singular_values, dim=1)
        return norms

    def columns(self) -> dict[str, list[Any]]:
        """One row for each expert."""
        values = {
            "effective_rank": self.effective_rank,
            "norm": self.norms,
            "largest_singular_value": self.singular_values[:, 0],
        }
        return expert_columns(self.grid) | {name: tensor.tolist() for name, tensor in values.items()}


@torch.no_grad()
def measure_spectra(experts: FactorizedExpertTensor) -> ExpertSpectra:
    """The singular values of every expert's matrix ``(I, O)``, biases left out.

    With biases, ``experts.expert(i)`` has one row more, the bias, which has a norm but no direction of the input: its
    singular values are others. Those here are of ``experts.expert(i)[:-1]``.

    They are the roots of the eigenvalues of ``A A^T`` in float64, whatever the parameters' type: exact to about 1e-8 of
    an expert's largest, so smaller ones are noise.

    Args:
        experts: The experts of a layer, ``layer.experts``, or of a block, ``block.first`` and ``block.second``.

    Raises:
        ValueError: If a parameter is not finite.

    Examples:
        >>> w = FactorizedExpertTensor((64,), 32, 16, decomposition="cp", rank=4)
        >>> spectra = measure_spectra(w)
        >>> spectra.singular_values.shape
        torch.Size([64, 4])
        >>> torch.allclose(spectra.singular_values[5].float(), torch.linalg.svdvals(w.expert(5))[:4], atol=1e-5)
        True
    """
    check_kind("experts", experts, FactorizedExpertTensor)
    found = []
    for matrices in _matrices(*_compressed(*_without_bias(experts)), experts.in_features):
        wide = matrices.shape[1] <= matrices.shape[2]
        gram = matrices @ matrices.mT if wide else matrices.mT @ matrices
        found.append(torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(-1))
    return ExpertSpectra(torch.cat(found), experts.expert_dims)


@dataclass(frozen=True, eq=False)
class ExpertSimilarity(Measurement):
    """How similar the experts' matrices are, without their biases.

    Attributes:
        cosines: The inner product of two experts' matrices over their norms, ``(N, N)``, float64; NaN where one is 0.
        norms: Their Frobenius norms, ``(N,)``, float64.
        grid: The sizes of the expert modes.
    """

    cosines: Tensor
    norms: Tensor
    grid: tuple[int, ...]

    @property
    def nearest(self) -> Tensor:
        """For each expert the other one with the largest cosine, ``(N,)``, int64; -1 if there is no other."""
        others = self.cosines.clone().nan_to_num(-2.0).fill_diagonal_(-3.0)
        return others.argmax(dim=1) if len(others) > 1 else torch.full((1,), -1)

    def columns(self) -> dict[str, list[Any]]:
        """One row for each expert."""
        nearest = self.nearest
        cosine = [
            float(row[other]) if other >= 0 else math.nan for row, other in zip(self.cosines, nearest, strict=True)
        ]
        return expert_columns(self.grid) | {
            "norm": self.norms.tolist(),
            "nearest": nearest.tolist(),
            "cosine": cosine,
        }


@torch.no_grad()
def measure_similarity(experts: FactorizedExpertTensor) -> ExpertSimilarity:
    """The cosine similarity of all pairs of experts' matrices, biases left out.

    Their inner products are the contraction of the network with itself over inputs and outputs, in float64.

    Args:
        experts: As for `measure_spectra`.

    Raises:
        ValueError: If a parameter is not finite, or there are more than 16,384 experts.

    Examples:
        >>> w = FactorizedExpertTensor((64,), 32, 16, decomposition="tr", rank=3)
        >>> similarity = measure_similarity(w)
        >>> a, b = w.expert(5).flatten(), w.expert(9).flatten()
        >>> torch.allclose(similarity.cosines[5, 9].float(), torch.cosine_similarity(a, b, dim=0), atol=1e-5)
        True
    """
    check_kind("experts", experts, FactorizedExpertTensor)
    number = math.prod(experts.expert_dims)
    if number > MOST_SIMILAR:
        raise ValueError(
            f"{number:,} experts have {number:,} x {number:,} similarities, {MOST_SIMILAR:,} experts are the most; "
            "compare a tensor with fewer experts"
        )
    network, operands = _compressed(*_without_bias(experts))
    if len(network.in_labels) > 1 and (network.in_padding or experts.bias):
        gram = _gram_of_matrices(network, operands, experts.in_features)
    else:
        doubled = _doubled(network)
        first, second = (
            doubled.expert_labels[: len(experts.expert_dims)],
            doubled.expert_labels[len(experts.expert_dims) :],
        )
        pairs = itertools.product(*(_by_terms(network, operands) for _ in range(2)))
        plan = make_plan(doubled, Request((), (*first, *second)))
        gram = execute(plan, [operand for left, right in pairs for operand in (*left, *right)]).reshape(number, number)
    norms = gram.diagonal().clamp(min=0).sqrt()
    return ExpertSimilarity((gram / norms[:, None] / norms).clamp(-1, 1), norms, experts.expert_dims)


def _without_bias(experts: FactorizedExpertTensor) -> tuple[TensorNetwork, list[Tensor]]:
    """The network in float64, with the bias row cut off where the input mode is one label."""
    network, operands = experts.network, [whole(operand).double() for operand in experts.weight().operands]
    for node, operand in zip(network.nodes, operands, strict=True):
        if not torch.isfinite(operand).all():
            raise ValueError(
                f"parameter {node.parameter!r} holds a NaN or an infinite value; its spectrum is undefined"
            )
    if experts.bias and len(network.in_labels) == 1:
        label = network.in_labels[0]
        operands = [
            operand.narrow(node.labels.index(label), 0, experts.in_features) if label in node.labels else operand
            for node, operand in zip(network.nodes, operands, strict=True)
        ]
        network = _resized(network, {label: experts.in_features})
    return network, operands


def _compressed(network: TensorNetwork, operands: Sequence[Tensor]) -> tuple[TensorNetwork, list[Tensor]]:
    """A network with smaller input and output modes whose experts have the same singular values and inner products."""
    smaller = list(operands)
    # Which rows of an input group are padding, or the bias, is known only while its labels have their sizes.
    inputs = network.in_labels if len(network.in_labels) == 1 else ()
    sizes = {}
    for label in (*inputs, *network.out_labels):
        places = [number for number, node in enumerate(network.nodes) if label in node.labels]
        if len(places) != len(network.terms):
            continue  # two nodes of one term carry it
        moved = [smaller[k].movedim(network.nodes[k].labels.index(label), 0) for k in places]
        columns = torch.cat([tensor.flatten(1) for tensor in moved], dim=1)
        if columns.shape[1] >= columns.shape[0]:
            continue
        pieces = torch.linalg.qr(columns, mode="r").R.split([tensor[0].numel() for tensor in moved], dim=1)
        sizes[label] = len(pieces[0])
        for k, tensor, piece in zip(places, moved, pieces, strict=True):
            shaped = piece.reshape(-1, *tensor.shape[1:])
            smaller[k] = shaped.movedim(0, network.nodes[k].labels.index(label)).contiguous()
    return _resized(network, sizes), smaller


def _resized(network: TensorNetwork, sizes: dict[str, int]) -> TensorNetwork:
    """The network with other sizes of some labels; nodes that shared a parameter no longer do."""
    terms = tuple(tuple(Node(node.name, node.labels) for node in term) for term in network.terms)
    return replace(network, terms=terms, label_sizes=tuple((network.sizes | sizes).items()))


def _matrices(network: TensorNetwork, operands: Sequence[Tensor], in_features: int) -> Iterator[Tensor]:
    """The experts' matrices in the order of the grid, as many at a time as `MATRIX_ELEMENTS` allow."""
    *outer, inner = network.expert_labels or ("",)
    *_, rows, columns = network.shape
    keep = min(rows, in_features)
    if not inner:
        yield dense_tensor(network, operands)[None, :keep]
        return
    step = max(1, MATRIX_ELEMENTS // (rows * columns))
    for indices in itertools.product(*(range(network.sizes[label]) for label in outer)):
        for start in range(0, network.sizes[inner], step):
            count = min(step, network.sizes[inner] - start)
            some = [
                operand.narrow(node.labels.index(inner), start, count) if inner in node.labels else operand
                for node, operand in zip(network.nodes, operands, strict=True)
            ]
            part = _resized(network, {inner: count})
            yield dense_tensor(part, some, dict(zip(outer, indices, strict=True)))[:, :keep]


def _doubled(network: TensorNetwork) -> TensorNetwork:
    """The network beside a copy of itself that shares its input and output labels: the products of all terms."""
    shared = {*network.in_labels, *network.out_labels}

    def other(label: str) -> str:
        return label if label in shared else f"{label}_other"

    def copied(term: tuple[Node, ...], mark: str, rename: bool) -> list[Node]:
        return [Node(f"{node.name}_{mark}", tuple(other(x) if rename else x for x in node.labels)) for node in term]

    terms = tuple(
        (*copied(left, f"left_{i}_{j}", rename=False), *copied(right, f"right_{i}_{j}", rename=True))
        for (i, left), (j, right) in itertools.product(enumerate(network.terms), repeat=2)
    )
    sizes = network.sizes | {other(label): size for label, size in network.label_sizes}
    return replace(
        network,
        terms=terms,
        label_sizes=tuple(sizes.items()),
        expert_labels=(*network.expert_labels, *(other(label) for label in network.expert_labels)),
    )


def _by_terms(network: TensorNetwork, operands: Sequence[Tensor]) -> list[list[Tensor]]:
    remaining = iter(operands)
    return [list(itertools.islice(remaining, len(term))) for term in network.terms]


def _gram_of_matrices(network: TensorNetwork, operands: Sequence[Tensor], in_features: int) -> Tensor:
    """The inner products of all pairs, from the matrices themselves, some at a time."""
    rows = []
    for some in _matrices(network, operands, in_features):
        others = _matrices(network, operands, in_features)
        rows.append(torch.cat([some.flatten(1) @ other.flatten(1).T for other in others], dim=1))
    return torch.cat(rows)
