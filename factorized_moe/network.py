"""Tensor networks as data: which parameter tensors there are and how their indices are joined.

A network describes the dense weight tensor of shape ``(*expert_dims, in_features, out_features)`` as a sum over
*bonds* of a product of *nodes*. It holds no numbers and imports nothing but the standard library, so it can be
hashed, compared, cached, pickled and printed. Planning, execution, costs, initial variance, storage and tests are
all functions of this description.

Legend: *node* one parameter tensor, *label* the name of an index, *bond* a label that is summed over,
*expert mode* one of the leading modes of the dense tensor.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from factorized_moe._scalars import is_whole
from factorized_moe.parsing import FIXED_RULES, check_fixed, parse_network, write_fixed

__all__ = ["BATCH", "FIXED_RULES", "Node", "TensorNetwork"]

BATCH = "batch"
"""The label of the per-sample index. Plans use it; no network may."""

MOST_BONDS_SHOWN = 6
"""Bonds named in a network's repr."""


@dataclass(frozen=True)
class Node:
    """One tensor of a network: its name and its labels, in memory order.

    Args:
        name: The node's name, unique in its network. It is the parameter's name in a state dict.
        labels: The labels of its axes, outermost in memory first.
        parameter: The parameter that the node reads, its own (``name``) by default. Two nodes that name the same
            parameter share it.
        fixed: What the node holds if it is no parameter: a rule, ``"identity"`` or ``"ones"``, which suits any sizes,
            or all entries in memory order, such as a mask's.

    Raises:
        ValueError: If the name is no identifier, a label occurs twice, or ``fixed`` is neither.

    Examples:
        >>> Node("input", ("in", "rank"))
        Node(name='input', labels=('in', 'rank'), parameter='input', fixed=None)
        >>> Node("mask", "a b", fixed=[1, 0, 1, 1]).fixed
        (1.0, 0.0, 1.0, 1.0)
    """

    name: str
    labels: tuple[str, ...]
    parameter: str = ""
    fixed: str | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        labels = self.labels.split() if isinstance(self.labels, str) else self.labels
        object.__setattr__(self, "labels", tuple(labels))
        object.__setattr__(self, "parameter", self.parameter or self.name)
        if not self.name.isidentifier():
            raise ValueError(f"node name {self.name!r} must be a Python identifier, as it names a parameter")
        repeated = [label for label, count in Counter(self.labels).items() if count > 1]
        if repeated:
            raise ValueError(f"node {self.name!r} uses label {repeated[0]!r} twice in {self.labels}; use two labels")
        if self.fixed is not None:
            if self.parameter != self.name:
                raise ValueError(
                    f"node {self.name!r} is fixed, so it reads no parameter {self.parameter!r}; leave one out"
                )
            object.__setattr__(self, "fixed", check_fixed(self.name, self.fixed))


@dataclass(frozen=True)
class TensorNetwork:
    """An immutable description of a factorised weight tensor. Build one with `from_modes`.

    The dense tensor is the sum over ``terms`` of the product of each term's nodes, summed over all bonds. A bond may
    join any number of nodes (CP's rank joins all of them). In a sum of several terms, a term that lacks an expert
    label is the same for every expert of that mode.

    Args:
        terms: For each term of the sum, its nodes.
        label_sizes: ``(label, size)`` for every label, external labels and bonds.
        expert_labels: One label for each expert mode, in the order of ``expert_dims``.
        in_labels: The group of labels that together form the input mode, outermost first.
        out_labels: The group of labels that together form the output mode, outermost first.
        in_padding: By how many entries the input group is larger than the input mode. The last entries of the group
            meet zeros and are no part of the dense tensor, so an input mode of prime size can be split all the same.

    Raises:
        ValueError: If the parts do not fit together; the message names the node and the label.
    """

    terms: tuple[tuple[Node, ...], ...]
    label_sizes: tuple[tuple[str, int], ...]
    expert_labels: tuple[str, ...]
    in_labels: tuple[str, ...] = ("in",)
    out_labels: tuple[str, ...] = ("out",)
    in_padding: int = 0

    def __post_init__(self) -> None:
        _check_sizes(self)
        object.__setattr__(self, "label_sizes", tuple((label, int(size)) for label, size in self.label_sizes))
        _check_nodes(self)
        _check_external_labels(self)
        _check_padding(self)
        _check_bonds(self)
        _check_shared_parameters(self)
        _check_fixed(self)

    @classmethod
    def from_modes(
        cls,
        expert_dims: Sequence[int],
        in_features: int,
        out_features: int,
        *,
        nodes: Mapping[str, str | Sequence[str] | Node] | Iterable[Node],
        bonds: Mapping[str, int],
        in_labels: Mapping[str, int] | None = None,
        out_labels: Mapping[str, int] | None = None,
    ) -> TensorNetwork:
        """Build the network of a weight of given sizes from its nodes and the sizes of its bonds.

        The labels of the modes are ``expert_0``, ``expert_1``, ..., ``in`` and ``out``.

        Args:
            expert_dims: The sizes of the expert modes.
            in_features: The size of the input mode.
            out_features: The size of the output mode.
            nodes: Nodes, or node names with their labels, in memory order: ``{"input": "in rank"}``.
            bonds: The size of each bond.
            in_labels: Sizes of the labels that form the input mode, if it is split: ``{"in_0": 4, "in_1": 8}``.
                They may multiply to more than the input mode's size; the rest is padding.
            out_labels: The same for the output mode, without padding.

        Raises:
            ValueError: If the parts do not fit together.

        Examples:
            >>> cp = TensorNetwork.from_modes(
            ...     (8,),
            ...     16,
            ...     32,
            ...     nodes={"expert_0": "expert_0 rank", "input": "in rank", "output": "out rank"},
            ...     bonds={"rank": 4},
            ... )
            >>> cp.shape
            (8, 16, 32)
        """
        experts = {f"expert_{k}": size for k, size in enumerate(expert_dims)}
        inputs = dict(in_labels) if in_labels is not None else {"in": in_features}
        outputs = dict(out_labels) if out_labels is not None else {"out": out_features}
        for group, size, mode in ((inputs, in_features, "input"), (outputs, out_features, "output")):
            product = math.prod(group.values())
            if product < size or (product > size and mode == "output"):
                raise ValueError(f"the {mode} labels {group} multiply to {product}, not to {size}")
        external = experts | inputs | outputs
        clash = sorted(external.keys() & bonds.keys())
        if clash:
            raise ValueError(f"label {clash[0]!r} names both a mode and a bond; rename the bond")
        if isinstance(nodes, Mapping):
            nodes = [n if isinstance(n, Node) else Node(name, n) for name, n in nodes.items()]  # type: ignore[arg-type]
        return cls(
            terms=(tuple(nodes),),
            label_sizes=tuple((external | dict(bonds)).items()),
            expert_labels=tuple(experts),
            in_labels=tuple(inputs),
            out_labels=tuple(outputs),
            in_padding=math.prod(inputs.values()) - in_features,
        )

    @classmethod
    def parse(cls, text: str, sizes: Mapping[str, int] | None = None) -> TensorNetwork:
        """Read a network that is written as text; ``str(network)`` gives the text back.

        Nodes are lists of labels, separated by commas, with or without a name in front; the modes' labels have the
        usual names. `factorized_moe.parsing` has the whole grammar: sums, sizes within the text, shared parameters.

        Args:
            text: The nodes.
            sizes: The size of every label that the text gives none for.

        Raises:
            TypeError: If the text is not a string.
            ValueError: If it cannot be read, or the parts do not fit together.

        Examples:
            >>> sizes = {"expert_0": 8, "in": 16, "out": 32, "a": 4, "b": 5}
            >>> network = TensorNetwork.parse("expert_0 a, in b, core: a b out", sizes)
            >>> print(network)
            expert_0: expert_0 a, input: in b, core: a b out; expert_0=8 in=16 out=32 a=4 b=5
            >>> TensorNetwork.parse(str(network)) == network
            True
        """
        parsed = parse_network(text, sizes)
        return cls(
            terms=tuple(tuple(Node(n.name, n.labels, n.parameter, n.fixed) for n in term) for term in parsed.terms),
            label_sizes=parsed.label_sizes,
            expert_labels=parsed.expert_labels,
            in_labels=parsed.in_labels,
            out_labels=parsed.out_labels,
            in_padding=parsed.in_padding,
        )

    def __add__(self, other: TensorNetwork) -> TensorNetwork:
        """The network of the sum of two weight tensors of the same modes; node names must differ."""
        if not isinstance(other, TensorNetwork):
            return NotImplemented
        mine, theirs = self.sizes, other.sizes
        differing = sorted(label for label in mine.keys() & theirs.keys() if mine[label] != theirs[label])
        if differing:
            label = differing[0]
            nodes = [next(node.name for node in n.nodes if label in node.labels) for n in (self, other)]
            raise ValueError(
                f"label {label!r} has size {mine[label]} on node {nodes[0]!r} of one term and {theirs[label]} on node "
                f"{nodes[1]!r} of the other; give it one size, or rename one of them"
            )
        mine_grouped, theirs_grouped = ((n.in_labels, n.out_labels, n.in_padding) for n in (self, other))
        if mine_grouped != theirs_grouped:
            raise ValueError("the terms of a sum must group their input and output labels in the same way")
        shorter, longer = sorted((self.expert_labels, other.expert_labels), key=len)
        if not set(shorter) <= set(longer):
            raise ValueError(f"expert labels {shorter} of one term are not among {longer} of the other")
        return TensorNetwork(
            terms=self.terms + other.terms,
            label_sizes=tuple((dict(mine) | dict(theirs)).items()),
            expert_labels=longer,
            in_labels=self.in_labels,
            out_labels=self.out_labels,
            in_padding=self.in_padding,
        )

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The size of every label."""
        return dict(self.label_sizes)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, in the order of the terms."""
        return tuple(node for term in self.terms for node in term)

    @cached_property
    def learned_nodes(self) -> tuple[Node, ...]:
        """The nodes that are not fixed, in the same order: each reads a parameter."""
        return tuple(node for node in self.nodes if node.fixed is None)

    @cached_property
    def shares_parameters(self) -> bool:
        """Whether two nodes read one parameter."""
        return len(self.parameter_shapes) < len(self.learned_nodes)

    @cached_property
    def external_labels(self) -> tuple[str, ...]:
        """The labels of the dense tensor's modes: experts, input group, output group."""
        return (*self.expert_labels, *self.in_labels, *self.out_labels)

    @cached_property
    def bonds(self) -> tuple[str, ...]:
        """The labels that are summed over."""
        external = set(self.external_labels)
        return tuple(label for label, _ in self.label_sizes if label not in external)

    @cached_property
    def expert_dims(self) -> tuple[int, ...]:
        """The sizes of the expert modes."""
        return tuple(self.sizes[label] for label in self.expert_labels)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The dense tensor's shape, ``(*expert_dims, I, O)``."""
        return (*self.expert_dims, self.size_of(self.in_labels) - self.in_padding, self.size_of(self.out_labels))

    @cached_property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, by its name, in the order of the nodes; a shared one occurs once.

        A fixed node has none.
        """
        return {node.parameter: tuple(self.sizes[label] for label in node.labels) for node in self.learned_nodes}

    def size_of(self, labels: Iterable[str]) -> int:
        """The product of the sizes of some labels."""
        return math.prod(self.sizes[label] for label in labels)

    def __repr__(self) -> str:
        """One line; the whole description is ``str(network)``."""
        bonds = [f"{bond}={self.sizes[bond]}" for bond in self.bonds]
        shown = [*bonds[:MOST_BONDS_SHOWN], "..."] if len(bonds) > MOST_BONDS_SHOWN else bonds
        count = f"{len(self.nodes)} node{'s' if len(self.nodes) > 1 else ''}"
        return f"TensorNetwork({' x '.join(map(str, self.shape))}, {count}, {' '.join(shown) or 'no bond'})"

    def __str__(self) -> str:
        """The text that `parse` reads, one line a term, if the modes' labels have the usual names."""

        def word(node: Node) -> str:
            parameter = "" if node.parameter == node.name else f"@{node.parameter}"
            return " ".join([f"{node.name}{parameter}{write_fixed(node.fixed)}:", *node.labels])

        sizes = [f"{label}={size}" for label, size in self.label_sizes]
        if self.in_padding:
            sizes.append(f"in={self.shape[-2]}")
        terms = "\n+ ".join(", ".join(word(node) for node in term) for term in self.terms)
        return f"{terms}; {' '.join(sizes)}"


def _check_fixed(network: TensorNetwork) -> None:
    for node in network.nodes:
        entries = network.size_of(node.labels)
        if isinstance(node.fixed, tuple) and len(node.fixed) != entries:
            sized = " ".join(f"{label}={network.sizes[label]}" for label in node.labels)
            raise ValueError(f"node {node.name!r} ({sized}) is fixed to {len(node.fixed)} entries, it has {entries}")
        if node.fixed is not None and node.name in network.parameter_shapes:
            raise ValueError(f"node {node.name!r} is fixed, so no other node can read it as a parameter; rename one")
    for number, term in enumerate(network.terms):
        if all(node.fixed is not None for node in term):
            raise ValueError(f"all nodes of term {number} are fixed; a term needs a node that is not")


def _check_sizes(network: TensorNetwork) -> None:
    for label, size in network.label_sizes:
        if not is_whole(size) or size < 1:
            raise ValueError(f"label {label!r} has size {size!r}; a size is a positive int")
    if BATCH in network.sizes:
        raise ValueError(f"label {BATCH!r} is reserved for the samples' index; rename it")


def _check_nodes(network: TensorNetwork) -> None:
    repeated = [name for name, count in Counter(node.name for node in network.nodes).items() if count > 1]
    if repeated:
        raise ValueError(f"two nodes are named {repeated[0]!r}; node names must differ")
    if not all(network.terms) or not network.terms:
        raise ValueError("every term of a network needs at least one node")
    for node in network.nodes:
        for label in node.labels:
            if label not in network.sizes:
                raise ValueError(f"node {node.name!r} uses label {label!r}, which has no size; add it to the bonds")


def _check_external_labels(network: TensorNetwork) -> None:
    repeated = [label for label, count in Counter(network.external_labels).items() if count > 1]
    if repeated:
        raise ValueError(f"label {repeated[0]!r} stands for two modes; each mode needs its own label")
    for number, term in enumerate(network.terms):
        carried = {label for node in term for label in node.labels}
        # In a sum, a term without an expert label is shared by that mode's experts; alone, it is a mistake.
        needed = network.external_labels if len(network.terms) == 1 else network.in_labels + network.out_labels
        missing = [label for label in needed if label not in carried]
        if missing:
            names = [node.name for node in term]
            raise ValueError(f"no node of term {number} {names} carries the mode's label {missing[0]!r}; add it to one")
    everywhere = {label for node in network.nodes for label in node.labels}
    missing = [label for label in network.external_labels if label not in everywhere]
    if missing:
        raise ValueError(f"no node carries the mode's label {missing[0]!r}; add it to one")


def _check_padding(network: TensorNetwork) -> None:
    inner = network.size_of(network.in_labels[1:])
    if not 0 <= network.in_padding < inner:
        group = {label: network.sizes[label] for label in network.in_labels}
        raise ValueError(
            f"the input labels {group} have {network.in_padding} entries more than the input mode, expected 0 to "
            f"{inner - 1}: give {network.in_labels[0]!r} another size"
        )


def _check_bonds(network: TensorNetwork) -> None:
    for bond in network.bonds:
        uses = [[node.name for node in term if bond in node.labels] for term in network.terms]
        if not any(uses):
            raise ValueError(f"bond {bond!r} has a size but is on no node; remove it or add it to two nodes")
        for names in uses:
            if len(names) == 1:
                raise ValueError(f"bond {bond!r} dangles: only node {names[0]!r} carries it; a bond joins two or more")


def _check_shared_parameters(network: TensorNetwork) -> None:
    first: dict[str, Node] = {}
    for node in network.nodes:
        other = first.setdefault(node.parameter, node)
        mine, theirs = ([network.sizes[label] for label in n.labels] for n in (node, other))
        if mine != theirs:
            sized = [" ".join(f"{label}={network.sizes[label]}" for label in n.labels) for n in (other, node)]
            raise ValueError(
                f"nodes {other.name!r} ({sized[0]}) and {node.name!r} ({sized[1]}) share parameter {node.parameter!r} "
                "but differ in shape; give each a parameter of its own"
            )
