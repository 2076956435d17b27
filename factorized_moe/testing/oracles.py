"""Independent answers that laws compare with: slow, plain, and sharing no code with the planner's search.

Legend: `*batch` any leading shape, `N_k` experts of mode k, `I` in_features, `O` out_features.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from factorized_moe.contraction import ContractionPlan, Request
from factorized_moe.contraction.fixed import with_fixed
from factorized_moe.contraction.search import MOVED, Operand, pair_flops, step_cost
from factorized_moe.network import BATCH, TensorNetwork

__all__ = ["contract_dense", "count_flops", "dense_from_nodes", "least_costs", "plan_cost"]


def dense_from_nodes(network: TensorNetwork, tensors: Mapping[str, Tensor]) -> Tensor:
    """The dense tensor by one `torch.einsum` over all nodes of each term.

    Args:
        network: The network.
        tensors: Its parameters by name; of fixed nodes, what they are not to hold themselves.

    Returns:
        The dense tensor, `(*expert_dims, I (+1), O)`.

    Examples:
        >>> from factorized_moe import FactorizedExpertTensor
        >>> w = FactorizedExpertTensor((8,), 16, 32, decomposition="tt", rank=3)
        >>> torch.allclose(dense_from_nodes(w.network, w.weight.tensors), w.to_dense(), atol=1e-6)
        True
    """
    number = {label: k for k, label in enumerate(network.sizes)}
    total, tensors = None, with_fixed(network, tensors)
    for term in network.terms:
        present = [x for x in network.external_labels if any(x in node.labels for node in term)]
        arguments = [part for n in term for part in (tensors[n.parameter], [number[x] for x in n.labels])]
        value = torch.einsum(*arguments, [number[x] for x in present])
        value = value.reshape([network.sizes[x] if x in present else 1 for x in network.external_labels])
        value = value.expand([network.sizes[x] for x in network.external_labels])
        total = value if total is None else total + value
    assert total is not None  # a network has a term
    outputs = network.shape[-1]
    return total.reshape(*network.expert_dims, -1, outputs)[..., : network.shape[-2], :]


def contract_dense(dense: Tensor, x: Tensor, coefficients: Sequence[Tensor], bias: bool = False) -> Tensor:
    """The forward pass on a dense tensor: mix the experts' matrices for every sample, then apply the mixture.

    Args:
        dense: The dense tensor, `(*expert_dims, I (+1), O)`.
        x: The input, `(*batch, I)`.
        coefficients: For each expert mode a tensor `(*batch, N_k)`.
        bias: Whether the last row of each matrix is its bias.

    Returns:
        The output, `(*batch, O)`.
    """
    batch = x.shape[:-1]
    samples = math.prod(batch)
    mixed = dense.expand(samples, *dense.shape)
    for a in coefficients:  # sums over the first expert mode left
        weights = a.reshape(samples, a.shape[-1], *[1] * (mixed.ndim - 2))
        mixed = (mixed * weights).sum(1)
    rows = x.reshape(samples, x.shape[-1])
    if bias:
        rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    return (mixed * rows.unsqueeze(2)).sum(1).reshape(*batch, dense.shape[-1])


def count_flops(plan: ContractionPlan) -> int:
    """The FLOPs of a plan, counted again from the labels of its steps alone.

    A step first sums the labels that one operand alone has and the result has not, an addition for every element.
    Then two operands multiply once for every combination of their labels' values, and add as often if one is summed.
    """
    sizes = plan.network.sizes | {BATCH: plan.batch_size}
    batch = (BATCH,) if plan.request.vectors else ()
    values = [frozenset(x for x in node.labels if x not in plan.request.fixed) for node in plan.network.nodes]
    values += [frozenset((*batch, *labels)) for labels in plan.request.vectors]
    flops = 0
    for step in plan.steps:
        labels = [values[position] for position in step.operands]
        common = frozenset.intersection(*labels) if len(labels) > 1 else frozenset()
        met = common.union(step.labels)
        for mine in labels:
            if any(sizes[label] > 1 for label in mine - met):
                flops += math.prod(sizes[label] for label in mine)
        if len(labels) > 1:
            combinations = math.prod(sizes[label] for label in frozenset().union(*labels) & met)
            flops += combinations * (2 if common - set(step.labels) else 1)
        values.append(frozenset(step.labels))
    return flops


def plan_cost(plan: ContractionPlan) -> float:
    """What a plan's order costs by the planner's account, step by step, at the plan's batch size.

    Args:
        plan: The plan.

    Examples:
        >>> from factorized_moe.contraction import forward_request, make_plan
        >>> network = TensorNetwork.parse("in a, a out; in=4 out=5 a=2")
        >>> plan_cost(
        ...     make_plan(network, forward_request(network, bias=False), 1)
        ... )  # 36 FLOPs, 8 for each of 13 elements
        140.0
    """
    size_of = _sizes_at(plan.network, plan.batch_size)
    nodes, vectors = _operands(plan.network, plan.request)
    values = [nodes[node.name] for node in plan.network.nodes] + vectors
    total = 0.0
    for step in plan.steps:
        kept = frozenset(step.labels)
        operands = [values[position] for position in step.operands]
        adds = all(kept == operand.labels for operand in operands) and type(step.operation).__name__ == "Add"
        if len(operands) == 2 and not adds:
            total += step_cost(operands[0], operands[1], kept, size_of, MOVED)
        values.append(operands[0] if len(operands) == 1 else Operand(kept))
    return total


def least_costs(network: TensorNetwork, request: Request, batch_size: int) -> tuple[float, int]:
    """The least cost of any order, by the planner's account, and the fewest FLOPs of any: every order is tried.

    Each set of operands is split in two in every possible way, outer products and products of parameters included.
    Ten operands take a second.

    Args:
        network: The network.
        request: What is asked of it.
        batch_size: The number of samples.

    Examples:
        >>> from factorized_moe.contraction import forward_request
        >>> network = TensorNetwork.parse("core: in out s, mix: s; in=256 out=256 s=16")
        >>> least_costs(network, forward_request(network, bias=False), 1024)[
        ...     1
        ... ]  # the core is mixed once for all samples
        136314880
    """
    nodes, vectors = _operands(network, request)
    size_of = _sizes_at(network, batch_size)
    output = frozenset((*((BATCH,) if request.vectors else ()), *request.output))
    cost, flops = 0.0, 0
    for term in network.terms:
        operands = [nodes[node.name] for node in term] + vectors
        everyone = frozenset(range(len(operands)))
        best = {frozenset((k,)): (operand, 0.0, 0) for k, operand in enumerate(operands)}
        for group in _groups(len(operands)):
            outside = output.union(*(operands[k].labels for k in everyone - group))
            kept = frozenset().union(*(operands[k].labels for k in group)) & outside
            found = (math.inf, math.inf)
            for part in _halves(group):
                left, right = best[part], best[group - part]
                price = step_cost(left[0], right[0], kept, size_of, MOVED)
                count = pair_flops(left[0].labels, right[0].labels, kept, size_of)
                found = min(found[0], left[1] + right[1] + price), min(found[1], left[2] + right[2] + count)
            best[group] = (Operand(kept), found[0], int(found[1]))
        cost, flops = cost + best[everyone][1], flops + best[everyone][2]
    return cost, flops


def _operands(network: TensorNetwork, request: Request) -> tuple[dict[str, Operand], list[Operand]]:
    """What the planner's account knows of a network's nodes, by name, and of a request's vectors."""
    batch = (BATCH,) if request.vectors else ()
    nodes = {}
    for node in network.nodes:
        labels = tuple(label for label in node.labels if label not in request.fixed)
        nodes[node.name] = Operand(frozenset(labels), labels)
    return nodes, [Operand(frozenset((*batch, *labels))) for labels in request.vectors]


def _sizes_at(network: TensorNetwork, batch_size: int) -> Callable[[frozenset[str]], int]:
    sizes, known = network.sizes | {BATCH: batch_size}, {}

    def size_of(labels: frozenset[str]) -> int:
        if labels not in known:
            known[labels] = math.prod(sizes[label] for label in labels)
        return known[labels]

    return size_of


def _groups(count: int) -> Iterator[frozenset[int]]:
    """All sets of two or more operands, the smaller ones first."""
    for size in range(2, count + 1):
        yield from map(frozenset, itertools.combinations(range(count), size))


def _halves(group: frozenset[int]) -> Iterator[frozenset[int]]:
    """One part of each split of a set in two; the part has the set's first member."""
    first, *others = sorted(group)
    for size in range(len(others)):
        for some in itertools.combinations(others, size):
            yield frozenset((first, *some))
