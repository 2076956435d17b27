"""An expert tensor for inference, with products of its parameters computed once and stored.

In training such a step is part of every call, as the parameters change. Afterwards it gives the same value again and
again, so its value can be stored in place of the parameters that it is made of.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from factorized_moe._validation import check_kind, check_size
from factorized_moe.contraction import forward_request, paths_of
from factorized_moe.contraction.fixed import with_fixed
from factorized_moe.contraction.planning import term_orders
from factorized_moe.contraction.search import merged_operand
from factorized_moe.fitting.problem import contract
from factorized_moe.network import Node, TensorNetwork
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["fold"]


@torch.no_grad()
def fold(tensor: FactorizedExpertTensor, batch_size: int = 64) -> FactorizedExpertTensor:
    """An equal expert tensor for inference: products of parameters are computed once and stored, not at every call.

    Of all orders in which contracting parameters costs nothing, the cheapest is looked for, and what it contracts of
    parameters alone becomes one node, but nothing that would have more elements than the nodes it replaces. So it
    never holds more parameters: ``fold(w).num_parameters`` says how many. (Of a network of more than 14 operands, nodes
    and vectors, it carries out what the layer's plan contracts anyway.)

    Args:
        tensor: The tensor; it is left as it is.
        batch_size: The number of samples in a call for which it is to be cheap.

    Returns:
        A new tensor whose parameters are copies, so both take memory until the given one is let go. Its decomposition
        is its network: what was one node's is lost. It can be trained, but then the stored products are: there is no
        way back to the nodes.

    Examples:
        >>> network = TensorNetwork.parse("core: in out s, mix: s; in=256 out=256 s=16")
        >>> w = FactorizedExpertTensor(network=network)
        >>> folded = fold(w)
        >>> w.num_parameters, folded.num_parameters
        (1048592, 65536)
        >>> w.plan(1).flops, folded.plan(1).flops
        (2105344, 131072)
    """
    check_kind("tensor", tensor, FactorizedExpertTensor)
    check_size("batch_size", batch_size)
    network, terms, stored = tensor.network, [], {}
    known = with_fixed(network, tensor.weight.tensors)
    for term, found in zip(network.terms, _groups(tensor, batch_size), strict=True):
        groups = [(members, labels) for members, labels in found if _saves(network, members, labels)]
        names = {name for members, _ in groups for name in members}
        nodes = [node for node in term if node.name not in names]
        for members, labels in groups:
            whole = [node for node in term if node.name in members]
            name = _free_name("_".join(node.name for node in whole), network)
            nodes.append(Node(name, labels))
            stored[name] = contract([(known[node.parameter], node.labels) for node in whole], labels)
        terms.append(tuple(nodes))
    used = {label for term in terms for node in term for label in node.labels}
    sizes = tuple((label, size) for label, size in network.label_sizes if label in used)
    groups_of_labels = network.expert_labels, network.in_labels, network.out_labels
    described = TensorNetwork(tuple(terms), sizes, *groups_of_labels, network.in_padding)
    like = tensor.weight.operands[0]
    folded = FactorizedExpertTensor(
        network=described,
        bias=tensor.bias,
        checkpoint=tensor.checkpoint,
        sparse_coefficients=tensor.sparse_coefficients,
        device=like.device,
        dtype=like.dtype,
    )
    tensors: dict[str, Tensor] = {**tensor.weight.tensors, **stored}
    folded.weight.assign({name: tensors[name] for name in folded.weight.tensors})
    return folded.train(tensor.training)


def _groups(tensor: FactorizedExpertTensor, batch_size: int) -> list[list[tuple[set[str], tuple[str, ...]]]]:
    """For each term the nodes that become one, and the labels of what they become, in memory order."""
    network = tensor.network
    request = forward_request(network, tensor.bias, tensor.sparse_coefficients)
    paths = paths_of(tensor.plan(batch_size))
    found = []
    for term, orders, path in zip(network.terms, term_orders(network, request), paths, strict=True):
        operands, output = orders.operands, orders.output
        pairs = orders.folded(batch_size) or _positions(path, len(operands))
        live, members = dict(enumerate(operands)), {k: {k} for k in range(len(operands))}
        groups: list[tuple[set[str], tuple[str, ...]]] = []
        for number, (one, two) in enumerate(pairs):
            sides = [(position, live.pop(position)) for position in (one, two)]
            made = merged_operand(sides[0][1], sides[1][1], output, live.values())
            grown = [any(position >= len(term) for position in members[p]) for p, _ in sides]
            for (position, operand), mine, other in zip(sides, grown, grown[::-1], strict=True):
                inner = members[position]
                if not mine and other and len(inner) > 1:  # it meets samples: what is summed with them comes first
                    kept = [x for x in network.sizes if x in operand.labels and x in made.labels]
                    summed = [x for x in network.sizes if x in operand.labels and x not in made.labels]
                    groups.append(({term[k].name for k in inner}, (*summed, *kept)))
            live[len(operands) + number] = made
            members[len(operands) + number] = members[one] | members[two]
        found.append(groups)
    return found


def _saves(network: TensorNetwork, members: set[str], labels: tuple[str, ...]) -> bool:
    """Whether a product has no more elements than its nodes have parameters; a fixed node has none."""
    held = sum(network.size_of(node.labels) for node in network.learned_nodes if node.name in members)
    return network.size_of(labels) <= held


def _positions(path: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """A path as positions that go on counting."""
    live, pairs = list(range(count)), []
    for one, two in path:
        pairs.append((live[one], live[two]))
        live = [p for k, p in enumerate(live) if k not in (one, two)] + [count + len(pairs) - 1]
    return pairs


def _free_name(name: str, network: TensorNetwork) -> str:
    taken = {node.name for node in network.nodes} | set(network.parameter_shapes)
    while name in taken:
        name += "_folded"
    return name
