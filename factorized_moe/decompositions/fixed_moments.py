"""What fixed nodes do to the second moment of a term whose other nodes are random, as a mean over its entries.

Legend: *inner* labels are bonds that fixed nodes alone carry, so that their products are summed before any squaring.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from factorized_moe.contraction.fixed import fixed_tensors
from factorized_moe.contraction.named_axes import contract_named
from factorized_moe.network import Node, TensorNetwork

__all__ = ["mixed_moment_with_fixed", "paths_with_fixed"]


def paths_with_fixed(network: TensorNetwork, term: Sequence[Node]) -> float:
    """The second moment of an entry where every learned node's entries are independent, of mean 0 and variance 1.

    Without fixed nodes it is the product of the bonds' sizes.

    Examples:
        >>> network = TensorNetwork.parse("a: in b, link(identity): b c, z: c out; in=4 out=5 b=3 c=3")
        >>> paths_with_fixed(network, network.terms[0])
        3.0
    """
    labels, product = _product(network, term)
    carried = {label for node in term if node.fixed is None for label in node.labels}
    bonds = carried - set(labels) - set(network.external_labels)
    repeated = set(labels) & set(network.external_labels)
    return _checked(float(product.square().sum()) * network.size_of(bonds) / network.size_of(repeated), term)


def mixed_moment_with_fixed(network: TensorNetwork, term: Sequence[Node]) -> float:
    """The second moment of the mixture at uniform coefficients, under the balanced initialisation of scale 1.

    Two experts' entries of a learned node have the mean product 1, and 1 more where they agree in all the node's expert
    modes. The product of these over the nodes is a sum over the sets of nodes in which the two experts agree.
    """
    labels, product = _product(network, term)
    learned, experts = [node for node in term if node.fixed is None], set(network.expert_labels)
    modes = {label for node in term for label in node.labels} & experts
    repeated = set(labels) & {*network.in_labels, *network.out_labels}
    bonds = {label for node in learned for label in node.labels} - set(labels) - set(network.external_labels)
    on_nodes = [experts & set(node.labels) for node in learned if experts & set(node.labels)]
    total = 0.0
    for chosen in itertools.product((False, True), repeat=len(on_nodes)):
        agreeing = set().union(*(mode for mode, taken in zip(on_nodes, chosen, strict=True) if taken))
        summed = [axis for axis, label in enumerate(labels) if label in modes - agreeing]
        mixed = product.sum(summed) if summed else product
        pairs = network.size_of(agreeing - set(labels)) * network.size_of(modes - agreeing - set(labels)) ** 2
        total += float(mixed.square().sum()) * pairs
    total *= network.size_of(bonds) / network.size_of(repeated) / network.size_of(modes) ** 2
    return _checked(total, term)


def _product(network: TensorNetwork, term: Sequence[Node]) -> tuple[list[str], Tensor]:
    """The product of a term's fixed nodes and its labels, summed over the inner ones."""
    values = fixed_tensors(network)
    fixed = [node for node in term if node.fixed is not None]
    outer = {label for node in term if node.fixed is None for label in node.labels} | set(network.external_labels)
    labels = list(dict.fromkeys(label for node in fixed for label in node.labels if label in outer))
    if not fixed:
        return labels, torch.ones((), dtype=torch.float64)
    return labels, contract_named([(node.labels, values[node.name]) for node in fixed], labels)


def _checked(moment: float, term: Sequence[Node]) -> float:
    if not moment > 0.0:
        fixed = [node.name for node in term if node.fixed is not None]
        raise ValueError(f"what the fixed nodes {fixed} hold makes their term zero, so no scale suits it; set init")
    return moment
