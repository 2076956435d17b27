"""Two nodes with fixed bridges between them, set to the best approximation of a matrix in closed form.

With the labels of input and output that both nodes hold as a batch ``E``, the matrix is arranged as
``(E, left, right)`` and the network is ``X K Y``, with ``K`` the contracted bridges. Whatever ``K`` is, its singular
value decomposition is taken out of ``X`` and ``Y``, and what is left is the truncated decomposition of the matrix.

Legend: ``E`` labels held by both, ``S`` bonds held by both, ``P`` other bonds of the first, ``Q`` of the second.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from factorized_moe.network import TensorNetwork
from factorized_moe.surgery.skeleton import Part

__all__ = ["contract", "solve_pair"]

SMALLEST = 1e-10
"""Singular values below this part of the largest count as zero, and moments of inputs are taken to be above it."""

Labelled = tuple[tuple[str, ...], Tensor]
"""A tensor with the labels of its axes."""


def contract(tensors: Sequence[Labelled], output: Sequence[str], network: TensorNetwork) -> Tensor | float:
    """The product of some tensors summed over all labels but the output's; size 1 where none has a label."""
    if not tensors:
        return 1.0
    letters = {label: k for k, label in enumerate(network.sizes)}
    arguments: list[object] = []
    for labels, tensor in tensors:
        arguments += [tensor, [letters[label] for label in labels]]
    present = [label for label in output if any(label in labels for labels, _ in tensors)]
    result: Tensor = torch.einsum(*arguments, [letters[label] for label in present])
    return result.reshape([network.sizes[label] if label in present else 1 for label in output])


def solve_pair(
    matrix: Tensor,
    network: TensorNetwork,
    carriers: Sequence[Part],
    bridges: Sequence[Labelled],
    generator: torch.Generator | None,
    covariance: Tensor | None,
) -> dict[str, Tensor]:
    """The two carriers' tensors over their live labels, by the nodes' names.

    What of them has no effect, because the matrix or the bridges have no use for it, is random on one side, so that
    every entry is reached by a gradient.

    Args:
        matrix: The matrix, ``(I, O)``, float64.
        network: A network of one term.
        carriers: The two parts that hold labels of the input or the output.
        bridges: The tensors between them.
        generator: Where random numbers come from.
        covariance: The second moments of the inputs, ``(I, I)``.

    Raises:
        ValueError: If there is a covariance and the input labels are not the first carrier's alone.
    """
    size = network.size_of
    first, second = sorted(carriers, key=lambda part: network.in_labels[0] not in part.labels)
    external = (*network.in_labels, *network.out_labels)
    both = [label for label in external if label in first.live and label in second.live]
    left = [label for label in external if label in first.live and label not in both]
    right = [label for label in external if label in second.live and label not in both]
    bonds = [[b for b in part.live if b in network.bonds] for part in (first, second)]
    shared = [b for b in bonds[0] if b in bonds[1]]
    own = [[b for b in mine if b not in shared] for mine in bonds]

    grouped = torch.nn.functional.pad(matrix, (0, 0, 0, network.in_padding))
    grouped = grouped.reshape([network.sizes[label] for label in external])
    grouped = grouped.permute([external.index(label) for label in (*both, *left, *right)])
    grouped = grouped.reshape(size(both), size(left), size(right))  # (E, left, right)
    root = None
    if covariance is not None:
        if tuple(left) != network.in_labels or network.in_padding:
            raise ValueError("input_covariance needs a network with the whole input on one node; leave it out")
        root, inverse = _roots(covariance.to(matrix))
        grouped = root @ grouped
    u, s, vh = torch.linalg.svd(grouped, full_matrices=False)
    if root is not None:
        u = inverse @ u

    bridge = _bridge(bridges, shared, own, network, matrix)
    p, d, qh = torch.linalg.svd(bridge)  # (S or 1, P, P), (S or 1, smaller), (S or 1, Q, Q)
    strength = d.expand(size(shared), -1).reshape(-1)  # one for each of the network's components
    order = strength.argsort(descending=True, stable=True)
    usable = order[: int((strength > SMALLEST * strength.max()).sum())]
    wanted = int((s.amax(0) > SMALLEST * s.max()).sum())
    used, free = usable[:wanted], usable[wanted:]
    amplitude = s[:, None, : len(used)].sqrt() / strength[used].sqrt()  # (E, 1, used)

    def side(vectors: Tensor, rotation: Tensor, zeros: Tensor) -> Tensor:
        """One carrier, ``(E, rows, S, width)``: scaled singular vectors where they are used, else random or zero."""
        rows, width = vectors.shape[1], rotation.shape[-1]
        scaled = vectors[..., : len(used)] * amplitude
        scale = scaled.square().mean().sqrt() if len(used) else rows**-0.5
        random = torch.randn(size(both), rows, size(shared), width, generator=generator, dtype=torch.float64)
        filled = random.to(matrix) * scale
        components = filled[..., : d.shape[-1]].reshape(size(both), rows, -1)
        components[..., used] = scaled
        components[..., zeros] = 0.0
        filled[..., : d.shape[-1]] = components.reshape(size(both), rows, size(shared), -1)
        return torch.einsum("exsk,spk->exsp", filled, rotation.expand(size(shared), -1, -1))

    sides = side(u, p, free[:0]), side(vh.transpose(1, 2), qh.transpose(1, 2), free)
    return {
        part.node.name: _arranged(values, (*both, *outer, *shared, *ends), part.live, network)
        for part, values, outer, ends in zip((first, second), sides, (left, right), own, strict=True)
    }


def _bridge(
    bridges: Sequence[Labelled],
    shared: Sequence[str],
    own: Sequence[Sequence[str]],
    network: TensorNetwork,
    like: Tensor,
) -> Tensor:
    """The bridges as matrices, ``(S, P, Q)``; ``S`` is 1 where they are the same for all shared bonds."""
    labels = (*shared, *own[0], *own[1])
    values = like.new_ones([1] * len(labels)) * contract(bridges, labels, network)
    alike = all(values.shape[axis] == 1 for axis in range(len(shared)))
    values = values.expand([1 if alike and label in shared else network.sizes[label] for label in labels])
    return values.reshape(-1, network.size_of(own[0]), network.size_of(own[1]))


def _roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of a matrix of second moments, and its inverse."""
    values, vectors = torch.linalg.eigh(covariance)
    roots = values.clamp(min=SMALLEST * float(values.max())).sqrt()
    return vectors * roots @ vectors.T, vectors / roots @ vectors.T


def _arranged(values: Tensor, labels: Sequence[str], wanted: Sequence[str], network: TensorNetwork) -> Tensor:
    return values.reshape([network.sizes[x] for x in labels]).permute([labels.index(x) for x in wanted])
