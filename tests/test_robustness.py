"""Faults found by trying to break the layers; each stays here so that it does not come back."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from factorized_moe import Decomposition, FactorizedExpertTensor, MuMoE, TensorNetwork

pytestmark = pytest.mark.thorough


class Halved(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2

    def right_inverse(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def tensor(**options: object) -> FactorizedExpertTensor:
    torch.manual_seed(0)
    return FactorizedExpertTensor((3, 2), 5, 4, "cp", 3, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_sparse_coefficients_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    sparse = MuMoE(16, 10, [64], "cp", 128, sparse_coefficients=True).eval()
    assert "SparseMatMul" in repr(sparse.experts.plan())
    dense = MuMoE(16, 10, [64], "cp", 128).eval()
    dense.load_state_dict(sparse.state_dict())
    x = torch.randn(6, 16)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(sparse(x), dense(x), rtol=0.02, atol=0.02)


def test_parametrized_factor_is_reset_and_assigned() -> None:
    w, other = tensor(), tensor()
    parametrize.register_parametrization(w.weight, "input", Halved())
    before = w.weight.input.clone()
    w.reset_parameters()
    assert not torch.equal(w.weight.input, before)
    w.weight.assign(other.weight.tensors)
    torch.testing.assert_close(w.to_dense(), other.to_dense())


def test_pruned_factor_is_used() -> None:
    w = tensor()
    prune.l1_unstructured(w.weight, "input", 0.5)
    assert (w.weight.operands[2] == 0).sum() == w.weight.input.numel() // 2 + w.weight.input.numel() % 2
    x, coefficients = torch.randn(6, 5), [torch.rand(6, 3), torch.rand(6, 2)]
    expected = torch.einsum("bi,bm,bn,mnio->bo", x, *coefficients, w.to_dense())
    torch.testing.assert_close(w(x, coefficients), expected)


def test_fit_that_overflows_half_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the fitted parameters overflow torch\.float16; give a wider dtype"):
        FactorizedExpertTensor.from_dense(torch.full((3, 4, 5), 1e9), "tucker", 1, dtype=torch.float16)


def test_relative_error_does_not_overflow() -> None:
    dense = torch.full((3, 4, 5), 60_000.0)
    w = FactorizedExpertTensor.from_dense(dense, "cp", 1)
    assert w.relative_error(dense.half()) < 1e-2


@pytest.mark.parametrize("name", ["operands", "tensors", "decomposition", "_operand_names", "shape", "forward"])
def test_node_named_like_an_attribute_is_refused(name: str) -> None:
    class Named(Decomposition):
        def network(self, expert_dims, in_features, out_features, rank):
            nodes = {name: "expert_0 in rank", "output": "rank out"}
            return TensorNetwork.from_modes(expert_dims, in_features, out_features, nodes=nodes, bonds={"rank": rank})

    with pytest.raises(ValueError, match=rf"a node's parameter cannot be named '{name}', an attribute"):
        FactorizedExpertTensor((3,), 5, 4, Named(), 2)


def test_copies_know_their_decomposition_by_name() -> None:
    for twin in (copy.deepcopy(tensor()), pickle.loads(pickle.dumps(tensor()))):
        assert "decomposition='cp'" in repr(twin)


@pytest.mark.parametrize("arguments", [{"batch_sizes": (1, 4)}, {"backward": True}])
def test_timing_arguments_without_measuring_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(
        ValueError, match="batch_sizes and backward say what to time; give them with optimize='measure'"
    ):
        tensor().plan(**arguments)


def test_gate_that_returns_one_tensor_is_told_what_to_return() -> None:
    layer = MuMoE(5, 4, [5], "cp", 2, gate=nn.Softmax(-1))
    with pytest.raises(TypeError, match="let a gate return a tuple"):
        layer(torch.randn(6, 5))
