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

from factorized_moe.contraction.named_axes import Named, contract_named
from factorized_moe.fitting.whitening import moment_roots
from factorized_moe.network import TensorNetwork

__all__ = ["contract", "solve_pair"]

SMALLEST = 1e-10
"""Singular values below this part of the largest count as zero, and moments of inputs are taken to be above it."""


def contract(tensors: Sequence[Named], output: Sequence[str], network: TensorNetwork) -> Tensor | float:
    """The product of some tensors summed over all labels but the output's; size 1 where none has a label."""
    if not tensors:
        return 1.0
    present = [label for label in output if any(label in labels for labels, _ in tensors)]
    result = contract_named(tensors, present)
    return result.reshape([network.sizes[label] if label in present else 1 for label in output])


def solve_pair(
    target: Named,
    first: Sequence[str],
    second: Sequence[str],
    network: TensorNetwork,
    *,
    bridges: Sequence[Named] = (),
    covariance: Tensor | None = None,
    generator: torch.Generator | None = None,
    balanced: bool = True,
) -> tuple[Tensor, Tensor]:
    """Two tensors whose product, over the bridges between them, is nearest to a target.

    What of them has no effect, because the target or the bridges have no use for it, is random on one side, so that
    every entry is reached by a gradient.

    Args:
        target: The target, float64, with its labels; every label of the two that it lacks is a bond.
        first: The labels of the first tensor.
        second: The labels of the second.
        network: Where labels have their sizes.
        bridges: Tensors between them.
        covariance: The second moments of the target's labels that only the first has, flattened in the target's order.
        generator: Where random numbers come from.
        balanced: Whether both tensors get the roots of the singular values; otherwise the second gets them whole.

    Returns:
        The two tensors.
    """
    size = network.size_of
    external, values = target
    both = [label for label in external if label in first and label in second]
    left = [label for label in external if label in first and label not in both]
    right = [label for label in external if label in second and label not in both]
    shared = [label for label in first if label in second and label not in external]
    own = [[x for x in mine if x not in shared and x not in external] for mine in (first, second)]

    grouped = values.permute([external.index(label) for label in (*both, *left, *right)])
    grouped = grouped.reshape(size(both), size(left), size(right))  # (E, left, right)
    roots = None if covariance is None else moment_roots(covariance.to(grouped))
    u, s, vh = _singular_vectors(grouped if roots is None else roots.regular @ grouped)
    u = u if roots is None else roots.inverse @ u

    bridge = _bridge(bridges, shared, own, network, grouped)
    p, d, qh = torch.linalg.svd(bridge)  # (S or 1, P, P), (S or 1, smaller), (S or 1, Q, Q)
    strength = d.expand(size(shared), -1).reshape(-1)  # one for each of the network's components
    order = strength.argsort(descending=True, stable=True)
    usable = order[: int((strength > SMALLEST * strength.max()).sum())]
    wanted = int((s.amax(0) > SMALLEST * s.max()).sum())
    used, free = usable[:wanted], usable[wanted:]
    singular = s[:, None, : len(used)]  # (E, 1, used)
    root_of_strength = strength[used].sqrt()

    def side(vectors: Tensor, amplitude: Tensor, rotation: Tensor, zeros: Tensor) -> Tensor:
        """One carrier, ``(E, rows, S, width)``: scaled singular vectors where they are used, else random or zero."""
        rows, width = vectors.shape[1], rotation.shape[-1]
        scaled = vectors[..., : len(used)] * (amplitude / root_of_strength)
        scale = scaled.square().mean().sqrt() if len(used) else rows**-0.5
        random = torch.randn(size(both), rows, size(shared), width, generator=generator, dtype=torch.float64)
        filled = random.to(grouped) * scale
        components = filled[..., : d.shape[-1]].reshape(size(both), rows, -1)
        components[..., used] = scaled
        components[..., zeros] = 0.0
        filled[..., : d.shape[-1]] = components.reshape(size(both), rows, size(shared), -1)
        return torch.einsum("exsk,spk->exsp", filled, rotation.expand(size(shared), -1, -1))

    halves = (singular.sqrt(), singular.sqrt()) if balanced else (torch.ones_like(singular), singular)
    one = side(u, halves[0], p, free[:0])
    other = side(vh.transpose(1, 2), halves[1], qh.transpose(1, 2), free)
    return (
        _arranged(one, (*both, *left, *shared, *own[0]), first, network),
        _arranged(other, (*both, *right, *shared, *own[1]), second, network),
    )


def _singular_vectors(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``u``, ``s`` and ``vh``, as of a thin singular value decomposition, through the eigenvectors of the smaller side.

    Several times as fast as torch's own for an MLP's matrices. ``u`` is orthonormal and ``u s vh`` is the matrix to
    rounding; only singular values below ``1e-8`` of the largest may lie in another order.

    Args:
        matrices: ``(E, left, right)``.
    """
    if matrices.shape[1] > matrices.shape[2]:
        u, s, vh = _singular_vectors(matrices.transpose(1, 2))
        return vh.transpose(1, 2), s, u.transpose(1, 2)
    u = torch.linalg.eigh(matrices @ matrices.transpose(1, 2)).eigenvectors.flip(-1)
    rows = u.transpose(1, 2) @ matrices
    s = torch.linalg.vector_norm(rows, dim=2)
    return u, s, rows / s.clamp(min=torch.finfo(s.dtype).tiny)[..., None]


def _bridge(
    bridges: Sequence[Named],
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


def _arranged(values: Tensor, labels: Sequence[str], wanted: Sequence[str], network: TensorNetwork) -> Tensor:
    return values.reshape([network.sizes[x] for x in labels]).permute([labels.index(x) for x in wanted])
