"""Independent answers that laws compare with: slow, plain, and sharing no code with the planner.

Legend: `*batch` any leading shape, `N_k` experts of mode k, `I` in_features, `O` out_features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from factorized_moe.contraction import ContractionPlan
from factorized_moe.network import BATCH, TensorNetwork

__all__ = ["contract_dense", "count_flops", "dense_from_nodes"]


def dense_from_nodes(network: TensorNetwork, tensors: Mapping[str, Tensor]) -> Tensor:
    """The dense tensor by one `torch.einsum` over all nodes of each term.

    Args:
        network: The network.
        tensors: Its parameters by name.

    Returns:
        The dense tensor, `(*expert_dims, I (+1), O)`.

    Examples:
        >>> from factorized_moe import FactorizedExpertTensor
        >>> w = FactorizedExpertTensor((8,), 16, 32, decomposition="tt", rank=3)
        >>> torch.allclose(dense_from_nodes(w.network, w.weight.tensors), w.to_dense(), atol=1e-6)
        True
    """
    number = {label: k for k, label in enumerate(network.sizes)}
    total = None
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
