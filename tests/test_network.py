"""Networks as data: what they say about themselves, and what they refuse."""

import pickle
import re
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given

from factorized_moe import Node, TensorNetwork
from factorized_moe.testing import networks

CP = {"expert_0": "expert_0 rank", "input": "in rank", "output": "out rank"}


def cp(rank: int = 2, **changes: Any) -> TensorNetwork:
    arguments = {"expert_dims": (3,), "in_features": 4, "out_features": 5, "nodes": CP, "bonds": {"rank": rank}}
    arguments |= changes
    return TensorNetwork.from_modes(
        arguments.pop("expert_dims"), arguments.pop("in_features"), arguments.pop("out_features"), **arguments
    )


def network(*nodes: Node, experts: tuple[str, ...] = (), **sizes: int) -> TensorNetwork:
    return TensorNetwork(terms=(nodes,), label_sizes=tuple({"in": 4, "out": 5, **sizes}.items()), expert_labels=experts)


def padded_matrix(in_features: int, name: str) -> TensorNetwork:
    labels = {"in_0": 2, "in_1": 3}
    return TensorNetwork.from_modes((), in_features, 4, nodes={name: "in_0 in_1 out"}, bonds={}, in_labels=labels)


MATRIX = Node("matrix", ("in", "out"))


def test_a_network_describes_itself() -> None:
    described = cp()
    assert described.expert_dims == (3,)
    assert described.shape == (3, 4, 5)
    assert described.external_labels == ("expert_0", "in", "out")
    assert described.bonds == ("rank",)
    assert described.sizes == {"expert_0": 3, "in": 4, "out": 5, "rank": 2}
    assert described.parameter_shapes == {"expert_0": (3, 2), "input": (4, 2), "output": (5, 2)}
    assert [node.name for node in described.nodes] == ["expert_0", "input", "output"]
    assert described.size_of(("in", "rank")) == 8
    assert str(described) == "expert_0: expert_0 rank, input: in rank, output: out rank; expert_0=3 in=4 out=5 rank=2"


def test_nodes_are_given_as_a_mapping_or_in_order() -> None:
    assert cp(nodes=[Node(name, labels) for name, labels in CP.items()]) == cp()
    assert cp(nodes=[Node(name, tuple(labels.split())) for name, labels in CP.items()]) == cp()
    assert cp(nodes={name: labels.split() for name, labels in CP.items()}) == cp()
    assert cp(nodes={**CP, "input": Node("input", "in rank")}) == cp()


@given(networks())
def test_a_network_is_a_value(drawn: TensorNetwork) -> None:
    again = pickle.loads(pickle.dumps(drawn))
    assert again == drawn
    assert hash(again) == hash(drawn)
    assert str(drawn).count("\n+ ") == len(drawn.terms) - 1
    with pytest.raises(FrozenInstanceError):
        drawn.terms = ()  # type: ignore[misc]


def test_split_modes() -> None:
    nodes = {"left": "in_0 out_0 bond", "right": "in_1 out_1 bond"}
    split = TensorNetwork.from_modes(
        (), 6, 20, nodes=nodes, bonds={"bond": 2}, in_labels={"in_0": 2, "in_1": 3}, out_labels={"out_0": 4, "out_1": 5}
    )
    assert split.shape == (6, 20)
    assert split.in_labels == ("in_0", "in_1")
    assert split.bonds == ("bond",)


def test_a_padded_input_mode() -> None:
    padded, other = (padded_matrix(5, name) for name in ("one", "other"))
    assert padded.in_padding == 1
    assert padded.shape == (5, 4)
    assert (padded + other).in_padding == 1


def test_a_sum_of_networks() -> None:
    shared = TensorNetwork.from_modes((), 4, 5, nodes={"shared": "in out"}, bonds={})
    total = cp() + shared
    assert total.shape == (3, 4, 5)
    assert total.expert_labels == ("expert_0",)
    assert (shared + cp()).expert_labels == ("expert_0",)
    assert [len(term) for term in total.terms] == [3, 1]
    assert str(total).endswith("\n+ shared: in out; expert_0=3 in=4 out=5 rank=2")
    assert (cp().__add__(3)) is NotImplemented  # type: ignore[operator]


def test_shared_parameters_are_listed_once() -> None:
    nodes = [Node("one", "in bond", parameter="both"), Node("two", "out bond", parameter="both")]
    tied = TensorNetwork.from_modes((), 4, 4, nodes=nodes, bonds={"bond": 2})
    assert tied.parameter_shapes == {"both": (4, 2)}


REFUSED = {
    "node name": (
        lambda: Node("two words", "in out"),
        "node name 'two words' must be a Python identifier, as it names a parameter",
    ),
    "label twice in a node": (
        lambda: Node("square", "in in"),
        "node 'square' uses label 'in' twice in ('in', 'in'); use two labels",
    ),
    "dangling bond": (
        lambda: network(Node("matrix", "in out bond"), bond=2),
        "bond 'bond' dangles: only node 'matrix' carries it; a bond joins two or more",
    ),
    "dangling in one term": (
        lambda: TensorNetwork(
            terms=((Node("a", "in b"), Node("c", "out b")), (Node("d", "in out b"),)),
            label_sizes=(("in", 4), ("out", 5), ("b", 2)),
            expert_labels=(),
        ),
        "bond 'b' dangles: only node 'd' carries it",
    ),
    "unused bond": (
        lambda: network(MATRIX, bond=2),
        "bond 'bond' has a size but is on no node; remove it or add it to two nodes",
    ),
    "missing expert label": (
        lambda: network(MATRIX, experts=("expert_0",), expert_0=3),
        "no node of term 0 ['matrix'] carries the mode's label 'expert_0'; add it to one",
    ),
    "missing expert label in a sum": (
        lambda: TensorNetwork(
            terms=((MATRIX,), (Node("other", "in out"),)),
            label_sizes=(("in", 4), ("out", 5), ("expert_0", 3)),
            expert_labels=("expert_0",),
        ),
        "no node carries the mode's label 'expert_0'; add it to one",
    ),
    "missing output label": (
        lambda: network(Node("vector", "in")),
        "no node of term 0 ['vector'] carries the mode's label 'out'; add it to one",
    ),
    "missing input label in one term": (
        lambda: TensorNetwork(
            terms=((MATRIX,), (Node("bias", "out"),)), label_sizes=(("in", 4), ("out", 5)), expert_labels=()
        ),
        "no node of term 1 ['bias'] carries the mode's label 'in'; add it to one",
    ),
    "label without a size": (
        lambda: network(Node("a", "in bond"), Node("b", "out bond")),
        "node 'a' uses label 'bond', which has no size; add it to the bonds",
    ),
    "two nodes of one name": (lambda: network(MATRIX, MATRIX), "two nodes are named 'matrix'; node names must differ"),
    "one label for two modes": (
        lambda: TensorNetwork(
            terms=((MATRIX,),), label_sizes=(("in", 4), ("out", 5)), expert_labels=(), out_labels=("in", "out")
        ),
        "label 'in' stands for two modes; each mode needs its own label",
    ),
    "no node": (lambda: network(), "every term of a network needs at least one node"),
    "no term": (
        lambda: TensorNetwork(terms=(), label_sizes=(("in", 4), ("out", 5)), expert_labels=()),
        "every term of a network needs at least one node",
    ),
    "reserved label": (
        lambda: network(Node("a", "in batch"), Node("b", "out batch"), batch=2),
        "label 'batch' is reserved for the samples' index; rename it",
    ),
    "size 0": (lambda: cp(rank=0), "label 'rank' has size 0; a size is a positive int"),
    "size of another type": (lambda: cp(rank=2.0), "label 'rank' has size 2.0; a size is a positive int"),
    "boolean size": (lambda: cp(rank=True), "label 'rank' has size True; a size is a positive int"),
    "group of the wrong size": (
        lambda: cp(in_labels={"in_0": 1, "in_1": 3}),
        "the input labels {'in_0': 1, 'in_1': 3} multiply to 3, not to 4",
    ),
    "too much padding": (
        lambda: cp(nodes={"core": "expert_0 in_0 in_1 out"}, bonds={}, in_labels={"in_0": 3, "in_1": 2}),
        "the input labels {'in_0': 3, 'in_1': 2} have 2 entries more than the input mode, expected 0 to 1: "
        "give 'in_0' another size",
    ),
    "padding of one label": (
        lambda: cp(in_labels={"in": 5}),
        "the input labels {'in': 5} have 1 entries more than the input mode, expected 0 to 0: give 'in' another size",
    ),
    "output group of the wrong size": (
        lambda: cp(out_labels={"out": 6}),
        "the output labels {'out': 6} multiply to 6, not to 5",
    ),
    "bond named as a mode": (
        lambda: cp(bonds={"rank": 2, "in": 4}),
        "label 'in' names both a mode and a bond; rename the bond",
    ),
    "shared parameter of two shapes": (
        lambda: network(Node("a", "in bond"), Node("b", "out bond", parameter="a"), bond=2),
        "nodes 'a' (in=4 bond=2) and 'b' (out=5 bond=2) share parameter 'a' but differ in shape; give each",
    ),
    "sum of different sizes": (
        lambda: cp(rank=2) + network(Node("left", "in rank"), Node("right", "rank out"), rank=3),
        "label 'rank' has size 2 on node 'expert_0' of one term and 3 on node 'left' of the other; give it one size",
    ),
    "sum of different groups": (
        lambda: cp() + cp(nodes={"core": "expert_0 in_0 in_1 out"}, bonds={}, in_labels={"in_0": 2, "in_1": 2}),
        "the terms of a sum must group their input and output labels in the same way",
    ),
    "sum of different padding": (
        lambda: padded_matrix(6, "one") + padded_matrix(5, "other"),
        "the terms of a sum must group their input and output labels in the same way",
    ),
    "sum of other experts": (
        lambda: cp() + network(Node("other", "in out expert_9"), experts=("expert_9",), expert_9=3),
        "expert labels ('expert_0',) of one term are not among ('expert_9',) of the other",
    ),
    "sum with equal node names": (lambda: cp() + cp(), "two nodes are named 'expert_0'; node names must differ"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case: str) -> None:
    build, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        build()
