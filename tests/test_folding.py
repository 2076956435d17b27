"""Folding: equal values, never more parameters, and fewer FLOPs where parameters are contracted with each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factorized_moe import FactorizedExpertTensor, TensorNetwork
from factorized_moe.decompositions import available_decompositions
from factorized_moe.folding import fold
from factorized_moe.testing import networks, structures


def check(w: FactorizedExpertTensor, batch_size: int) -> FactorizedExpertTensor:
    folded = fold(w, batch_size)
    torch.testing.assert_close(folded.to_dense(), w.to_dense())
    generator = torch.Generator().manual_seed(0)
    x, *coefficients = (
        torch.randn(3, n, generator=generator, dtype=torch.float64) for n in (w.in_features, *w.expert_dims)
    )
    torch.testing.assert_close(folded(x, coefficients), w(x, coefficients))
    assert folded.num_parameters <= w.num_parameters
    return folded


@settings(max_examples=40)
@given(network=networks(), batch_size=st.sampled_from([1, 64, 4096]))
def test_any_network(network: TensorNetwork, batch_size: int) -> None:
    check(FactorizedExpertTensor(network=network, dtype=torch.float64), batch_size)


@pytest.mark.parametrize("name", available_decompositions())
@settings(max_examples=3)
@given(data=st.data())
def test_any_decomposition(name: str, data: st.DataObject) -> None:
    structure = data.draw(structures(name, expert_modes=2))
    w = structure.tensor(name)
    check(w, 64)


@pytest.mark.parametrize("bias", [False, True])
def test_a_mixed_core_is_stored(bias: bool) -> None:
    network = TensorNetwork.parse("core: in out s, mix: s; in=64 out=32 s=16")
    w = FactorizedExpertTensor(network=network, bias=bias, dtype=torch.float64)
    folded = check(w, 1)
    assert [node.name for node in folded.network.nodes] == ["core_mix"]
    assert folded.num_parameters == 64 * 32
    assert folded.plan(1).flops == 2 * 64 * 32
    assert w.plan(1).flops >= 2 * 64 * 32 * 16
    state = folded.state_dict()
    again = FactorizedExpertTensor(network=folded.network, bias=bias, dtype=torch.float64)
    again.load_state_dict(state)
    assert torch.equal(again.to_dense(), folded.to_dense())


def test_what_would_grow_is_not_folded() -> None:
    """The product of two thin matrices has more elements than both: they stay."""
    network = TensorNetwork.parse("left: in rank, right: rank out; in=64 out=64 rank=2")
    w = FactorizedExpertTensor(network=network, dtype=torch.float64)
    assert check(w, 4096).network == w.network


def test_the_tensor_is_left_alone_and_a_name_in_use_is_not_taken() -> None:
    network = TensorNetwork.parse("a: in s, b: s, a_b: in out; in=4 out=5 s=3")
    w = FactorizedExpertTensor(network=network, dtype=torch.float64).eval()
    before = {name: tensor.clone() for name, tensor in w.state_dict().items()}
    folded = check(w, 64)
    assert not folded.training
    assert all(torch.equal(before[name], tensor) for name, tensor in w.state_dict().items())
    names = [node.name for node in folded.network.nodes]
    assert len(names) == len(set(names)) < 3


def test_more_operands_than_are_searched_exhaustively() -> None:
    mixed = ", ".join(f"mix_{k}: s_{k}" for k in range(14))
    labels = " ".join(f"s_{k}" for k in range(14))
    sizes = " ".join(f"s_{k}=2" for k in range(14))
    network = TensorNetwork.parse(f"core: in out {labels}, {mixed}; in=2 out=3 {sizes}")
    folded = check(FactorizedExpertTensor(network=network, dtype=torch.float64), 4096)
    assert folded.num_parameters == 2 * 3
