"""One term of a network as a graph to be drawn: discs, dots, the strands between them, and legs.

A label that two nodes carry is a strand between their discs. A label of more than two nodes is a dot that is joined to
each. A mode's label ends in a leg: on the disc of its node, or on a dot where several nodes carry it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from factorized_moe.network import Node, TensorNetwork

__all__ = ["Leg", "Skeleton", "Strand", "make_skeleton"]


@dataclass(frozen=True)
class Strand:
    """A line between two vertices.

    Attributes:
        ends: The vertices.
        label: The label that it stands for.
        role: What the label is: ``"expert"``, ``"in"``, ``"out"`` or ``"bond"``.
        dotted: Whether a dot in its middle carries a leg: the label of a mode that both nodes carry.
        hub: Whether it is one of several from a dot to the label's nodes; the dot is its first end.
    """

    ends: tuple[str, str]
    label: str
    role: str
    dotted: bool = False
    hub: bool = False


@dataclass(frozen=True)
class Leg:
    """The open end of a mode's label.

    Attributes:
        vertex: The vertex it hangs on; of a dotted strand, the dot.
        label: The label.
        role: What the label is: ``"expert"``, ``"in"`` or ``"out"``.
    """

    vertex: str
    label: str
    role: str


@dataclass(frozen=True)
class Skeleton:
    """A term as a graph. Node names and labels are vertices of their own kind: ``node:core``, ``dot:rank``.

    Attributes:
        discs: The vertices of the nodes, in their order, with the nodes.
        dots: The vertices of labels on more than two nodes, with the labels.
        strands: The lines.
        legs: The open ends, in the order of the modes.
    """

    discs: dict[str, Node]
    dots: dict[str, str]
    strands: tuple[Strand, ...]
    legs: tuple[Leg, ...]

    @property
    def vertices(self) -> tuple[str, ...]:
        """All vertices: discs, then dots."""
        return (*self.discs, *self.dots)

    @property
    def neighbours(self) -> dict[str, list[str]]:
        """For each vertex those it is joined to, in order."""
        found: dict[str, list[str]] = {vertex: [] for vertex in self.vertices}
        for strand in self.strands:
            for here, there in (strand.ends, strand.ends[::-1]):
                if there not in found[here]:
                    found[here].append(there)
        return found

    @property
    def bundles(self) -> dict[tuple[str, str], list[Strand]]:
        """The strands of each pair of vertices."""
        found: dict[tuple[str, str], list[Strand]] = defaultdict(list)
        for strand in self.strands:
            found[strand.ends].append(strand)
        return dict(found)


def make_skeleton(network: TensorNetwork, term: tuple[Node, ...]) -> Skeleton:
    """The graph of one term."""
    dots: dict[str, str] = {}
    strands: list[Strand] = []
    legs: list[Leg] = []
    modes = set(network.external_labels)
    bonds = [label for label in network.sizes if label not in modes]
    for label in (*network.external_labels, *bonds):
        carriers = [f"node:{node.name}" for node in term if label in node.labels]
        dot, role = f"dot:{label}", _role(network, label)
        if len(carriers) > 2:
            dots[dot] = label
            strands += [Strand((dot, carrier), label, role, hub=True) for carrier in carriers]
        elif len(carriers) == 2:
            strands.append(Strand((carriers[0], carriers[1]), label, role, dotted=label in modes))
        if label in modes and carriers:
            legs.append(Leg(carriers[0] if len(carriers) == 1 else dot, label, role))
    return Skeleton({f"node:{node.name}": node for node in term}, dots, tuple(strands), tuple(legs))


def _role(network: TensorNetwork, label: str) -> str:
    groups = {"expert": network.expert_labels, "in": network.in_labels, "out": network.out_labels}
    return next((role for role, labels in groups.items() if label in labels), "bond")
