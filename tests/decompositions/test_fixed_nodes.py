"""Nodes that are fixed: buffers, which are not counted, not filled, not fitted and not saved."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from factorized_moe import Decomposition, FactorizedExpertTensor, MuMoE, Node, TensorNetwork
from factorized_moe.contraction.fixed import RULES, fixed_tensors
from factorized_moe.fitting.closed_form.equal_experts import equal_experts
from factorized_moe.folding import fold
from factorized_moe.network import FIXED_RULES
from factorized_moe.optimisation import parameter_groups
from factorized_moe.surgery.replacing.delta import set_to_zero
from factorized_moe.surgery.saving.saving import from_pretrained, save_pretrained
from factorized_moe.testing import DecompositionContract

TEXT = (
    "expert_0 a, in b, mask(1 0 1 1 0.5 -1): a b, core: a b c, link(identity): c d, d out; "
    "expert_0=4 in=5 out=6 a=2 b=3 c=2 d=2"
)
MASK = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.5, -1.0]], dtype=torch.float64)


class BandedTucker(Decomposition):
    """A Tucker core of which a mask keeps a band, with an identity before the output factor."""

    def network(self, expert_dims: Any, in_features: int, out_features: int, rank: Any) -> TensorNetwork:
        band = [float(abs(row - column) < 2) for row in range(rank) for column in range(rank + 1)]
        nodes = [Node(f"expert_{k}", (f"expert_{k}", "a")) for k in range(len(expert_dims))]
        nodes += [Node("input", "in b"), Node("mask", "a b", fixed=band), Node("core", "a b c")]
        nodes += [Node("link", "c d", fixed="identity"), Node("output", "d out")]
        bonds = {"a": rank, "b": rank + 1, "c": rank, "d": rank}
        return TensorNetwork.from_modes(expert_dims, in_features, out_features, nodes=nodes, bonds=bonds)


@pytest.mark.thorough
class TestBandedTucker(DecompositionContract):
    decomposition = BandedTucker()


def example(**options: Any) -> FactorizedExpertTensor:
    return FactorizedExpertTensor(network=TensorNetwork.parse(TEXT), dtype=torch.float64, **options)


def by_hand(w: FactorizedExpertTensor) -> Tensor:
    p = w.weight.tensors
    return torch.einsum("na,ib,ab,abc,co->nio", p["expert_0"], p["input"], MASK, p["core"], p["output"])


def test_value_and_gradients_are_those_of_a_dense_contraction() -> None:
    w = example()
    x, a = torch.randn(7, 5, dtype=torch.float64), torch.rand(7, 4, dtype=torch.float64)
    expected = torch.einsum("bn,bi,nio->bo", a, x, by_hand(w))
    torch.testing.assert_close(w(x, [a]), expected)
    torch.testing.assert_close(w.to_dense(), by_hand(w))
    torch.testing.assert_close(w.expert(2), by_hand(w)[2])
    weights = torch.randn_like(expected)
    mine, theirs = (torch.autograd.grad((y * weights).sum(), [*w.parameters()]) for y in (w(x, [a]), expected))
    torch.testing.assert_close(mine, theirs)


def test_a_fixed_node_is_a_buffer_that_nothing_counts_or_fills() -> None:
    w = example()
    names = ["expert_0", "input", "core", "output"]
    assert list(w.network.parameter_shapes) == list(w.weight.tensors) == names
    assert [name for name, _ in w.weight.named_buffers()] == ["mask", "link"]
    assert sorted(w.state_dict()) == sorted(f"weight.{name}" for name in names)
    assert w.num_parameters == 4 * 2 + 5 * 3 + 2 * 3 * 2 + 2 * 6 == sum(p.numel() for p in w.parameters())
    assert sum(len(group["params"]) for group in parameter_groups(w)) == len(names)
    w.reset_parameters()
    assert torch.equal(w.weight.mask, MASK)
    assert torch.equal(w.weight.link, torch.eye(2, dtype=torch.float64))
    w.train()
    torch.optim.SGD(w.parameters(), lr=1.0, weight_decay=0.5).step()
    assert torch.equal(w.weight.mask, MASK)


@pytest.mark.parametrize(
    "move",
    [lambda w: w.half().double(), lambda w: w.to("meta").to_empty(device="cpu"), copy.deepcopy],
    ids=["half", "meta", "copy"],
)
def test_a_moved_tensor_holds_it_still(move: Callable[[Any], FactorizedExpertTensor]) -> None:
    w = move(example())
    assert torch.equal(w.weight.mask, MASK)
    assert torch.equal(w.weight.link, torch.eye(2, dtype=torch.float64))


def test_made_on_the_meta_device_and_filled_later() -> None:
    with torch.device("meta"):
        w = example()
    assert w.weight.mask.is_meta
    w.to_empty(device="cpu").reset_parameters()
    torch.testing.assert_close(w.to_dense(), by_hand(w))


def test_a_saved_layer_comes_back(tmp_path: Path) -> None:
    network = TensorNetwork.parse(TEXT)
    layer = MuMoE(5, 6, [4], decomposition=network_decomposition(network), rank=(2, 3, 2, 2), bias=False)
    save_pretrained(layer, tmp_path)
    again = from_pretrained(tmp_path)
    x = torch.randn(3, 5)
    assert torch.equal(layer(x), again(x))
    (experts,) = again.expert_tensors.values()
    assert experts.network == network
    assert torch.equal(experts.weight.mask, MASK.float())


def network_decomposition(network: TensorNetwork) -> Decomposition:
    return FactorizedExpertTensor(network=network).decomposition


def test_a_fit_leaves_it() -> None:
    w = example()
    dense = w.to_dense().detach()
    again = FactorizedExpertTensor.from_dense(dense, w.decomposition, (2, 3, 2, 2), starts=12)
    assert again.relative_error(dense) < 1e-6
    assert torch.equal(again.weight.mask, MASK)
    torch.testing.assert_close(again.to_dense(), by_hand(again))


@pytest.mark.parametrize("init", ["balanced", "variance_preserving"])
@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        "expert_0 expert_1 a, mask(1 0 1 1 0 1): expert_0 a, in a, out a; expert_0=3 expert_1=2 in=5 out=5 a=2",
        "first(0.5 2 1 -1): a b, second(ones): b c, core: expert_0 a in, c out; expert_0=3 in=5 out=5 a=2 b=2 c=4",
        "keep(identity): in out, expert_0 in; expert_0=6 in=5 out=5",
        "expert_0 a, in out a, gate(ones): a + mask(2 0 1): b, other: b in out; expert_0=3 in=4 out=4 a=2 b=3",
    ],
)
def test_the_promised_variance_is_exact(text: str, init: str) -> None:
    network = TensorNetwork.parse(text)
    torch.manual_seed(0)
    w = FactorizedExpertTensor(network=network, init=init, dtype=torch.float64)
    squares = []
    for _ in range(4000):
        w.reset_parameters()
        dense = w.to_dense().detach()
        modes = tuple(range(len(network.expert_dims)))
        squares.append((dense.mean(modes) if init == "balanced" else dense).square().mean())
    values = torch.stack(squares)
    target = 1.0 / network.shape[-2] / (3.0 if init == "balanced" else 1.0)
    assert abs(float(values.mean()) - target) <= 5.0 * float(values.std()) / len(values) ** 0.5


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("core: in out s, mask(1 0 1): s, mix: s, expert_0 s; expert_0=4 in=9 out=8 s=3", 2),
        ("expert_0 b, link(ones): b a, in a, out a; expert_0=15 in=9 out=8 a=21 b=20", 4),  # the product has more
    ],
    ids=["folded", "left"],
)
def test_folding_holds_no_more_parameters(text: str, nodes: int) -> None:
    w = FactorizedExpertTensor(network=TensorNetwork.parse(text), dtype=torch.float64)
    folded = fold(w, 1)
    assert len(folded.network.nodes) == nodes
    assert folded.num_parameters <= w.num_parameters
    torch.testing.assert_close(folded.to_dense(), w.to_dense())


def test_a_delta_starts_at_zero_through_a_parameter() -> None:
    network = TensorNetwork.parse("expert_0 a in, keep(ones): a out; expert_0=3 in=4 out=4 a=2")
    w = FactorizedExpertTensor(network=network)
    set_to_zero(w)
    assert not w.to_dense().any()
    assert torch.equal(w.weight.keep, torch.ones(2, 4))


def test_text_and_objects_say_the_same() -> None:
    network = TensorNetwork.parse(TEXT)
    assert TensorNetwork.parse(str(network)) == network
    assert hash(TensorNetwork.parse(str(network))) == hash(network)
    assert network.nodes[2] == Node("mask", "a b", fixed=MASK.flatten().tolist())
    assert network.nodes[4] == Node("link", ("c", "d"), fixed="identity")
    tiny = Node("mask", "a", fixed=[1e300, 1e-300, 0.1, -3])
    odd = TensorNetwork.from_modes((), 2, 2, nodes=[tiny, Node("core", "in out a")], bonds={"a": 4})
    assert TensorNetwork.parse(str(odd)) == odd


def test_every_rule_has_values() -> None:
    assert tuple(RULES) == FIXED_RULES
    text = "one(identity): a b c, two(ones): a c, core: in out a b c; in=2 out=2 a=2 b=3 c=2"
    values = fixed_tensors(TensorNetwork.parse(text))
    assert values["one"].nonzero().tolist() == [[0, 0, 0], [1, 1, 1]]
    assert values["two"].tolist() == [[1.0, 1.0], [1.0, 1.0]]


REFUSED = {
    "unknown rule": ("link(diagonal): in a, a out", "node 'link' is fixed to 'diagonal'; expected one of ('identity',"),
    "no entries": ("link(): in a, a out", "node 'link' is fixed to (); expected one of"),
    "not finite": ("link(1 nan): in a, a out", "node 'link' is fixed to (1.0, nan); expected one of"),
    "wrong number": ("link(1 2 3): in a, a out", "node 'link' (in=2 a=2) is fixed to 3 entries, it has 4"),
    "a parameter too": ("link@core(ones): in a, core: a out", "node 'link' is fixed, so it reads no parameter 'core'"),
    "read by another": ("link(ones): in a, core@link: a out", "node 'link' is fixed, so no other node can read it"),
    "nothing learned": ("link(ones): in a, core(ones): a out", "all nodes of term 0 are fixed; a term needs a node"),
    "bracket without a name": ("(ones): in a, a out", "name '' of node 0 of term 0 is not a word"),
    "bracket at the labels": ("link: in a (ones), a out", "label '(ones)' of node 0 of term 0 is not a word"),
    "two brackets": ("link(ones)(ones): in a, a out", "has two prefixes or a bracket out of place"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    text, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        TensorNetwork.parse(text, {"in": 2, "out": 2, "a": 2})


def test_what_cannot_be_done_is_said() -> None:
    network = TensorNetwork.parse("mask(0 0): a, core: a in out; in=2 out=2 a=2")
    for init in ("balanced", "variance_preserving"):
        with pytest.raises(ValueError, match=r"fixed nodes \['mask'\] hold makes their term zero"):
            FactorizedExpertTensor(network=network, init=init)
    with pytest.raises(ValueError, match=r"nodes \['mask', 'link'\] are fixed, so experts cannot be set"):
        equal_experts(torch.ones(5, 6), TensorNetwork.parse(TEXT))
    shared = TensorNetwork.parse("link(ones): a b, one: in a, two@one: out b; in=2 out=2 a=2 b=2")
    with pytest.raises(ValueError, match="both fixed nodes and shared parameters"):
        FactorizedExpertTensor(network=shared, init="variance_preserving")
