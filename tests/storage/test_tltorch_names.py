"""What TensorLy-Torch expects of a factorised tensor, of every name in its registry: it works, or is refused in a word.

No name may answer with another form.
"""

import copy
import math
import pickle
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tltorch import (
    TRL,
    FactorizedConv,
    FactorizedEmbedding,
    FactorizedLinear,
    FactorizedTensor,
    TensorizedTensor,
    tensor_init,
    tensor_lasso,
)
from tltorch.tensor_hooks import TensorLasso, remove_tensor_dropout, remove_tensor_lasso, tensor_dropout
from torch import Tensor

from factorized_moe import FactorizedExpertTensor, TensorNetwork, available_decompositions, register
from factorized_moe.contraction import dense_tensor
from factorized_moe.decompositions import registry
from factorized_moe.decompositions.base import GivenNetwork
from factorized_moe.fitting import fit
from factorized_moe.storage import NetworkTensor

SHAPE = (4, 3, 2, 5)
OWN = ("dense", "cp", "tucker", "tt")
NAMES = available_decompositions()
OURS = [name for name in NAMES if name not in OWN]
# Those that split the input or the output over several labels.
SPLIT = [name for name in OURS if len(NetworkTensor.new(SHAPE, 1, name).network.in_labels) > 1]

pytestmark = pytest.mark.filterwarnings("ignore:Given only one int for 'rank':RuntimeWarning")


def made(name: str, shape: tuple[int, ...] = SHAPE, rank: Any = 2) -> NetworkTensor:
    torch.manual_seed(0)
    return FactorizedTensor.new(shape, rank=rank, factorization=name)


def dense(shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_registered_and_answers_with_its_own_form(name: str) -> None:
    assert name in FactorizedTensor._factorizations
    tensor = made(name)
    assert tensor._name.lower() == tensor.name.lower() == name
    assert tuple(tensor.shape) == tuple(tensor.to_tensor().shape) == SHAPE
    assert tensor.order == tensor.ndim == tensor.dim() == 4
    assert tensor.numel() == math.prod(SHAPE)
    assert isinstance(tensor, NetworkTensor) == (name in OURS)
    if name in OURS:
        assert tensor.source is registry.get_decomposition(name)


@pytest.mark.parametrize("name", OURS)
def test_from_tensor_is_a_fit_of_that_form(name: str) -> None:
    x = dense((3, 4, 6))
    tensor = FactorizedTensor.from_tensor(x, rank="same", factorization=name)
    expected = fit(x, name, "same")
    assert isinstance(tensor, NetworkTensor)
    assert tensor._name == name
    assert tensor.rank == expected.rank
    torch.testing.assert_close(tensor.to_tensor(), expected.to_dense())
    assert sum(p.numel() for p in tensor.parameters()) <= x.numel()
    options = FactorizedTensor.from_tensor(x.double(), rank="same", factorization=name, seed=3, starts=1)
    assert all(p.dtype == torch.float64 for p in options.parameters())


@pytest.mark.parametrize("name", OWN)
def test_names_of_theirs_answer_as_before(name: str) -> None:
    x = dense((3, 4, 6))
    tensor = FactorizedTensor.from_tensor(x, rank=2, factorization=name)
    assert type(tensor).__module__.startswith("tltorch.")
    assert tensor._name.lower() == name
    assert type(tensor.init_from_tensor(x).normal_()[1]).__module__.startswith("tltorch.")


@pytest.mark.parametrize("name", OURS)
def test_init_from_tensor_is_a_fit_at_its_rank(name: str) -> None:
    x = dense((3, 4, 6))
    tensor = made(name, (3, 4, 6), "same")
    assert tensor.init_from_tensor(x) is tensor
    torch.testing.assert_close(tensor.to_tensor(), fit(x, name, tensor.rank).to_dense())
    with pytest.raises(ValueError, match=r"the tensor has shape \(3, 4\), the container \(3, 4, 6\)"):
        tensor.init_from_tensor(x[..., 0])


@pytest.mark.parametrize("name", OURS)
def test_normal_and_tensor_init_set_the_standard_deviation(name: str) -> None:
    """The mean square of many fresh tensors' entries, within five standard errors."""
    tensor = made(name)
    assert tensor.normal_(0, 0.5) is tensor
    for fill, std in ((lambda: tensor.normal_(std=0.5), 0.5), (lambda: tensor_init(tensor, std=0.02), 0.02)):
        squares = []
        with torch.no_grad():
            for _ in range(2500):
                fill()
                squares.append(tensor.to_tensor().square().mean() / std**2)
        found = torch.stack(squares)
        error = 5 * float(found.std()) / len(found) ** 0.5
        assert abs(float(found.mean()) - 1.0) <= error
        assert error < 0.7
    for mean, std, message in (
        (1.0, 1.0, "only a mean of 0"),
        (0.0, 0.0, "a positive number, got 0.0"),
        (0, "1", "got '1'"),
    ):
        with pytest.raises(ValueError, match=message):
            tensor.normal_(mean, std)


INDICES: tuple[Any, ...] = (
    1,
    slice(1, 3),
    (slice(None), 2, slice(None)),
    (slice(2, None), slice(None, 2), slice(None), 0),
    (0, 2, 1, 3),
    (-1, slice(None), slice(None), slice(None, None, 2)),
    (slice(None), slice(None), 1, 4),
    (slice(None), 1, 1, 2),
    ([2, 0], 1),
    (torch.tensor([3, 1]), slice(None), 0),
)


@pytest.mark.parametrize("name", OURS)
def test_an_index_gives_that_part_still_factorised(name: str) -> None:
    tensor = made(name)
    whole = tensor.to_tensor()
    reached = 0
    for index in INDICES:
        expected = whole[index if not isinstance(index, tuple) else tuple(index)]
        split = [k for k in range(len(index) if isinstance(index, tuple) else 0) if k > 1 and name in SPLIT]
        if any(not (isinstance(index[k], slice) and index[k] == slice(None)) for k in split):
            with pytest.raises(ValueError, match=r"so only ':' indexes it; index to_tensor\(\)"):
                tensor(index)
            continue
        part = tensor(index)  # as forward hands it on
        reached += 1
        assert tuple(part.shape) == tuple(expected.shape)
        assert isinstance(part, NetworkTensor) == (expected.ndim >= 2)
        values = part
        if isinstance(part, NetworkTensor):
            assert part._name == name
            values = part.to_tensor()
        torch.testing.assert_close(values, expected)
        ours, theirs = (
            torch.autograd.grad(
                value.square().sum(),
                list(tensor.parameters()),
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            for value in (values, expected)
        )
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other)
    assert reached == len(INDICES) if name not in SPLIT else reached >= 3


def test_a_part_of_a_part_and_a_copy_of_it() -> None:
    tensor = made("tr")
    part = tensor[1:3][0]
    torch.testing.assert_close(part.to_tensor(), tensor.to_tensor()[1])
    for other in (copy.deepcopy(tensor)[1], pickle.loads(pickle.dumps(tensor))[1]):
        torch.testing.assert_close(other.to_tensor(), part.to_tensor())
    part = part.to(torch.float64)
    torch.testing.assert_close(part.to_tensor(), tensor.to_tensor()[1].double())
    assert list(part.parameters()) == []
    x = dense((3, 2, 5)).double()
    torch.testing.assert_close(part.init_from_tensor(x).to_tensor(), fit(x, GivenNetwork(part.network), 2).to_dense())


def test_a_part_of_a_sum_with_a_term_that_all_experts_share() -> None:
    sizes = {"expert_0": 3, "expert_1": 2, "in": 4, "out": 5, "a": 2, "b": 3}
    network = TensorNetwork.parse("u: expert_0 a, v: a in expert_1, w: a out + p: in b, q: out b, r: expert_1", sizes)
    tensor = NetworkTensor(network).normal_()
    whole = tensor.to_tensor()
    for index in ((1,), (slice(None), 1), (slice(None), slice(None), 2), (slice(None), 1, 2), (slice(None), 1, 2, 3)):
        part = tensor[index]
        values = part.to_tensor() if isinstance(part, NetworkTensor) else part
        torch.testing.assert_close(values, whole[index])


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (4, IndexError, "index 4 is out of range for a mode of size 4"),
        ((0, 0, 0, 0, 0), IndexError, "5 indices for 4 modes"),
        (..., TypeError, "a mode is indexed by an int, a slice or a list of ints, got Ellipsis"),
        (None, TypeError, "got None"),
        (True, TypeError, "got True"),
        (torch.tensor([0.5]), TypeError, "a list of ints"),
        (slice(2, 2), ValueError, "leaves nothing of a mode of size 4"),
    ],
)
def test_an_index_is_refused(index: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        made("tr")[index]


@pytest.mark.parametrize("name", OURS)
def test_transduct_is_refused(name: str) -> None:
    with pytest.raises(
        TypeError, match="has the modes of its network and takes no further one; make one of the larger"
    ):
        made(name).transduct(2, mode=1)


@pytest.mark.parametrize("name", OURS)
def test_the_lasso_weighs_every_bond(name: str) -> None:
    tensor = made(name, rank=3)
    if not tensor.network.bonds:
        with pytest.raises(TypeError, match="a lasso weighs the bonds of a network, and NetworkTensor"):
            TensorLasso.from_factorization(tensor).apply(tensor)
        return
    before = tensor.to_tensor()
    lasso = TensorLasso.from_factorization(tensor, penalty=1, clamp_weights=False, normalize_loss=False)
    assert lasso.apply(tensor) is tensor
    values = sum(tensor.network.sizes[bond] for bond in tensor.network.bonds)
    tensor()
    assert float(lasso.loss.detach()) == values
    lasso.reset()
    lasso.set_weights(tensor, 1.5)
    weighed = dense_tensor(tensor.network, tensor().operands)
    assert float(lasso.loss.detach()) == 1.5 * values
    if len(tensor.network.terms) == 1:
        torch.testing.assert_close(weighed, 1.5 ** len(tensor.network.bonds) * before)
    lasso.loss.backward()
    assert all(weight.grad is not None for weight in tensor.lasso_weights.values())
    lasso.reset()
    lasso.set_weights(tensor, 0)
    tensor()
    assert float(lasso.loss.detach()) == 0
    remove_tensor_lasso(tensor)
    assert tensor() is tensor
    assert torch.equal(tensor.to_tensor(), before)


def test_the_lasso_clamps_and_cuts_its_weights() -> None:
    tensor = made("tr")
    lasso = TensorLasso.from_factorization(tensor, penalty=1, threshold=0.5)
    lasso.apply(tensor)
    lasso.set_weights(tensor, 7.0)
    tensor()
    assert float(lasso.loss.detach()) == 1.0  # of all values, each at most 1
    lasso.set_weights(tensor, 0.4)
    lasso.reset()
    tensor()
    assert float(lasso.loss.detach()) == 0.0


def test_lasso_and_dropout_together() -> None:
    tensor = made("tr", rank=5)
    TensorLasso.from_factorization(tensor).apply(tensor)
    tensor_dropout(tensor, p=0.5)
    torch.manual_seed(0)
    one, two = tensor().operands, tensor().operands
    assert not all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    remove_tensor_dropout(tensor)
    remove_tensor_lasso(tensor)
    assert tensor() is tensor


@pytest.mark.parametrize("name", OURS)
def test_dropout_changes_calls_in_training_alone(name: str) -> None:
    tensor = made(name, (6, 5, 6), 5)
    tensor_dropout(tensor, p=0.5, min_dim=1)
    torch.manual_seed(0)
    one, two = tensor().operands, tensor().operands
    assert not all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert tensor.eval()() is tensor


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "tucker",
            TypeError,
            r"TuckerLasso is for .* own containers; .* take TensorLasso.from_factorization\(tensor\)",
        ),
        ("tt", TypeError, r"TTLasso is for .* own containers; .* take TensorLasso.from_factorization\(tensor\)"),
        ("cp", AttributeError, "'NetworkTensor' object has no attribute 'factors'"),
    ],
)
def test_their_own_lasso_is_refused_on_our_container(name: str, error: type[Exception], message: str) -> None:
    weight = FactorizedExpertTensor((3,), 4, 5, name, 2).weight
    state = list(weight.state_dict())
    with pytest.raises(error, match=message):
        tensor_lasso(name).apply(weight)
    assert list(weight.state_dict()) == state
    assert weight() is weight


def test_their_own_lasso_is_for_their_own_three() -> None:
    with pytest.raises(KeyError, match="tr"):
        tensor_lasso("tr")


@pytest.mark.parametrize("name", OURS)
def test_a_regression_layer_takes_every_name(name: str) -> None:
    torch.manual_seed(0)
    layer = TRL((4, 3), (5,), factorization=name, rank=2, bias=True)
    assert layer.factorization == name
    x = torch.randn(7, 4, 3)
    expected = torch.einsum("nij,ijo->no", x, layer.weight.to_tensor()) + layer.bias
    torch.testing.assert_close(layer(x), expected)
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    linear = torch.nn.Linear(12, 5)
    layer.init_from_linear(linear)
    torch.testing.assert_close(
        layer.weight.to_tensor(), fit(linear.weight.T.reshape(4, 3, 5), name, layer.weight.rank).to_dense()
    )


@pytest.mark.parametrize("name", OURS)
def test_a_convolution_takes_every_name_reconstructed(name: str) -> None:
    torch.manual_seed(0)
    layer = FactorizedConv(3, 4, (3, 2), factorization=name, rank=2, implementation="reconstructed")
    layer.reset_parameters()
    x = torch.randn(2, 3, 6, 6)
    expected = torch.nn.functional.conv2d(x, layer.weight.to_tensor(), layer.bias)
    torch.testing.assert_close(layer(x), expected)
    with pytest.raises(
        ValueError, match="Got unknown type NetworkTensor"
    ):  # contractions of their own, for three forms
        FactorizedConv(3, 4, (3, 2), factorization=name, rank=2, implementation="factorized")
    message = "fixed_rank_modes is for TensorLy-Torch's Tucker alone"
    with pytest.warns(UserWarning, match="fixed_rank_modes"), pytest.raises(ValueError, match=message):
        FactorizedConv(3, 4, (3, 2), factorization=name, rank=2, fixed_rank_modes=[2])


@pytest.mark.parametrize("name", sorted({*OURS, "tt", "network"} - set(TensorizedTensor._factorizations)))
def test_a_linear_layer_of_theirs_refuses_names_it_has_not(name: str) -> None:
    """Their layers of matrices have a registry of their own."""
    for make in (lambda: FactorizedLinear((2, 3), (2, 2), factorization=name, rank=2), lambda: embedding(name)):
        with pytest.raises(ValueError, match=f"Got factorization={name} but expected"):
            make()


def embedding(name: str) -> FactorizedEmbedding:
    return FactorizedEmbedding(8, 6, factorization=name, rank=2)


@pytest.mark.parametrize("name", OURS)
def test_torch_functions_see_the_dense_tensor(name: str) -> None:
    tensor = made(name)
    torch.testing.assert_close(torch.sum(tensor), tensor.to_tensor().sum())
    assert tensor.size() == SHAPE
    assert tensor.size(1) == 3


def test_the_container_itself_names_no_form() -> None:
    for act in (
        lambda: FactorizedTensor.new(SHAPE, rank=2, factorization="network"),
        lambda: FactorizedTensor.from_tensor(dense(), rank=2, factorization="network"),
        lambda: NetworkTensor.new(SHAPE, 2),
    ):
        with pytest.raises(
            ValueError, match="'network' is every decomposition's container and names none: give one of"
        ):
            act()
    with pytest.raises(ValueError, match=r"has two modes or more, got the shape \(4,\)"):
        FactorizedTensor.new((4,), rank=2, factorization="tr")


@pytest.fixture
def third_party() -> Iterator[str]:
    name = "of_a_third_party"
    register(name, GivenNetwork(TensorNetwork.parse("expert_0 a, in a b, b out; expert_0=2 in=2 out=2 a=2 b=2")))
    yield name
    del registry._REGISTRY[name]
    del FactorizedTensor._factorizations[name]


def test_a_name_registered_later_is_found_too(third_party: str) -> None:
    tensor = FactorizedTensor.from_tensor(dense((3, 4, 5)), rank=(2, 3), factorization=third_party)
    assert tensor._name == third_party
    assert tensor.rank == (2, 3)


def test_a_name_of_theirs_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(FactorizedTensor._factorizations)
    monkeypatch.setitem(registry._REGISTRY, "complexcp", registry.get_decomposition("tr"))
    for listener in registry._LISTENERS:
        listener("complexcp")
    assert FactorizedTensor._factorizations == before


def test_a_name_can_be_set() -> None:
    tensor = made("tr")
    tensor.name = "blocks.0.mlp.experts.weight"
    assert tensor.name == "blocks.0.mlp.experts.weight"
    assert tensor._name == "tr"
    assert "name" not in tensor.state_dict()
    assert copy.deepcopy(tensor).name == tensor.name
