"""The container: what it shares with TensorLy and TensorLy-Torch, and what their tools do to it."""

import re
from typing import Any

import pytest
import tensorly
import torch
from tltorch import FactorizedTensor
from tltorch.tensor_hooks import remove_tensor_dropout, tensor_dropout
from torch import nn
from torch.nn.utils import parametrize

from factorized_moe import Decomposition, FactorizedExpertTensor, Node, TensorNetwork
from factorized_moe.storage import NetworkTensor, NetworkTensorDropout, Operands
from factorized_moe.testing import Structure, dense_from_nodes

BUILT_IN = ("cp", "tucker", "tt", "tr")
STRUCTURE = Structure((6, 3), 4, 5, rank=2, bias=True, batch_shape=(7,))


def memory(tensors: Any) -> set[int]:
    """The addresses of the memory behind some tensors."""
    if isinstance(tensors, torch.Tensor):
        return {tensors.untyped_storage().data_ptr()}
    if isinstance(tensors, (list, tuple)):
        return {address for tensor in tensors for address in memory(tensor)}
    return set()


def test_one_named_parameter_for_each_node() -> None:
    w = STRUCTURE.tensor("tucker")
    assert list(w.state_dict()) == [f"weight.{name}" for name in ("expert_0", "expert_1", "input", "output", "core")]
    assert isinstance(w.weight, FactorizedTensor)
    assert w.weight.shape == STRUCTURE.shape
    assert torch.equal(w.weight.to_tensor(), w.to_dense())
    assert w.weight() is w.weight  # without hooks


@pytest.mark.parametrize("name", BUILT_IN)
def test_tensorly_shares_every_parameter(name: str) -> None:
    w = STRUCTURE.tensor(name)
    value = w.to_tensorly()
    shared = memory(list(value))
    for parameter in w.parameters():
        assert memory(parameter) <= shared
    assert type(w.weight.decomposition) is type(value)
    assert tuple(value.shape) == STRUCTURE.shape


@pytest.mark.parametrize("name", ["cp", "tucker", "tt"])
@pytest.mark.parametrize("expert_dims", [(), (3,), (3, 2)])
def test_tltorch_shares_every_parameter(name: str, expert_dims: tuple[int, ...]) -> None:
    w = Structure(expert_dims, 4, 5, 2, bias=True).tensor(name)
    theirs = w.weight.to_tltorch()
    assert type(theirs).__module__.startswith("tltorch.")
    torch.testing.assert_close(theirs.to_tensor(), w.to_dense())
    for parameter in w.parameters():
        assert memory(parameter) <= memory(list(theirs.parameters()))
    with torch.no_grad():
        next(w.parameters()).mul_(3.0)
    torch.testing.assert_close(theirs.to_tensor(), w.to_dense())


@pytest.mark.filterwarnings("ignore:Given only one int for 'rank':RuntimeWarning")
@pytest.mark.parametrize("name", ["cp", "tucker", "tt"])
def test_parameters_are_read_from_tltorch(name: str) -> None:
    torch.manual_seed(0)
    theirs = FactorizedTensor.new((3, 4, 5), rank=3, factorization=name)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    w = FactorizedExpertTensor((3,), 4, 5, name, theirs.rank)
    tensors = w.decomposition.from_tltorch(theirs)
    w.weight.assign(tensors)
    torch.testing.assert_close(w.to_dense(), theirs.to_tensor())
    if name != "cp":  # its weights are folded into a factor
        assert memory(list(tensors.values())) == memory(list(theirs.parameters()))


def test_global_backend_is_not_needed() -> None:
    """Importing TensorLy-Torch sets TensorLy's backend; a user may set another one."""
    tensorly.set_backend("numpy")
    try:
        for name in BUILT_IN:
            w = STRUCTURE.tensor(name)
            FactorizedExpertTensor.from_tensorly(w.to_tensorly(), name, w.rank, bias=True)
            FactorizedExpertTensor.from_dense(w.to_dense().detach(), name, 1)
            assert tensorly.get_backend() == "numpy"
    finally:
        tensorly.set_backend("pytorch")


OWN_OF_TLTORCH = ("dense", "cp", "tucker", "tt", "complexdense", "complexcp", "complextucker", "complextt")


@pytest.mark.filterwarnings("ignore:Given only one int for 'rank':RuntimeWarning")
@pytest.mark.parametrize("name", OWN_OF_TLTORCH)
def test_tltorch_keeps_its_own_names(name: str) -> None:
    made = FactorizedTensor.new((3, 4, 5), rank=2, factorization=name)
    assert type(made).__module__.startswith("tltorch.")
    assert tuple(made.shape) == (3, 4, 5)


@pytest.mark.parametrize("name", ["tr", "TR"])
def test_tltorch_gains_the_tensor_ring(name: str) -> None:
    made = FactorizedTensor.new((3, 4, 5), rank=2, factorization=name)
    assert isinstance(made, NetworkTensor)
    assert made.rank == (2, 2, 2, 2)
    torch.testing.assert_close(made.to_tensor(), dense_from_nodes(made.network, made.tensors))
    assert FactorizedTensor.new((3, 4, 5), rank="same", factorization=name).shape == (3, 4, 5)
    fewer = FactorizedTensor.new((3, 4, 5), rank=0.5, factorization=name)
    assert sum(p.numel() for p in fewer.parameters()) <= 30


@pytest.mark.parametrize("name", BUILT_IN)
def test_tensor_dropout_keeps_the_mean(name: str) -> None:
    """Over many masks the output's mean is the output without dropout, within five standard errors."""
    structure = Structure((3,), 4, 5, rank=5, batch_shape=(2,))
    w, (x, coefficients) = structure.tensor(name), structure.arguments()
    expected = w(x, coefficients)
    tensor_dropout(w.weight, p=0.3)
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = torch.stack([w(x, coefficients) for _ in range(3000)])
    error = 5 * outputs.std(0) / len(outputs) ** 0.5
    assert ((outputs.mean(0) - expected).abs() <= error).all()
    assert (error < 0.5 * expected.abs().max()).all()
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(w.eval()(x, coefficients), expected)
    remove_tensor_dropout(w.weight)
    assert torch.equal(w.train()(x, coefficients), expected)


def test_tensor_dropout_zeroes_bonds() -> None:
    """With one bond and probability near 1, what is left is a multiple of single terms of the sum."""
    structure = Structure((), 4, 5, rank=6, batch_shape=(2,))
    w = structure.tensor("cp")
    tensor_dropout(w.weight, p=0.5)
    torch.manual_seed(0)
    kept = w.weight().operands[0] / w.weight.operands[0]  # (I, R): 0 or 1 / (1 - p), the same for all rows
    assert torch.equal(kept, kept[:1].expand_as(kept))
    assert set(kept[0].tolist()) == {0.0, 2.0}
    assert torch.equal(w.weight().operands[1], w.weight.operands[1])


def test_tensor_dropout_leaves_short_bonds_alone() -> None:
    structure = Structure((3,), 4, 5, rank=2, batch_shape=(2,))
    w, (x, coefficients) = structure.tensor("tr"), structure.arguments()
    expected = w(x, coefficients)
    tensor_dropout(w.weight, p=0.9, min_dim=2)
    assert torch.equal(w(x, coefficients), expected)


@pytest.mark.thorough
def test_tensor_dropout_compiles() -> None:
    structure = Structure((3,), 4, 5, rank=5, batch_shape=(2,))
    w, (x, coefficients) = structure.tensor("tt"), structure.arguments()
    expected = w(x, coefficients)
    tensor_dropout(w.weight, p=0.3)
    torch.compiler.reset()
    compiled = torch.compile(w, fullgraph=True, backend="aot_eager")
    one, two = compiled(x, coefficients), compiled(x, coefficients)
    assert not torch.equal(one, two)
    one.sum().backward()
    torch.testing.assert_close(torch.compile(w.eval(), fullgraph=True, backend="aot_eager")(x, coefficients), expected)


def test_a_hook_may_replace_the_operands() -> None:
    w, (x, coefficients) = STRUCTURE.tensor("cp"), STRUCTURE.arguments()
    expected = w(x, coefficients)

    def double(module: nn.Module, arguments: Any, weight: NetworkTensor) -> Operands:
        first, *others = weight.operands
        return Operands((2.0 * first, *others))

    handle = w.weight.register_forward_hook(double)
    torch.testing.assert_close(w(x, coefficients), 2.0 * expected)
    torch.testing.assert_close(w.expert(1, 2), 2.0 * dense_from_nodes(w.network, w.weight.tensors)[1, 2])
    handle.remove()
    assert torch.equal(w(x, coefficients), expected)


def test_a_parameter_may_be_parametrized() -> None:
    class Halved(nn.Module):
        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return 0.5 * value

    w, (x, coefficients) = STRUCTURE.tensor("tucker"), STRUCTURE.arguments()
    expected = 0.5 * w(x, coefficients)
    parametrize.register_parametrization(w.weight, "input", Halved())
    torch.testing.assert_close(w(x, coefficients), expected)


def test_shared_parameters_are_stored_once() -> None:
    tied = [Node("one", ("in", "rank"), parameter="factor"), Node("two", ("rank", "out"), parameter="other")]
    more = [Node("three", ("in", "b"), parameter="factor"), Node("four", ("b", "out"))]
    first = TensorNetwork.from_modes((), 4, 5, nodes=tied, bonds={"rank": 2})
    network = first + TensorNetwork.from_modes((), 4, 5, nodes=more, bonds={"b": 2})
    weight = NetworkTensor(network)
    with torch.no_grad():
        for parameter in weight.parameters():
            parameter.normal_()
    assert sorted(dict(weight.named_parameters())) == ["factor", "four", "other"]
    assert weight.operands[0] is weight.operands[2]
    torch.testing.assert_close(weight.to_tensor(), weight.factor @ (weight.other + weight.four))


class Hidden(Decomposition):
    """A node of a name that every container has."""

    def network(self, expert_dims: Any, in_features: int, out_features: int, rank: Any) -> TensorNetwork:
        return TensorNetwork.from_modes((), in_features, out_features, nodes={"shape": "in out"}, bonds={})


REFUSED = {
    "a name that is taken": (
        lambda: FactorizedExpertTensor((), 4, 5, Hidden(), 1),
        ValueError,
        "a node's parameter cannot be named 'shape', an attribute of its container; rename",
    ),
    "TensorLy-Torch has none": (
        lambda: STRUCTURE.tensor("tr").weight.to_tltorch(),
        TypeError,
        "TensorLy-Torch has no factorisation like TensorRing",
    ),
    "a network by hand": (
        lambda: NetworkTensor(STRUCTURE.network("cp")).to_tensorly(),
        TypeError,
        "a hand-written network has no TensorLy format",
    ),
    "a network by hand, to TensorLy-Torch": (
        lambda: NetworkTensor(STRUCTURE.network("cp")).to_tltorch(),
        TypeError,
        "a hand-written network has no TensorLy format",
    ),
    "dropout that is certain": (
        lambda: tensor_dropout(STRUCTURE.tensor("cp").weight, p=1.0),
        AssertionError,
        "tensor dropout is defined for 0 <= proba < 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case: str) -> None:
    act, error, message = REFUSED[case]
    with pytest.raises(error, match=re.escape(message)):
        act()


def test_dropout_finds_its_container_by_name() -> None:
    made = FactorizedTensor.new((6, 7, 8), rank=5, factorization="tr")
    tensor_dropout(made, p=0.5)
    assert any(isinstance(hook, NetworkTensorDropout) for hook in made._forward_hooks.values())
    assert isinstance(made(), Operands)


def test_values_of_another_shape_and_as_many_entries_are_refused() -> None:
    weight = STRUCTURE.tensor("cp").weight
    before = {name: value.detach().clone() for name, value in weight.tensors.items()}
    given = {**before, "expert_0": before["expert_0"].T.contiguous()}
    with pytest.raises(ValueError, match=r"'expert_0' has shape \(2, 6\), its parameter \(6, 2\)"):
        weight.assign(given)
    flat = {**before, "expert_0": before["expert_0"].reshape(1, 6, 2)}  # copy_ would take it
    with pytest.raises(ValueError, match=r"'expert_0' has shape \(1, 6, 2\), its parameter \(6, 2\)"):
        weight.assign(flat)
    assert all(torch.equal(value, before[name]) for name, value in weight.tensors.items())
