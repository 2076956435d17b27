"""Inner products and distances of whole expert tensors, through the factors: no dense tensor is built.

Legend: ``N`` experts of the whole grid, ``I`` in_features, ``O`` out_features.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from factorized_moe._validation import check_kind
from factorized_moe.contraction import Request, execute, make_plan
from factorized_moe.network import Node, TensorNetwork
from factorized_moe.spread import whole
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["distance", "inner"]


@torch.no_grad()
def inner(first: FactorizedExpertTensor, second: FactorizedExpertTensor) -> float:
    """The inner product of two expert tensors, biases included: the sum of the products of all their entries.

    They may be of different decompositions and ranks. Both networks are contracted as one, in float64; where their
    input or output modes are split into different groups, or padded, experts are compared matrix by matrix.

    Args:
        first: The experts of a layer, ``layer.experts``.
        second: Others of the same sizes, with or without biases as the first.

    Raises:
        TypeError: If something else than expert tensors is given.
        ValueError: If their sizes differ.

    Examples:
        >>> cp = FactorizedExpertTensor((8, 3), 16, 32, decomposition="cp", rank=4)
        >>> tr = FactorizedExpertTensor((8, 3), 16, 32, decomposition="tr", rank=2)
        >>> abs(inner(cp, tr) - (cp.to_dense() * tr.to_dense()).sum().item()) < 1e-4
        True
    """
    _check_pair(first, second)
    operands = [[whole(operand).double() for operand in each.weight().operands] for each in (first, second)]
    groups = [_groups(each.network) for each in (first, second)]
    if groups[0] != groups[1] or first.network.in_padding or second.network.in_padding:
        return _by_matrices(first, second)
    joined = _joined(first.network, second.network)
    terms = (_by_terms(each.network, some) for each, some in zip((first, second), operands, strict=True))
    pairs = itertools.product(*terms)
    plan = make_plan(joined, Request((), ()))
    tensors = []
    for (left, right), term in zip(pairs, joined.terms, strict=True):
        ones = [left[0].new_ones(joined.sizes[node.labels[0]]) for node in term[len(left) + len(right) :]]
        tensors += [*left, *right, *ones]
    return float(execute(plan, tensors))


def distance(first: FactorizedExpertTensor, second: FactorizedExpertTensor, *, relative: bool = False) -> float:
    """The Frobenius norm of the difference of two expert tensors, biases included.

    The root of ``<A, A> - 2 <A, B> + <B, B>``, each as `inner` finds it, so tensors nearer to each other than about
    1e-8 of their norms are not told apart from equal ones.

    Args:
        first: As for `inner`.
        second: As for `inner`.
        relative: Whether to divide by the norm of the second; infinite if that alone is 0.

    Raises:
        TypeError: As for `inner`.
        ValueError: As for `inner`.

    Examples:
        >>> w = FactorizedExpertTensor((8,), 16, 32, decomposition="cp", rank=4)
        >>> other = FactorizedExpertTensor.from_dense(w.to_dense().detach(), "tucker", (8, 8, 8))
        >>> distance(w, other, relative=True) < 1e-3
        True
    """
    norm = inner(second, second)
    square = max(0.0, inner(first, first) - 2 * inner(first, second) + norm)
    if not relative:
        return math.sqrt(square)
    return math.sqrt(square / norm) if norm else (math.inf if square else 0.0)


def _check_pair(first: FactorizedExpertTensor, second: FactorizedExpertTensor) -> None:
    for name, given in (("first", first), ("second", second)):
        check_kind(name, given, FactorizedExpertTensor)
    shapes = [tuple(each.network.shape) for each in (first, second)]
    if shapes[0] != shapes[1] or first.bias != second.bias:
        biases = [f"{'with' if each.bias else 'without'} biases" for each in (first, second)]
        raise ValueError(
            f"the tensors have shapes {shapes[0]} {biases[0]} and {shapes[1]} {biases[1]}, expected the same"
        )


def _groups(network: TensorNetwork) -> list[list[int]]:
    """The sizes of the labels that form the input and the output mode."""
    return [[network.sizes[label] for label in labels] for labels in (network.in_labels, network.out_labels)]


def _joined(first: TensorNetwork, second: TensorNetwork) -> TensorNetwork:
    """Both networks with the labels of their modes in common: for each pair of terms the product.

    A product that is the same for all experts of a mode counts once for each of them: it gets a node of ones.
    """
    mine = (*first.expert_labels, *first.in_labels, *first.out_labels)
    theirs = (*second.expert_labels, *second.in_labels, *second.out_labels)
    name = dict(zip(theirs, mine, strict=True)) | {bond: f"{bond}_second" for bond in second.bonds}
    while clash := set(name.values()) - set(mine) & {*first.sizes}:  # a bond of the first that is called so
        name = {old: f"{new}_" if new in clash and old in second.bonds else new for old, new in name.items()}

    def copied(term: tuple[Node, ...], mark: str, names: dict[str, str]) -> list[Node]:
        return [Node(f"{node.name}_{mark}", tuple(names.get(x, x) for x in node.labels)) for node in term]

    terms = []
    for (i, left), (j, right) in itertools.product(enumerate(first.terms), enumerate(second.terms)):
        nodes = [*copied(left, f"left_{i}_{j}", {}), *copied(right, f"right_{i}_{j}", name)]
        missing = [label for label in first.expert_labels if not any(label in node.labels for node in nodes)]
        terms.append((*nodes, *(Node(f"ones_{i}_{j}_{label}", (label,)) for label in missing)))
    sizes = first.sizes | {name[label]: size for label, size in second.label_sizes}
    return TensorNetwork(tuple(terms), tuple(sizes.items()), first.expert_labels, first.in_labels, first.out_labels)


def _by_terms(network: TensorNetwork, operands: Sequence[Tensor]) -> list[list[Tensor]]:
    remaining = iter(operands)
    return [list(itertools.islice(remaining, len(term))) for term in network.terms]


def _by_matrices(first: FactorizedExpertTensor, second: FactorizedExpertTensor) -> float:
    """Expert after expert."""
    return sum(
        float((first.expert(*index).double() * second.expert(*index).double()).sum())
        for index in itertools.product(*map(range, first.expert_dims))
    )
