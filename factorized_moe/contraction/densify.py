"""The dense tensor of a network, or a slice of it, as one plan and its replay.

Legend: ``N_k`` experts of mode k, ``I`` in_features (one more with a bias), ``O`` out_features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import Tensor

from factorized_moe._validation import check_countable
from factorized_moe.contraction.execution import execute
from factorized_moe.contraction.planning import dense_request, make_plan
from factorized_moe.network import TensorNetwork
from factorized_moe.spread import whole

__all__ = ["dense_tensor"]


def dense_tensor(
    network: TensorNetwork, operands: Sequence[Tensor], fixed: Mapping[str, int] = MappingProxyType({})
) -> Tensor:
    """Contract a network's nodes to its dense tensor, groups flattened and padding cut off.

    Args:
        network: The network.
        operands: One tensor for each node, in order.
        fixed: Expert labels, each with the expert to slice the dense tensor at. It is never built as a whole then.

    Returns:
        The dense tensor, ``(*expert_dims, I, O)`` without the modes that are fixed.

    Examples:
        >>> import torch
        >>> from factorized_moe.decompositions import get_decomposition
        >>> network = get_decomposition("cp").network((8,), 16, 32, rank=4)
        >>> factors = [torch.randn(shape) for shape in network.parameter_shapes.values()]
        >>> dense_tensor(network, factors).shape, dense_tensor(network, factors, {"expert_0": 5}).shape
        (torch.Size([8, 16, 32]), torch.Size([16, 32]))
    """
    operands = [whole(operand) for operand in operands]  # of a sharded tensor, the ranks' pieces put together
    if fixed:
        operands = [
            operand[tuple(fixed.get(label, slice(None)) for label in node.labels)]
            for node, operand in zip(network.nodes, operands, strict=True)
        ]
    kept = [network.sizes[label] for label in network.expert_labels if label not in fixed]
    check_countable("the dense tensor", (*kept, *network.shape[-2:]))
    group, inputs, outputs = network.size_of(network.in_labels), *network.shape[-2:]
    answer = execute(make_plan(network, dense_request(network, fixed)), operands).reshape(*kept, group, outputs)
    return answer[..., :inputs, :] if inputs < group else answer
