"""Networks as text: what is read, what is written, and what is refused."""

import re
from typing import Any

import pytest
from hypothesis import given

from factorized_moe import FactorizedExpertTensor, Node, TensorNetwork, available_decompositions
from factorized_moe.testing import networks

SIZES = {"expert_0": 8, "in": 16, "out": 32, "a": 4, "b": 3, "c": 5}
TUCKER = "expert_0 a, in b, out c, a b c"


def names(text: str, **sizes: int) -> list[str]:
    return [node.name for node in TensorNetwork.parse(text, sizes).nodes]


def test_reads_nodes_labels_and_sizes() -> None:
    network = TensorNetwork.parse(TUCKER, SIZES)
    assert network.shape == (8, 16, 32)
    assert network.bonds == ("a", "b", "c")
    assert network.parameter_shapes == {"expert_0": (8, 4), "input": (16, 3), "output": (32, 5), "core": (4, 3, 5)}


@pytest.mark.parametrize(
    "text",
    [
        "expert_0: expert_0 a, input: in b, output: out c, core: a b c",
        "expert_0 a,in b,out c,core=a b c",
        "  expert_0\n a , in  b,\tout c, core = a b c  ",
        TUCKER + ";",
    ],
)
def test_names_and_spaces(text: str) -> None:
    assert TensorNetwork.parse(text, SIZES) == TensorNetwork.parse(TUCKER, SIZES)


def test_sizes_in_the_text_and_apart_are_one() -> None:
    sizes = {"c": 5, "in": 16}
    text = TUCKER + "; expert_0=8, out=32 a=4\n b=3 in=16"
    assert TensorNetwork.parse(text, sizes).sizes == SIZES


def test_derived_names() -> None:
    assert names("in_0 x, in_1 x, x y, out y; in_0=2 in_1=2 out=2 x=2 y=2") == ["input_0", "input_1", "core", "output"]
    assert names("in x, x y, x y out; in=2 out=2 x=2 y=2") == ["input", "core", "output"]
    assert names("in x, x y, y z, out z; in=2 out=2 x=2 y=2 z=2") == ["input", "core", "core_2", "output"]
    assert names("expert_1 in x, expert_0 x out; expert_0=2 expert_1=2 in=2 out=2 x=2") == [
        "expert_1_input",
        "expert_0_output",
    ]


def test_experts_are_in_order_of_their_numbers() -> None:
    text = " ".join(f"expert_{k}" for k in (10, 2, 0, 1, 9, 8, 7, 6, 5, 4, 3))
    sizes = {f"expert_{k}": k + 1 for k in range(11)}
    network = TensorNetwork.parse(f"{text} in out", {**sizes, "in": 2, "out": 3})
    assert network.expert_dims == tuple(range(1, 12))


def test_a_sum_a_shared_parameter_and_padding() -> None:
    text = "shared: in_0 in_1 out + expert_0 a, left@both: in_0 a, right@both: in_1 a, out a"
    network = TensorNetwork.parse(text, {"expert_0": 2, "in_0": 3, "in_1": 3, "in": 8, "out": 4, "a": 2})
    assert [len(term) for term in network.terms] == [1, 4]
    assert network.shape == (2, 8, 4)
    assert network.in_padding == 1
    assert network.nodes[3] == Node("right", ("in_1", "a"), parameter="both")
    assert TensorNetwork.parse(str(network)) == network


@given(networks())
def test_round_trip_of_any_network(network: TensorNetwork) -> None:
    assert TensorNetwork.parse(str(network)) == network


@pytest.mark.parametrize("name", available_decompositions())
@pytest.mark.parametrize("expert_dims", [(), (3,), (3, 2, 4)])
def test_round_trip_of_every_decomposition(name: str, expert_dims: tuple[int, ...]) -> None:
    network = FactorizedExpertTensor(expert_dims, 12, 10, name, 2, bias=True).network
    assert TensorNetwork.parse(str(network)) == network


def test_labels_that_only_begin_like_a_mode_are_bonds() -> None:
    network = TensorNetwork.parse("in inner, out inner; in=2 out=3 inner=4")
    assert network.bonds == ("inner",)


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "empty": ("", {}, "node 0 of term 0 is empty; write its labels, or remove the comma, plus or semicolon"),
    "no nodes": ("; in=2", {}, "node 0 of term 0 is empty"),
    "trailing comma": ("in a, out a,", {}, "node 2 of term 0 is empty"),
    "double comma": ("in a,, out a", {}, "node 1 of term 0 is empty"),
    "trailing plus": ("in out +", {}, "node 0 of term 1 is empty"),
    "einsum": ("in a, out a -> in out", {}, "an arrow has no place in 'in a, out a -> in out'"),
    "two semicolons": ("in out; in=2; out=3", {}, "2 semicolons in 'in out; in=2; out=3'; one, before the sizes"),
    "two prefixes": ("a: b: in out", {}, "node 0 of term 0, 'a: b: in out', has two prefixes"),
    "no word": ("in a-b, out a-b", {}, "label 'a-b' of node 0 of term 0 is not a word; separate labels by spaces"),
    "number": ("in 4, out 4", {}, "label '4' of node 0 of term 0 is not a word"),
    "name of two words": ("my core: in out", {}, "name 'my core' of node 0 of term 0 is not a word"),
    "no name": (": in out", {}, "name '' of node 0 of term 0 is not a word"),
    "no parameter": ("left@: in out", {}, "name '' of node 0 of term 0 is not a word"),
    "no input": ("expert_0 out", {}, "no node carries the label 'in' (or in_0, in_1, ..); the labels are"),
    "no output": ("in x, x", {}, "no node carries the label 'out' (or out_0, out_1, ..)"),
    "expert without number": ("expert in out", {}, "label 'expert' has no number; expert modes are expert_0, expert_1"),
    "gap": ("expert_0 expert_2 in out", {}, "label 'expert_2' is used, 'expert_1' is not; numbers start at 0"),
    "no zero": ("in_1 in_2 out", {}, "label 'in_2' is used, 'in_0' is not; numbers start at 0 without a gap"),
    "mode and group": (
        "in in_0 out",
        {},
        "labels 'in' and 'in_0' are both used; a mode is one label or a numbered group",
    ),
    "no size": (TUCKER, {"in": 16, "out": 32, "a": 4}, "labels ['expert_0', 'b', 'c'] have no size; add them to sizes"),
    "misspelt size": (
        "in rank, rank out; in=2 out=2 rnak=3",
        {},
        "label 'rnak' has a size, but no node carries it; did",
    ),
    "unused size": (
        "in out; in=2 out=2 x=3",
        {},
        "label 'x' has a size, but no node carries it; the labels are ['in', 'out']",
    ),
    "size with a colon": ("in out; in:2", {}, "size 'in:2' cannot be read; sizes are written as in 'in=16 rank=4'"),
    "size with spaces": ("in out; in = 2", {}, "size 'in' cannot be read"),
    "size of no number": ("in out; in=two", {}, "size 'in=two' cannot be read"),
    "size twice": ("in out; in=2 in=3", {}, "label 'in' has two sizes in the text, 2 and 3"),
    "two sizes": ("in out; in=2 out=3", {"in": 4}, "label 'in' has size 2 in the text and 4 in sizes"),
    "size zero": ("in out; in=0 out=3", {}, "label 'in' has size 0; a size is a positive int"),
    "size of another type": ("in out", {"in": 2.0, "out": 3}, "label 'in' has size 2.0; a size is a positive int"),
    "group too small": (
        "in_0 in_1 out; in_0=2 in_1=2 in=5 out=3",
        {},
        "the input labels ['in_0', 'in_1'] multiply to 4, fewer than in=5",
    ),
    "too much padding": ("in_0 in_1 out; in_0=9 in_1=2 in=5 out=3", {}, "have 13 entries more than the input mode"),
    "label twice": ("in in out; in=2 out=2", {}, "node 'input_input_output' uses label 'in' twice"),
    "name twice": ("x: in a, x: out a; in=2 out=2 a=2", {}, "two nodes are named 'x'; node names must differ"),
    "dangling bond": ("in out x; in=2 out=2 x=2", {}, "bond 'x' dangles: only node 'input_output' carries it"),
    "reserved label": ("in batch, batch out; in=2 out=2 batch=2", {}, "label 'batch' is reserved"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case: str) -> None:
    text, sizes, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        TensorNetwork.parse(text, sizes)


def test_refuses_what_is_no_text() -> None:
    with pytest.raises(TypeError, match=r"a network is parsed from a string such as 'in rank, rank out', got \['in'\]"):
        TensorNetwork.parse(["in"])  # type: ignore[arg-type]
