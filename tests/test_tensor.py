"""The factorised tensor: what it refuses, and what the conformance suite does not reach."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factorized_moe import Decomposition, FactorizedExpertTensor, TensorNetwork
from factorized_moe.testing import LAWS, Structure, contract_dense, networks


class Given(Decomposition):
    """A network that is written by hand, whatever sizes are asked for."""

    def __init__(self, network: TensorNetwork | None) -> None:
        self.given = network

    def network(self, expert_dims: Any, in_features: int, out_features: int, rank: Any) -> Any:
        return self.given


def tensor(**options: Any) -> FactorizedExpertTensor:
    arguments = {"expert_dims": (3, 2), "in_features": 4, "out_features": 5, "decomposition": "cp", "rank": 2}
    return FactorizedExpertTensor(**{**arguments, **options})  # type: ignore[arg-type]  # some are wrong on purpose


LAWS_OF_ANY_NETWORK = (
    "forward_equals_dense",
    "gradients_equal_dense",
    "leading_shape_is_kept",
    "forward_is_multilinear",
    "dense_equals_nodes",
    "one_hot_selects_expert",
    "expert_slices_dense",
    "node_order_is_free",
    "plan_costs_are_exact",
    "parameter_count",
    "rank_bound_holds",
)


@pytest.mark.parametrize("law", LAWS_OF_ANY_NETWORK)
@settings(max_examples=25)
@given(network=networks(), bias=st.booleans(), batch_shape=st.sampled_from([(), (3,), (2, 2)]), seed=st.integers(0, 99))
def test_laws_of_any_network(
    law: str, network: TensorNetwork, bias: bool, batch_shape: tuple[int, ...], seed: int
) -> None:
    """Sums, shared parameters, split modes, bonds that join many nodes: what no built-in decomposition has."""
    *expert_dims, rows, out_features = network.shape
    bias = bias and rows > 1
    structure = Structure(tuple(expert_dims), rows - bias, out_features, 1, bias, batch_shape, seed)
    LAWS[law].check(Given(network), structure)


def test_split_output_is_flat_in_a_batch() -> None:
    # Once came back as (batch, out_0, out_1) for inputs of two axes.
    network = TensorNetwork.from_modes(
        (), 2, 6, nodes={"core": "in out_0 out_1"}, bonds={}, out_labels={"out_0": 2, "out_1": 3}
    )
    assert FactorizedExpertTensor((), 2, 6, Given(network), 1)(torch.ones(7, 2), []).shape == (7, 6)


def test_a_plan_within_a_memory_limit_is_kept_and_right() -> None:
    structure = Structure((3, 2), 4, 5, (3, 2, 4, 5), bias=True, batch_shape=(6,))
    w, (x, coefficients) = structure.tensor("tucker"), structure.arguments()
    usual = w.plan(optimize="flops")
    with pytest.raises(ValueError, match=r"memory_limit of 8 bytes .* batch size 64: the smallest possible is [\d,]+"):
        w.plan(memory_limit=8)
    assert w.plan() == usual
    limited = w.plan(memory_limit=64 * 12 * 8)  # the outer product of the vectors of ranks 3 and 4
    assert limited.largest_intermediate <= 64 * 12
    assert w.plan() == limited
    torch.testing.assert_close(w(x, coefficients), contract_dense(w.to_dense(), x, coefficients, bias=True))
    assert w.plan(optimize="flops", batch_size=64) == usual


def test_relative_error() -> None:
    dense = torch.arange(24.0).reshape(2, 3, 4)
    w = FactorizedExpertTensor.from_dense(torch.zeros(2, 3, 4), "cp", 2)
    assert w.relative_error(torch.zeros(2, 3, 4)) == 0.0
    assert w.relative_error(dense) == pytest.approx(1.0)
    assert FactorizedExpertTensor.from_dense(dense, "tucker", (2, 3, 4)).relative_error(0 * dense) == float("inf")


def test_from_dense_keeps_type_and_takes_bias() -> None:
    dense = torch.randn(3, 5, 4, dtype=torch.bfloat16)
    w = FactorizedExpertTensor.from_dense(dense, "tucker", (3, 5, 4), bias=True)
    assert (w.in_features, w.bias, w.weight.operands[0].dtype) == (4, True, torch.bfloat16)
    wide = FactorizedExpertTensor.from_dense(dense, "tucker", (3, 5, 4), dtype=torch.float64)
    assert wide.relative_error(dense.double()) < 1e-12
    wide.reset_parameters()  # as if it had been made by the constructor
    assert wide.relative_error(dense.double()) > 0.5


def test_what_is_printed() -> None:
    text = repr(tensor(bias=True))
    assert "expert_dims=(3, 2), in_features=4, out_features=5, decomposition='cp', rank=2, bias=True" in text
    assert (
        "NetworkTensor(expert_0: expert_0 rank, expert_1: expert_1 rank, input: in rank, output: rank out; expert_0=3"
        in text
    )
    plan = repr(tensor().plan(batch_size=1000))
    assert "ContractionPlan for 4 nodes, batch size 1,000" in plan
    assert "in, in rank -> rank" in plan


@pytest.mark.parametrize(
    ("indices", "shape"), [((), (3, 2, 4, 5)), ((1,), (2, 4, 5)), ((None, -1), (3, 4, 5)), ((np.int64(2), 0), (4, 5))]
)
def test_shapes_of_slices(indices: tuple[Any, ...], shape: tuple[int, ...]) -> None:
    assert tensor().expert(*indices).shape == shape


def fill_with_nan(network: TensorNetwork, tensors: Any) -> None:
    tensors["input"].fill_(float("nan"))


X, A = torch.zeros(7, 4), (torch.zeros(7, 3), torch.zeros(7, 2))
NETWORK = TensorNetwork.from_modes((3, 2), 4, 6, nodes={"all": "expert_0 expert_1 in out"}, bonds={})
CALL = "forward takes a tensor x and a sequence of coefficient tensors, one for each expert mode; got "
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # Construction.
    "expert_dims an int": (
        lambda: tensor(expert_dims=3),
        TypeError,
        "expert_dims is a sequence with one int for each expert mode, got 3",
    ),
    "expert_dims a word": (
        lambda: tensor(expert_dims="32"),
        TypeError,
        "expert_dims is a sequence with one int for each expert mode, got '32'",
    ),
    "expert_dims with 0": (
        lambda: tensor(expert_dims=(3, 0)),
        ValueError,
        "expert_dims[1] must be at least 1, got 0",
    ),
    "expert_dims with a float": (
        lambda: tensor(expert_dims=(3.0, 2)),
        TypeError,
        "expert_dims[0] must be an int, got 3.0",
    ),
    "expert_dims with a bool": (
        lambda: tensor(expert_dims=(3, True)),
        TypeError,
        "expert_dims[1] must be an int, got True",
    ),
    "in_features": (lambda: tensor(in_features=0), ValueError, "in_features must be at least 1, got 0"),
    "out_features": (lambda: tensor(out_features=5.0), TypeError, "out_features must be an int, got 5.0"),
    "bias": (lambda: tensor(bias="no"), TypeError, "bias must be True or False, got 'no'"),
    "no rank": (lambda: tensor(rank=None), TypeError, "rank is missing; give an int, a tuple of ints, 'same'"),
    "unknown initialisation": (
        lambda: tensor(init="xavier"),
        ValueError,
        "CP has no initialisation 'xavier'; it has ['balanced', 'paper', 'variance_preserving']",
    ),
    "initialisation of another type": (
        lambda: tensor(init=5),
        TypeError,
        "init is a name or a function that fills the parameters, got 5",
    ),
    "initialisation not finite": (
        lambda: tensor(init=fill_with_nan),
        ValueError,
        "the initialisation left a NaN or an infinite value in parameter 'input'",
    ),
    "integer parameters": (
        lambda: tensor(dtype=torch.int64),
        TypeError,
        "dtype is a real floating type of 16 bits or more such as torch.float32, or None, got torch.int64",
    ),
    "complex parameters": (lambda: tensor(dtype=torch.complex64), TypeError, "or None, got torch.complex64"),
    "dtype a word": (lambda: tensor(dtype="float32"), TypeError, "or None, got 'float32'"),
    "no network": (
        lambda: tensor(decomposition=Given(None)),
        TypeError,
        "network() of Given must return a TensorNetwork, got None",
    ),
    "another network": (
        lambda: tensor(decomposition=Given(NETWORK)),
        ValueError,
        "network() of Given describes a tensor of shape (3, 2, 4, 6), asked was (3, 2, 4, 5); use the sizes "
        "that it is given: label 'out' of node",
    ),
    # Call.
    "bare coefficients": (lambda: tensor()(X, A[0]), TypeError, f"{CALL}Tensor and Tensor; with one mode, write"),
    "no coefficients": (lambda: tensor()(X, None), TypeError, f"{CALL}Tensor and NoneType"),
    "a generator": (lambda: tensor()(X, (a for a in A)), TypeError, f"{CALL}Tensor and generator"),
    "numpy x": (lambda: tensor()(X.numpy(), A), TypeError, f"{CALL}ndarray and tuple"),
    "numpy coefficients": (lambda: tensor()(X, [A[0], A[1].numpy()]), TypeError, f"{CALL}Tensor and list"),
    "too few coefficients": (
        lambda: tensor()(X, A[:1]),
        ValueError,
        "got 1 coefficient tensors for 2 expert modes (3, 2); give one tensor for each mode",
    ),
    "too many coefficients": (
        lambda: tensor()(X, [*A, A[0]]),
        ValueError,
        "got 3 coefficient tensors for 2 expert modes (3, 2)",
    ),
    "coefficients of another width": (
        lambda: tensor()(X, A[::-1]),
        ValueError,
        "coefficients of expert mode 0 have shape (7, 2), expected (7, 3): the leading shape of x, then the mode's",
    ),
    "coefficients of another batch": (
        lambda: tensor()(X, [A[0], A[1][:1]]),
        ValueError,
        "coefficients of expert mode 1 have shape (1, 2), expected (7, 2)",
    ),
    "coefficients a scalar": (
        lambda: tensor()(X, [torch.tensor(1.0), A[1]]),
        ValueError,
        "coefficients of expert mode 0 have shape (), expected (7, 3)",
    ),
    "coefficients with more axes": (
        lambda: tensor()(X, [A[0], A[1].unsqueeze(0)]),
        ValueError,
        "coefficients of expert mode 1 have shape (1, 7, 2), expected (7, 2)",
    ),
    "x of another width": (
        lambda: tensor(bias=True)(torch.zeros(7, 5), A),
        ValueError,
        "x has shape (7, 5), expected (*batch, 4): the last axis is in_features",
    ),
    "x a scalar": (lambda: tensor()(torch.tensor(1.0), A), ValueError, "x has shape (), expected (*batch, 4)"),
    "x of another dtype": (
        lambda: tensor()(X.double(), A),
        TypeError,
        "x is torch.float64, coefficients are torch.float32, torch.float32, the parameters torch.float32; convert",
    ),
    "coefficients of another dtype": (
        lambda: tensor()(X, [A[0], A[1].double()]),
        TypeError,
        "x is torch.float32, coefficients are torch.float32, torch.float64, the parameters torch.float32; convert",
    ),
    "parameters of another dtype": (
        lambda: tensor(expert_dims=(), dtype=torch.float64)(X, []),
        TypeError,
        "x is torch.float32, coefficients are none, the parameters torch.float64; convert them to one dtype, or use",
    ),
    "x elsewhere": (
        lambda: tensor(expert_dims=())(X.to("meta"), []),
        TypeError,
        "x is on meta, the parameters on cpu; move one",
    ),
    "coefficients elsewhere": (
        lambda: tensor()(X, [A[0], A[1].to("meta")]),
        TypeError,
        "x is on cpu, coefficients of expert mode 1 on meta; move one",
    ),
    # Slices.
    "too many indices": (lambda: tensor().expert(0, 0, 0), ValueError, "3 indices for 2 expert modes (3, 2)"),
    "index too large": (
        lambda: tensor().expert(0, 2),
        ValueError,
        "index 2 of expert mode 1 is out of range for its 2 experts",
    ),
    "index too small": (
        lambda: tensor().expert(-4),
        ValueError,
        "index -4 of expert mode 0 is out of range for its 3 experts",
    ),
    "index a float": (lambda: tensor().expert(1.0), TypeError, "index of expert mode 0 is an int or None, got 1.0"),
    "index a bool": (lambda: tensor().expert(0, True), TypeError, "index of expert mode 1 is an int or None, got True"),
    "index a tuple": (lambda: tensor().expert((0, 1)), TypeError, "is an int or None, got (0, 1)"),
    # Plans.
    "batch size 0": (lambda: tensor().plan(0), ValueError, "batch_size must be a positive int, got 0"),
    "batch size a float": (lambda: tensor().plan(2.0), ValueError, "batch_size must be a positive int, got 2.0"),
    "unknown way to plan": (
        lambda: tensor().plan(optimize="time"),
        ValueError,
        "optimize is 'flops' or 'measure', got 'time'",
    ),
    # Dense tensors and TensorLy's.
    "dense a list": (
        lambda: FactorizedExpertTensor.from_dense([[1.0]], rank=1),  # type: ignore[arg-type]
        TypeError,
        "dense must be a tensor of a real floating type, got list",
    ),
    "dense of ints": (
        lambda: FactorizedExpertTensor.from_dense(torch.ones(2, 3, dtype=torch.int64), rank=1),
        TypeError,
        "dense must be a tensor of a real floating type, got torch.int64",
    ),
    "dense of one mode": (
        lambda: FactorizedExpertTensor.from_dense(torch.ones(3), rank=1),
        ValueError,
        "dense must be (*expert_dims, I, O), at least two modes, got shape (3,)",
    ),
    "dense with NaN": (
        lambda: FactorizedExpertTensor.from_dense(torch.full((2, 3, 4), float("nan")), rank=1),
        ValueError,
        "the dense tensor has a NaN or an infinite entry; a fit needs finite values",
    ),
    "dense infinite": (
        lambda: FactorizedExpertTensor.from_dense(torch.full((2, 3, 4), float("-inf")), "tr", rank=1),
        ValueError,
        "the dense tensor has a NaN or an infinite entry",
    ),
    "dense of the bias alone": (
        lambda: FactorizedExpertTensor.from_dense(torch.ones(2, 1, 4), rank=1, bias=True),
        ValueError,
        "in_features must be at least 1, got 0",
    ),
    "compared with another shape": (
        lambda: tensor().relative_error(torch.ones(1, 1, 4, 5)),
        ValueError,
        "dense has shape (1, 1, 4, 5), expected that of the factorised tensor, (3, 2, 4, 5)",
    ),
    "compared with a list": (
        lambda: tensor().relative_error([1.0]),  # type: ignore[arg-type]
        TypeError,
        "dense must be a tensor of a real floating type, got list",
    ),
    "TensorLy's, of another rank": (
        lambda: FactorizedExpertTensor.from_tensorly(tensor().to_tensorly(), "cp", 3),
        ValueError,
        "'expert_0' has shape (3, 2), its parameter (3, 3)",
    ),
    "not TensorLy's": (
        lambda: FactorizedExpertTensor.from_tensorly(None, "cp", 3),
        TypeError,
        "cannot read NoneType as TensorLy's tensor of torch tensors for CP",
    ),
    "TensorLy has no type": (
        lambda: FactorizedExpertTensor.from_tensorly(None, Given(NETWORK), 3),
        TypeError,
        "TensorLy has no tensor type for Given",
    ),
    "names to assign": (
        lambda: tensor().weight.assign({"input": X}),
        ValueError,
        "names on one side only: ['expert_0', 'expert_1', 'output']; the parameters are ['expert_0', 'expert_1',",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case: str) -> None:
    act, error, message = REFUSED[case]
    with pytest.raises(error, match=re.escape(message)):
        act()


def test_nothing_is_assigned_if_a_shape_differs() -> None:
    w = tensor()
    before = {name: value.detach().clone() for name, value in w.weight.tensors.items()}
    values = {name: torch.zeros_like(value) for name, value in before.items()} | {"output": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"'output' has shape \(1,\), its parameter"):
        w.weight.assign(values)
    assert all(torch.equal(value, before[name]) for name, value in w.weight.tensors.items())


def test_autocast_takes_mixed_dtypes() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tensor()(X.bfloat16(), A).shape == (7, 5)
