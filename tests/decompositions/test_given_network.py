"""Networks written by hand: as the weight of one layer, and as a decomposition of any size."""

import copy
import pickle
from typing import Any

import pytest
import torch

from factorized_moe import FactorizedExpertTensor, TensorNetwork
from factorized_moe.decompositions import GivenNetwork, get_decomposition
from factorized_moe.layers import MuMoE

TEXT = "expert_0 a, expert_1 b, in a b c, c out"
SIZES = {"expert_0": 3, "expert_1": 2, "in": 5, "out": 6, "a": 2, "b": 4, "c": 3}
NETWORK = TensorNetwork.parse(TEXT, SIZES)


def test_a_network_is_a_weight() -> None:
    w = FactorizedExpertTensor(network=NETWORK)
    assert (w.expert_dims, w.in_features, w.out_features, w.rank) == ((3, 2), 5, 6, (2, 4, 3))
    assert w.network == NETWORK
    assert w.num_parameters == 3 * 2 + 2 * 4 + 5 * 2 * 4 * 3 + 3 * 6
    assert w.expert_rank_bound == 3
    x, a, b = torch.randn(7, 5), torch.rand(7, 3), torch.rand(7, 2)
    one, two, three, four = w.weight.operands
    expected = torch.einsum("Bn,Bm,Bi,na,mb,iabc,co->Bo", a, b, x, one, two, three, four)
    torch.testing.assert_close(w(x, [a, b]), expected)
    torch.testing.assert_close(w.expert(2, 1), w.to_dense()[2, 1])


def test_the_bias_is_the_last_row_of_the_input_mode() -> None:
    w = FactorizedExpertTensor(network=NETWORK, bias=True)
    assert w.in_features == 4
    assert w.to_dense().shape == (3, 2, 5, 6)
    x, a = torch.zeros(1, 4), [torch.eye(3)[:1], torch.eye(2)[:1]]
    torch.testing.assert_close(w(x, a)[0], w.to_dense()[0, 0, -1])


def test_it_is_initialised_copied_pickled_and_printed() -> None:
    w = FactorizedExpertTensor(network=NETWORK, dtype=torch.float64)
    for twin in (copy.deepcopy(w), pickle.loads(pickle.dumps(w))):
        assert torch.equal(twin.to_dense(), w.to_dense())
    w.reset_parameters()
    assert w.to_dense().std() > 0
    assert "decomposition='GivenNetwork', rank=(2, 4, 3), bias=False" in repr(w)
    assert str(NETWORK) in repr(w)
    with pytest.raises(TypeError, match="TensorLy has no tensor type for GivenNetwork"):
        w.to_tensorly()


def test_a_given_network_is_a_decomposition_of_any_size() -> None:
    source = GivenNetwork(NETWORK)
    w = FactorizedExpertTensor((7, 8), 9, 10, source, rank=(2, 3, 4), bias=True)
    assert w.network.shape == (7, 8, 10, 10)
    assert [tuple(tensor.shape) for tensor in w.weight.operands] == [(7, 2), (8, 3), (10, 2, 3, 4), (4, 10)]
    assert source.resolve_rank(5, (7, 8, 9, 10)) == (5, 5, 5)
    assert w.num_parameters <= FactorizedExpertTensor((7, 8), 9, 10, source, rank=0.9, bias=True).num_parameters
    assert MuMoE(9, 10, [7, 8], source, rank=2)(torch.randn(3, 9)).shape == (3, 10)


def test_a_given_network_is_fitted() -> None:
    dense = FactorizedExpertTensor(network=NETWORK, dtype=torch.float64).to_dense().detach()
    fitted = FactorizedExpertTensor.from_dense(dense, GivenNetwork(NETWORK), rank=(2, 4, 3))
    assert fitted.relative_error(dense) < 1e-6


def test_a_padded_network() -> None:
    network = get_decomposition("kronecker").network((3,), 5, 4, 2)
    w = FactorizedExpertTensor(network=TensorNetwork.parse(str(network)), bias=True)
    assert (w.in_features, w.network.in_padding) == (4, 1)
    assert w(torch.randn(2, 4), [torch.rand(2, 3)]).shape == (2, 4)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "text": (
        {"network": TEXT},
        TypeError,
        r"network is a TensorNetwork, for instance TensorNetwork.parse\(text, sizes\)",
    ),
    "one row": (
        {"network": TensorNetwork.parse("in out; in=1 out=2"), "bias": True},
        ValueError,
        "in_features must be at least 1, got 0",
    ),
    "nothing": ({}, TypeError, "expert_dims is a sequence with one int for each expert mode, got None"),
    "no sizes": ({"expert_dims": (3,), "rank": 2}, TypeError, "in_features must be an int, got None"),
    "number of modes": (
        {"expert_dims": (3,), "in_features": 4, "out_features": 5, "decomposition": GivenNetwork(NETWORK), "rank": 2},
        ValueError,
        r"the given network has 2 expert modes, asked was \(3,\)",
    ),
    "length of the rank": (
        {
            "expert_dims": (3, 2),
            "in_features": 4,
            "out_features": 5,
            "decomposition": GivenNetwork(NETWORK),
            "rank": (2, 3),
        },
        ValueError,
        r"rank of GivenNetwork is one int for each of the bonds \('a', 'b', 'c'\), got \(2, 3\)",
    ),
    "size of a group": (
        {
            "expert_dims": (),
            "in_features": 6,
            "out_features": 2,
            "decomposition": GivenNetwork(TensorNetwork.parse("in_0 in_1 out; in_0=2 in_1=2 out=2")),
            "rank": 1,
        },
        ValueError,
        r"network\(\) of GivenNetwork describes a tensor of shape \(4, 2\), asked was \(6, 2\); use the "
        r"sizes that it is given: label 'in_0' of node '\w+' has another$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case: str) -> None:
    arguments, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        FactorizedExpertTensor(**arguments)


@pytest.mark.parametrize(
    "other",
    [{"expert_dims": (3, 2)}, {"in_features": 5}, {"out_features": 6}, {"decomposition": "cp"}, {"rank": 2}],
    ids=str,
)
def test_a_network_says_the_rest(other: dict[str, Any]) -> None:
    message = "network says expert_dims, in_features, out_features, decomposition and rank; give none of them beside it"
    with pytest.raises(TypeError, match=message):
        FactorizedExpertTensor(network=NETWORK, **other)
