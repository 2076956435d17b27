"""Alternating least squares on any network: each node in turn is the best one given the others.

The dense tensor is linear in each node. The normal equations of a node follow from contracting the network with
itself; where removing the node leaves parts of the network that are not joined, the equations are solved for one part
after another, so a Tucker core of millions of entries needs no more than its factors' Gram matrices.

Legend: labels as in the network. *both*: labels of the node that others have too (one system for each value),
*own*: labels that the node alone has (right-hand sides), *bonds*: the unknowns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from factorized_moe.fitting.problem import Problem, Report, Tensors, contract
from factorized_moe.network import Node, TensorNetwork

__all__ = ["alternating_least_squares", "sweep"]

LARGEST_SYSTEM = 1024
"""Systems of more unknowns are solved by conjugate gradients, from the node's present value on."""

GRADIENT_STEPS = 20
EXACT = 1e-13
STALLED = 1e-6
"""A sweep that lowers the relative error by less than this part of it is the last."""

RIDGE = 1e-14
"""Of the largest entry of a Gram matrix's diagonal: keeps singular systems solvable."""


def alternating_least_squares(
    problem: Problem, tensors: Tensors, sweeps: int, report: Report = lambda error: None
) -> tuple[float, int]:
    """Alternating least squares: solve for one node after the other until the error falls no more.

    Args:
        problem: The problem, with the Frobenius norm; no two nodes may share a parameter.
        tensors: The parameters to begin with, changed in place.
        sweeps: The most sweeps.
        report: Called with the error after each sweep.

    Returns:
        The relative error, and the number of sweeps.
    """
    error, reach = problem.error(tensors), 1.0
    for count in range(1, sweeps + 1):
        before = dict(tensors)
        sweep(problem, tensors)
        previous, error = error, problem.error(tensors)
        report(error)
        if error < EXACT or previous - error <= STALLED * previous:
            return error, count
        # Sweeps move on in much the same direction: a step further that way costs a fifth of a sweep.
        further = {name: tensor + reach * (tensor - before[name]) for name, tensor in tensors.items()}
        reached = problem.error(further)
        if reached < error:
            tensors.update(further)
            error, reach = reached, 1.5 * reach
        else:
            reach = max(0.5 * reach, 0.5)
    return error, sweeps


def sweep(problem: Problem, tensors: Tensors, *, greedy: bool = False) -> None:
    """Solve for every node once.

    Padding takes the network's present values as its target, which leaves it free in the end (an EM step).

    Args:
        problem: The problem.
        tensors: The parameters, changed in place.
        greedy: Whether each term of a sum is fitted to what the terms before it leave, as at a start.
    """
    network, known = problem.network, problem.complete(tensors)
    values = [problem.term(term, tensors) for term in network.terms]
    if greedy:
        values = [torch.zeros_like(value) for value in values]
    target = problem.arranged
    if network.in_padding:
        present = sum(values, target.new_zeros(()))
        target = torch.where(_known(network, target), target, present)
    for number, term in enumerate(network.terms):
        rest = target - sum((v for k, v in enumerate(values) if k != number), target.new_zeros(()))
        for node in term:
            if node.fixed is None:
                known[node.parameter] = tensors[node.parameter] = _solve(rest, network, term, node, known)
        values[number] = problem.term(term, tensors)


def _known(network: TensorNetwork, like: Tensor) -> Tensor:
    """True for the entries of the dense tensor, False for padding; axes as `external_labels`."""
    known = torch.arange(network.size_of(network.in_labels), device=like.device) < network.shape[-2]
    return known.reshape([network.sizes[x] if x in network.in_labels else 1 for x in network.external_labels])


def _solve(rest: Tensor, network: TensorNetwork, term: tuple[Node, ...], node: Node, tensors: Tensors) -> Tensor:
    """The node that fits best, with its axes in order."""
    others = [other for other in term if other is not node]
    elsewhere = {label for other in others for label in other.labels}
    external = network.external_labels
    both = [x for x in external if x in node.labels and x in elsewhere]
    bonds = [x for x in node.labels if x not in external]
    right = contract([(rest, external), *((tensors[other.parameter], other.labels) for other in others)], node.labels)
    # An external label that the term lacks counts once for each of its values.
    right = right / network.size_of(x for x in external if x not in node.labels and x not in elsewhere)
    systems = []
    for part in _parts(others, both):
        labels = {x for other in part for x in other.labels}
        mine, shared = [x for x in bonds if x in labels], [x for x in both if x in labels]
        systems.append((mine, shared, _squared(part, external, both, tensors)))
    if any(network.size_of(mine) > LARGEST_SYSTEM for mine, _, _ in systems):
        operands = [operand for _, _, squared in systems for operand in squared]
        return _conjugate_gradients(operands, right, tensors[node.parameter], node.labels, external)
    for mine, shared, squared in systems:
        gram = contract(squared, [*shared, *mine, *(_twin(x) for x in mine)])
        right = _divide(gram, right, node.labels, shared, mine, network)
    return right.contiguous()


def _parts(nodes: Sequence[Node], cut: Sequence[str]) -> list[list[Node]]:
    """Groups of nodes that no label outside ``cut`` joins."""
    parts: list[list[Node]] = []
    for node in nodes:
        labels = set(node.labels) - set(cut)
        joined = [part for part in parts if any(labels & set(other.labels) for other in part)]
        parts = [part for part in parts if part not in joined] + [[*(n for part in joined for n in part), node]]
    return parts


def _squared(
    nodes: Sequence[Node], external: Sequence[str], both: Sequence[str], tensors: Tensors
) -> list[tuple[Tensor, Sequence[str]]]:
    """Operands whose contraction is the nodes' contraction with itself: two copies, whose bonds have two names.

    A node's own external labels are summed over its two copies at once, which keeps the operands small.
    """
    operands: list[tuple[Tensor, Sequence[str]]] = []
    for node in nodes:
        tensor = tensors[node.parameter]
        again = [x if x in external else _twin(x) for x in node.labels]
        elsewhere = {x for other in nodes if other is not node for x in other.labels}
        alone = [x for x in node.labels if x in external and x not in both and x not in elsewhere]
        if alone:
            pair = [x for x in dict.fromkeys([*node.labels, *again]) if x not in alone]
            operands.append((contract([(tensor, node.labels), (tensor, again)], pair), pair))
        else:
            operands += [(tensor, node.labels), (tensor, again)]
    return operands


def _twin(label: str) -> str:
    return f"{label} again"


def _divide(
    gram: Tensor,
    right: Tensor,
    labels: Sequence[str],
    both: Sequence[str],
    bonds: Sequence[str],
    network: TensorNetwork,
) -> Tensor:
    """The solution of one part's systems: ``gram`` is ``(both, bonds, bonds)``, ``right`` has the node's axes."""
    order = [*both, *bonds, *(x for x in labels if x not in both and x not in bonds)]
    size = network.size_of(bonds)
    arranged = right.permute([labels.index(x) for x in order])
    solution = _solve_symmetric(
        gram.reshape(network.size_of(both), size, size), arranged.reshape(network.size_of(both), size, -1)
    )
    return solution.reshape(arranged.shape).permute([order.index(x) for x in labels])


def _solve_symmetric(gram: Tensor, right: Tensor) -> Tensor:
    """``gram^-1 right``, ``(batch, n, n)`` and ``(batch, n, m)``; the least solution where ``gram`` is singular."""
    ridge = RIDGE * gram.diagonal(dim1=-2, dim2=-1).amax(-1)
    factor, failed = torch.linalg.cholesky_ex(
        gram + ridge[:, None, None] * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    )
    if not failed.any():
        solved: Tensor = torch.cholesky_solve(right, factor)
        return solved
    values, vectors = torch.linalg.eigh(gram)
    inverse = torch.where(values > RIDGE * values[:, -1:], 1.0 / values, torch.zeros_like(values))
    least: Tensor = vectors @ (inverse[..., None] * (vectors.mT @ right))
    return least


def _conjugate_gradients(
    operands: Sequence[tuple[Tensor, Sequence[str]]],
    right: Tensor,
    start: Tensor,
    labels: Sequence[str],
    external: Sequence[str],
) -> Tensor:
    """A few steps towards the solution of the normal equations, none of which makes the fit worse."""
    again = [x if x in external else _twin(x) for x in labels]

    def product(x: Tensor) -> Tensor:
        return contract([(x, labels), *operands], again)

    solution, residual = start, right - product(start)
    direction, size = residual, residual.square().sum()
    for _ in range(GRADIENT_STEPS):
        image = product(direction)
        curvature = (direction * image).sum()
        if not curvature > 0:
            break
        step = size / curvature
        solution, residual = solution + step * direction, residual - step * image
        previous, size = size, residual.square().sum()
        direction = residual + size / previous * direction
    return solution
