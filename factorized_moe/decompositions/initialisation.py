"""How the parameters of any network are filled before training: `balanced`, the default, and `variance_preserving`.

Legend: ``N_k`` experts of mode k, ``I`` in_features (one more with a bias), ``O`` out_features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

from torch import Tensor

from factorized_moe.decompositions.fixed_moments import mixed_moment_with_fixed, paths_with_fixed
from factorized_moe.network import Node, TensorNetwork

__all__ = ["Initialisation", "balanced", "variance_preserving"]

Initialisation = Callable[[TensorNetwork, Mapping[str, Tensor]], None]
"""Fills the parameters of a network, given by name, in place."""


def balanced(network: TensorNetwork, tensors: Mapping[str, Tensor]) -> None:
    """The default initialisation: experts differ in every mode, and their mean varies as much as a fresh ``nn.Linear``.

    A node without an expert mode is uniform with variance ``q**2``. In a node with expert modes every expert starts as
    the same random signs plus noise of the same size, ``q * (sign + N(0, 1))``: experts have a common part, which a
    uniform mixture keeps, and each is different from the start, so every mode learns. ``q`` is such that at uniform
    coefficients, where a gate starts, an entry of the mixed matrix has mean 0 and variance ``1 / (3 I)``, as a weight
    of a fresh ``nn.Linear``. At one-hot coefficients it is larger by ``2 / (1 + 1/N)`` for each node with expert modes,
    ``N`` its number of experts (nearly so where several nodes have an expert mode in common).

    Both variances hold for networks whose terms use each parameter once. With fixed nodes, that at uniform coefficients
    is a mean over the entries, and so is that of one-hot ones, if no fixed node has an expert mode.

    Args:
        network: The network.
        tensors: Its parameters by name, filled in place.

    Raises:
        ValueError: If what the fixed nodes hold makes a term zero at uniform coefficients.

    Examples:
        >>> import torch
        >>> from factorized_moe import FactorizedExpertTensor
        >>> w = FactorizedExpertTensor((8, 8), 300, 300, "cp", rank=64, init="balanced")
        >>> mixed = w.to_dense().mean(dim=(0, 1))
        >>> bool(0.5 < 3 * 300 * mixed.var() < 2.0)
        True
    """
    target = 1.0 / (3.0 * network.shape[-2]) / len(network.terms)
    experts, bonds = set(network.expert_labels), set(network.bonds)
    for term in network.terms:
        learned = [node for node in term if node.fixed is None]
        if len(learned) < len(term):
            second_moment = mixed_moment_with_fixed(network, term)
        else:
            second_moment = float(network.size_of({label for node in term for label in node.labels} & bonds))
            second_moment *= _mixed_moment([experts & set(node.labels) for node in term], network.sizes)
        scale = (target / second_moment) ** (0.5 / len(learned))
        for node in learned:
            _fill(tensors[node.parameter], node, experts, scale)


def _mixed_moment(modes: Sequence[set[str]], sizes: Mapping[str, int]) -> float:
    """``E[prod (sign + noise)(sign + noise')]`` over two experts drawn uniformly, with a factor for each node's modes.

    A node's factor is 2 where the two experts agree in all modes of the node, and 1 elsewhere.
    """
    moment, left = 1.0, [node for node in modes if node]
    while left:
        joined = left[0]
        while wider := [node for node in left if node & joined and not node <= joined]:
            joined = joined.union(*wider)
        together = [node for node in left if node <= joined]
        left = [node for node in left if not node <= joined]
        moment *= _moment_of_joined(together, joined, sizes)
    return moment


def _moment_of_joined(nodes: Sequence[set[str]], joined: set[str], sizes: Mapping[str, int]) -> float:
    """The same for nodes that have expert modes in common, over all ways to agree in some of the modes."""
    chances: dict[tuple[bool, ...], float] = {}  # modes that are on the same nodes are one: whether all of them agree
    for label in joined:
        on = tuple(label in node for node in nodes)
        chances[on] = chances.get(on, 1.0) / sizes[label]
    expected = 0.0
    for agree in product((True, False), repeat=len(chances)):
        chance = math.prod(p if same else 1.0 - p for p, same in zip(chances.values(), agree, strict=True))
        apart = [on for on, same in zip(chances, agree, strict=True) if not same]
        expected += chance * 2.0 ** sum(not any(on[k] for on in apart) for k in range(len(nodes)))
    return expected


def _fill(tensor: Tensor, node: Node, experts: set[str], scale: float) -> None:
    common = [1 if label in experts else size for label, size in zip(node.labels, tensor.shape, strict=True)]
    if not experts & set(node.labels):
        tensor.uniform_(-(3.0**0.5) * scale, 3.0**0.5 * scale)
    else:
        signs = tensor.new_empty(common).bernoulli_().mul_(2.0).sub_(1.0)
        tensor.normal_().add_(signs).mul_(scale)


def variance_preserving(network: TensorNetwork, tensors: Mapping[str, Tensor]) -> None:
    """Gaussian parameters such that every entry of the dense tensor has mean 0 and variance ``1 / in_features``.

    Then one expert alone (a one-hot coefficient vector) keeps the variance of its input; a uniform mixture, where a
    gate starts, has much less of it. The variance of an entry of the dense tensor is the product of the nodes'
    variances and the bonds' sizes, summed over the terms of a sum, so all nodes of a term get one variance.
    (``tltorch``'s ``normal_`` divides by the ranks twice on tensor trains.)

    A parameter that several nodes use makes products of its entries with themselves; then all parameters are scaled so
    that the variance, as a mean over the dense tensor's entries, is right again. With fixed nodes, too, it is such a
    mean.

    Args:
        network: The network.
        tensors: Its parameters by name, filled in place.

    Raises:
        ValueError: If there are fixed nodes, and what they hold makes a term zero or two nodes share a parameter.
    """
    fill_gaussian(network, tensors, 1.0 / network.shape[-2])


def fill_gaussian(network: TensorNetwork, tensors: Mapping[str, Tensor], variance: float) -> None:
    """Gaussian parameters such that every entry of the dense tensor has mean 0 and a variance.

    Args:
        network: The network.
        tensors: Its parameters by name, filled in place.
        variance: That of the dense tensor's entries; their mean one where nodes are fixed or share a parameter.

    Raises:
        ValueError: As `variance_preserving`.
    """
    if network.shares_parameters and len(network.learned_nodes) < len(network.nodes):
        raise ValueError("the variance of a network with both fixed nodes and shared parameters is not known; set init")
    target = variance
    deviations: dict[str, float] = {}
    for term in network.terms:
        paths, learned = paths_with_fixed(network, term), [node for node in term if node.fixed is None]
        for node in learned:
            deviations.setdefault(node.parameter, (target / len(network.terms) / paths) ** (0.5 / len(learned)))
    scale = _shared_scale(network, deviations, target) if network.shares_parameters else 1.0
    for name, deviation in deviations.items():
        tensors[name].normal_(0.0, scale * deviation)


def _shared_scale(network: TensorNetwork, deviations: Mapping[str, float], target: float) -> float:
    """The factor for all parameters with which the mean square of the dense tensor's entries is the target."""
    amounts: dict[int, float] = {}  # by the number of factors, each of which is scaled
    for one, other in product(network.terms, repeat=2):
        count = _paired_paths(network, one, other)
        factors = [deviations[node.parameter] for node in (*one, *other)]
        amounts[len(factors)] = amounts.get(len(factors), 0.0) + count * math.prod(factors)
    low, high = 0.0, 1.0
    while sum(amount * high**count for count, amount in amounts.items()) < target:
        high *= 2.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        enough = sum(amount * middle**count for count, amount in amounts.items()) >= target
        low, high = (low, middle) if enough else (middle, high)
    return high


def _paired_paths(network: TensorNetwork, one: Sequence[Node], other: Sequence[Node]) -> float:
    """How many products of two paths, one through each term, have a mean other than 0, for an entry on average.

    A product of Gaussians has the mean of all ways to pair its factors (Isserlis): the nodes of both terms are paired,
    those of one parameter with each other, and the indices of a pair are equal.
    """
    external = set(network.external_labels)
    nodes = [
        (node.parameter, tuple((label if label in external else f"{side} {label}") for label in node.labels))
        for side, term in (("one", one), ("other", other))
        for node in term
    ]
    sizes = {label: network.sizes[label] for label in external}
    sizes |= {f"{side} {label}": network.sizes[label] for side in ("one", "other") for label in network.bonds}
    carried = external.union(*(labels for _, labels in nodes))
    total = 0.0
    for pairs in _pairings(list(range(len(nodes))), [name for name, _ in nodes]):
        merged = {label: label for label in carried}

        def root(label: str, merged: dict[str, str] = merged) -> str:
            while merged[label] != label:
                label = merged[label]
            return label

        for left, right in pairs:
            for a, b in zip(nodes[left][1], nodes[right][1], strict=True):
                merged[root(a)] = root(b)
        total += math.prod(sizes[label] for label in carried if merged[label] == label)
    return total / math.prod(network.sizes[label] for label in external)


def _pairings(left: Sequence[int], names: Sequence[str]) -> Iterator[list[tuple[int, int]]]:
    """All ways to pair up nodes of the same name."""
    if not left:
        yield []
        return
    first, *rest = left
    for partner in rest:
        if names[partner] == names[first]:
            for others in _pairings([node for node in rest if node != partner], names):
                yield [(first, partner), *others]
