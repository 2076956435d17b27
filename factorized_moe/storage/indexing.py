"""Parts of a dense tensor, still as a network: each index acts on the nodes that carry the mode's label.

Legend: *mode* one of the dense tensor's, ``(*expert_dims, I, O)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from factorized_moe._scalars import is_whole
from factorized_moe.contraction import dense_tensor
from factorized_moe.network import Node, TensorNetwork

__all__ = ["Index", "index_network"]

Index = int | slice | Sequence[int] | Tensor
"""What one mode may be indexed by."""

Operand = tuple[Node, Tensor]


def index_network(
    network: TensorNetwork, operands: Sequence[Tensor], indices: tuple[Index, ...]
) -> tuple[TensorNetwork, tuple[Tensor, ...]] | Tensor:
    """The network of a part of the dense tensor, and a tensor for each of its nodes; gradients pass through.

    An int takes its mode out. The last two modes that are left are the new network's input and output.

    Args:
        network: The network.
        operands: One tensor for each node, in order.
        indices: For each mode from the first an int, a slice, or ints to choose.

    Returns:
        Network and tensors; the part itself, as a tensor, if fewer than two modes are left.

    Raises:
        IndexError: If an index is out of range, or there are more than modes.
        TypeError: If an index is of another type.
        ValueError: If nothing is left, or a mode is one that the network splits over several labels.
    """
    modes = [*((label,) for label in network.expert_labels), network.in_labels, network.out_labels]
    if len(indices) > len(modes):
        raise IndexError(f"{len(indices)} indices for {len(modes)} modes of shape {network.shape}")
    chosen: dict[str, list[int]] = {}
    left = list(modes)
    for labels, index, size in zip(modes, indices, network.shape, strict=False):
        if isinstance(index, slice) and index == slice(None):
            continue
        if len(labels) > 1:
            raise ValueError(
                f"a mode of shape {network.shape} is split over the labels {labels}, so only ':' indexes it; index "
                "to_tensor()"
            )
        chosen[labels[0]] = _positions(index, size)
        if is_whole(index):
            left.remove(labels)
    parts = [[(node, _part(node, operand, chosen)) for node, operand in term] for term in _terms(network, operands)]
    if len(left) < 2:
        smaller = {label: len(positions) for label, positions in chosen.items()}
        whole = replace(_plain(network), label_sizes=tuple((network.sizes | smaller).items()))
        answer = dense_tensor(whole, [operand for term in parts for _, operand in term])
        return answer.reshape([whole.size_of(labels) - _padding(network, labels) for labels in left])
    *experts, inputs, outputs = left
    if _padding(network, outputs):
        raise ValueError("the input mode is padded, so it cannot become the last one; index to_tensor()")
    gone = chosen.keys() - {label for labels in left for label in labels}
    sizes = {label: len(chosen.get(label, range(size))) for label, size in network.label_sizes if label not in gone}
    terms = [
        _without(term, gone, number, {x: sizes[x] for x in (*inputs, *outputs)}) for number, term in enumerate(parts)
    ]
    part = TensorNetwork(
        terms=tuple(tuple(node for node, _ in term) for term in terms),
        label_sizes=tuple(sizes.items()),
        expert_labels=tuple(label for (label,) in experts),
        in_labels=inputs,
        out_labels=outputs,
        in_padding=_padding(network, inputs),
    )
    return part, tuple(operand for term in terms for _, operand in term)


def _positions(index: Index, size: int) -> list[int]:
    if isinstance(index, slice):
        positions = list(range(*index.indices(size)))
    elif is_whole(index):
        positions = [int(index)]
    else:
        positions = index.tolist() if isinstance(index, Tensor) else index  # type: ignore[assignment]
        if not isinstance(positions, list | tuple) or not all(is_whole(position) for position in positions):
            raise TypeError(f"a mode is indexed by an int, a slice or a list of ints, got {index!r}")
    if not positions:
        raise ValueError(f"index {index!r} leaves nothing of a mode of size {size}")
    for position in positions:
        if not -size <= position < size:
            raise IndexError(f"index {position} is out of range for a mode of size {size}")
    return [int(position) % size for position in positions]


def _terms(network: TensorNetwork, operands: Sequence[Tensor]) -> list[list[Operand]]:
    rest = iter(operands)
    return [[(Node(node.name, node.labels), next(rest)) for node in term] for term in network.terms]


def _plain(network: TensorNetwork) -> TensorNetwork:
    """The same network, each node with a parameter of its own."""
    return replace(network, terms=tuple(tuple(Node(node.name, node.labels) for node in term) for term in network.terms))


def _part(node: Node, operand: Tensor, chosen: dict[str, list[int]]) -> Tensor:
    for axis, label in enumerate(node.labels):
        if label in chosen:
            operand = operand.index_select(axis, torch.tensor(chosen[label], device=operand.device))
    return operand


def _without(term: list[Operand], gone: set[str], number: int, needed: dict[str, int]) -> list[Operand]:
    """A term whose labels of size 1 are taken out, with nodes of ones for labels that every term has to carry.

    A node that has no label left is multiplied into another one.
    """
    kept: list[Operand] = []
    scale = term[0][1].new_ones(())
    for node, operand in term:
        axes = [axis for axis, label in enumerate(node.labels) if label not in gone]
        left = operand.reshape([operand.shape[axis] for axis in axes])
        if axes:
            kept.append((Node(node.name, tuple(node.labels[axis] for axis in axes)), left))
        else:
            scale = scale * left
    carried = {label for node, _ in kept for label in node.labels}
    for label, size in needed.items():  # such as those of experts that all have this term
        if label not in carried:
            kept.append((Node(f"ones_{number}_{label}", (label,)), scale.new_ones(size)))
    (node, operand), *others = kept
    return [(node, operand * scale), *others]


def _padding(network: TensorNetwork, labels: tuple[str, ...]) -> int:
    return network.in_padding if labels == network.in_labels else 0
