"""What a network is between its input and its output once all experts are equal.

With the expert labels taken away, a network describes one matrix. Its nodes then play one of three parts: a *carrier*
holds labels of the input or the output; a *bridge* joins bonds on the way between them; an *end* lies off that way, as
an expert factor does, and only closes a bond.

Legend: ``I`` in_features (one more with a bias), ``O`` out_features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from factorized_moe.contraction import dense_tensor
from factorized_moe.contraction.fixed import with_fixed
from factorized_moe.network import Node, TensorNetwork

__all__ = ["Part", "full_carrier", "mean_matrix", "read_parts", "single_terms", "without_experts"]


@dataclass(frozen=True)
class Part:
    """A node without its expert labels, and the part it plays.

    Attributes:
        node: The node, its expert labels included.
        labels: Its other labels, in order.
        role: ``"carrier"``, ``"bridge"`` or ``"end"``.
        idle: Those of its bonds that an end closed: only their first entry counts.
        closes: For an end, the bond that it closes, if any.
    """

    node: Node
    labels: tuple[str, ...]
    role: str
    idle: tuple[str, ...] = ()
    closes: str | None = None

    @property
    def live(self) -> tuple[str, ...]:
        """The labels that are not idle."""
        return tuple(label for label in self.labels if label not in self.idle)


def without_experts(network: TensorNetwork) -> TensorNetwork:
    """The network of one matrix that is left when the expert labels are taken away.

    Examples:
        >>> from factorized_moe.decompositions import get_decomposition
        >>> tucker = get_decomposition("tucker").network((8,), 16, 32, rank=(3, 4, 5))
        >>> print(without_experts(tucker).shape, without_experts(tucker).parameter_shapes["expert_0"])
        (16, 32) (3,)
    """
    experts = set(network.expert_labels)

    def reduced(node: Node) -> Node:
        return replace(node, labels=tuple(label for label in node.labels if label not in experts))

    return replace(
        network,
        terms=tuple(tuple(reduced(node) for node in term) for term in network.terms),
        label_sizes=tuple((label, size) for label, size in network.label_sizes if label not in experts),
        expert_labels=(),
    )


def mean_matrix(network: TensorNetwork, tensors: Mapping[str, Tensor]) -> Tensor:
    """The mean of all experts' matrices, ``(I, O)``, where no two nodes differ along one expert mode.

    Args:
        network: The network.
        tensors: Its parameters by name.
    """
    means, known = [], with_fixed(network, tensors)
    for node in network.nodes:
        axes = [axis for axis, label in enumerate(node.labels) if label in network.expert_labels]
        tensor = known[node.parameter].double()
        means.append(tensor.mean(axes) if axes else tensor)
    return dense_tensor(without_experts(network), means)


def single_terms(network: TensorNetwork) -> tuple[TensorNetwork, ...]:
    """The terms of a sum, each as a network of its own; an expert label that a term lacks is left out of it."""

    def alone(term: tuple[Node, ...]) -> TensorNetwork:
        carried = {label for node in term for label in node.labels}
        return replace(
            network,
            terms=(term,),
            label_sizes=tuple((label, size) for label, size in network.label_sizes if label in carried),
            expert_labels=tuple(label for label in network.expert_labels if label in carried),
        )

    return tuple(alone(term) for term in network.terms)


def full_carrier(network: TensorNetwork) -> Node | None:
    """The first node that holds all labels of input and output, if there is one."""
    external = {*network.in_labels, *network.out_labels}
    return next((node for node in network.nodes if external <= set(node.labels)), None)


def read_parts(network: TensorNetwork) -> tuple[Part, ...]:
    """The part that each node of a network of one term plays, in the network's order.

    An end is found from the outside in: a node without labels of input and output, at most one of whose bonds leads to
    just one other node. It closes that bond by choosing its first entry, and is 1 along its other bonds. A node that
    holds all labels of input and output is the only carrier.

    Examples:
        >>> from factorized_moe.decompositions import get_decomposition
        >>> tucker = get_decomposition("tucker").network((8,), 16, 32, rank=(3, 4, 5))
        >>> [(part.node.name, part.role) for part in read_parts(tucker)]
        [('expert_0', 'end'), ('input', 'carrier'), ('output', 'carrier'), ('core', 'bridge')]
    """
    external = {*network.in_labels, *network.out_labels}
    whole = full_carrier(network)
    carriers = [whole] if whole is not None else [node for node in network.nodes if external & set(node.labels)]
    remaining = list(network.nodes)
    idle: dict[str, Node] = {}  # each closed bond, with the end that closes it
    parts: dict[str, Part] = {}

    def part(node: Node, role: str, closes: str | None = None) -> Part:
        labels = tuple(label for label in node.labels if label not in network.expert_labels)
        closed = tuple(label for label in labels if label in idle and idle[label] is not node)
        return Part(node, labels, role, closed, closes)

    def single(node: Node) -> list[str]:
        """Its bonds that one other node is left to share."""
        bonds = [label for label in node.labels if label in network.bonds and label not in idle]
        return [b for b in bonds if sum(b in other.labels for other in remaining if other is not node) < 2]

    found = True
    while found:
        found = False
        for node in [node for node in remaining if node not in carriers]:
            bonds = single(node)
            if len(bonds) <= 1:
                closes = bonds[0] if bonds else None
                if closes is not None:
                    idle[closes] = node
                parts[node.name] = part(node, "end", closes)
                remaining.remove(node)
                found = True
    for node in remaining:
        parts[node.name] = part(node, "carrier" if node in carriers else "bridge")
    return tuple(parts[node.name] for node in network.nodes)
