"""The laws of a decomposition as a torch module: derivatives, storage, types, devices, compilation, transforms.

Each law is a function of a decomposition and a structure that raises `AssertionError` if it does not hold.

Legend: `*batch` any leading shape, `B` batch, `N_k` experts of mode k, `I` in_features, `O` out_features.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from factorized_moe.decompositions import Decomposition
from factorized_moe.tensor import FactorizedExpertTensor
from factorized_moe.testing.closeness import absolute_output, assert_near, gradients, oracle_dense
from factorized_moe.testing.oracles import contract_dense
from factorized_moe.testing.strategies import Structure

__all__ = [
    "autocast_agrees",
    "compiles_few_times",
    "compiles_whole",
    "deepcopy_is_independent",
    "dtypes_agree",
    "exports_dynamic_batch",
    "first_derivatives",
    "jacobians_agree",
    "meta_device_is_filled_later",
    "pickle_round_trip",
    "second_derivatives",
    "state_dict_round_trip",
    "vmap_agrees",
]

BATCH_SIZES = (1, 2, 7, 64, 4096)
MOST_COMPILATIONS = 2
"""One for a batch of one, which torch treats as a constant, one for all other sizes."""


@contextmanager
def _refusal_fails(what: str, *refusals: type[Exception]) -> Iterator[None]:
    """Turns torch's own exceptions into a failed law, and lets torch warn of its own use of torch.jit."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):  # the second since torch 2.14
            warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=category)
        try:
            yield
        except refusals as refusal:
            raise AssertionError(f"{what}: {refusal}") from refusal


def _as_function(
    w: FactorizedExpertTensor, x: Tensor, coefficients: Sequence[Tensor]
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The forward pass as a function of x, coefficients and parameters, and these arguments."""
    names, modes = list(dict(w.named_parameters())), len(coefficients)

    def function(x: Tensor, *rest: Tensor) -> Tensor:
        parameters = dict(zip(names, rest[modes:], strict=True))
        y: Tensor = torch.func.functional_call(w, parameters, (x, list(rest[:modes])))
        return y

    return function, (x, *coefficients, *w.parameters())


def first_derivatives(decomposition: Decomposition, structure: Structure) -> None:
    """Gradients of everything equal finite differences, forward-mode derivatives included."""
    function, arguments = _as_function(structure.tensor(decomposition), *structure.arguments())
    with _refusal_fails("gradients", GradcheckError):
        torch.autograd.gradcheck(function, arguments, check_forward_ad=True)


def second_derivatives(decomposition: Decomposition, structure: Structure) -> None:
    """Second derivatives of everything equal finite differences of the gradients."""
    function, arguments = _as_function(structure.tensor(decomposition), *structure.arguments())
    with _refusal_fails("second derivatives", GradcheckError):
        torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


def state_dict_round_trip(decomposition: Decomposition, structure: Structure) -> None:
    """State dict names are the nodes' names; `torch.save` with `weights_only` and safetensors give all back."""
    w = structure.tensor(decomposition)
    names = sorted({f"weight.{node.parameter}" for node in w.network.nodes if node.fixed is None})
    assert sorted(w.state_dict()) == names, f"the state dict has {sorted(w.state_dict())}, the nodes give {names}"
    file = io.BytesIO()
    torch.save(w.state_dict(), file)
    file.seek(0)
    routes = {
        "torch.save": torch.load(file, weights_only=True),
        "safetensors": safetensors.torch.load(safetensors.torch.save(w.state_dict())),
    }
    for route, state in routes.items():
        again = replace(structure, seed=structure.seed + 1).tensor(decomposition)
        again.load_state_dict(state)
        _assert_same_function(f"after {route}", again, w, structure)


def pickle_round_trip(decomposition: Decomposition, structure: Structure) -> None:
    """Pickling, which `torch.save` of a module and process pools do, gives the same tensor."""
    w = structure.tensor(decomposition)
    _assert_same_function("after pickling", pickle.loads(pickle.dumps(w)), w, structure)


def deepcopy_is_independent(decomposition: Decomposition, structure: Structure) -> None:
    """A deep copy is the same tensor, and stays what it is when the original changes."""
    w = structure.tensor(decomposition)
    twin, reference = copy.deepcopy(w), structure.tensor(decomposition)
    _assert_same_function("a deep copy", twin, reference, structure)
    with torch.no_grad():
        for parameter in w.parameters():
            parameter.zero_()
    _assert_same_function("a deep copy after the original changed", twin, reference, structure)


def _assert_same_function(
    what: str, actual: FactorizedExpertTensor, expected: FactorizedExpertTensor, structure: Structure
) -> None:
    x, coefficients = structure.arguments()
    same = torch.equal(actual(x, coefficients), expected(x, coefficients))
    assert same, f"{what}: outputs differ"
    assert torch.equal(actual.to_dense(), expected.to_dense()), f"{what}: dense tensors differ"


def meta_device_is_filled_later(decomposition: Decomposition, structure: Structure) -> None:
    """On the meta device nothing is allocated; `to_empty` and `reset_parameters` then give the usual start."""
    arguments = (structure.expert_dims, structure.in_features, structure.out_features, decomposition, structure.rank)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(structure.seed)
        usual = FactorizedExpertTensor(*arguments, bias=structure.bias)
        w = FactorizedExpertTensor(*arguments, bias=structure.bias, device="meta")
        assert all(parameter.is_meta for parameter in w.parameters()), "a parameter on the meta device has memory"
        w.to_empty(device="cpu")
        torch.manual_seed(structure.seed)
        w.reset_parameters()
    for name, parameter in usual.named_parameters():
        same = torch.equal(w.get_parameter(name), parameter)
        assert same, f"parameter {name!r} starts with other values than without the meta device"


def dtypes_agree(decomposition: Decomposition, structure: Structure) -> None:
    """The output has the dtype of its operands, and is right to that dtype's precision."""
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        w, (x, coefficients) = structure.tensor(decomposition, dtype), structure.arguments(dtype)
        y = w(x, coefficients)
        assert y.dtype == dtype, f"{dtype} operands give {y.dtype}"
        _assert_precise(f"output in {dtype}", y, w, x, coefficients, torch.finfo(dtype).eps)


def autocast_agrees(decomposition: Decomposition, structure: Structure) -> None:
    """Under autocast to bfloat16 the output is right to bfloat16's precision; gradients keep the parameters' dtype."""
    w, (x, coefficients) = structure.tensor(decomposition, torch.float32), structure.arguments(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = w(x, coefficients)
    _assert_precise("output under autocast", y, w, x, coefficients, torch.finfo(torch.bfloat16).eps)
    for parameter, gradient in zip(w.parameters(), gradients(y, list(w.parameters()), torch.ones_like(y)), strict=True):
        assert gradient.dtype == parameter.dtype, f"a gradient is {gradient.dtype}, its parameter {parameter.dtype}"
        assert gradient.isfinite().all(), "a gradient under autocast is not finite"


def _assert_precise(
    what: str, y: Tensor, w: FactorizedExpertTensor, x: Tensor, coefficients: Sequence[Tensor], epsilon: float
) -> None:
    exact = copy.deepcopy(w).double()
    x, coefficients = x.detach().double(), [a.detach().double() for a in coefficients]
    scale, _ = absolute_output(exact, x, coefficients)
    expected = contract_dense(oracle_dense(exact), x, coefficients, w.bias)
    roundings = len(w.plan().steps) + len(w.network.nodes) + 1 + len(coefficients)  # each of half an epsilon
    assert_near(what, y, expected, scale, tolerance=roundings * epsilon)


def compiles_whole(decomposition: Decomposition, structure: Structure) -> None:
    """`torch.compile(fullgraph=True)` traces forward and backward without a break, and changes no value."""
    w, (x, coefficients) = structure.tensor(decomposition), structure.arguments()
    torch.compiler.reset()
    compiled = torch.compile(w, fullgraph=True, backend="aot_eager")
    with _refusal_fails("torch.compile(fullgraph=True)", torch._dynamo.exc.TorchDynamoException):
        y = compiled(x, coefficients)
    _assert_same_outputs("compiled", y, w, structure, x, coefficients)


def _assert_same_outputs(
    what: str, y: Tensor, w: FactorizedExpertTensor, structure: Structure, x: Tensor, coefficients: list[Tensor]
) -> None:
    """An output and its gradients equal those of the plain module."""
    leaves = [x, *coefficients, *w.parameters()]
    absolute, absolute_leaves = absolute_output(w, x, coefficients)
    expected = w(x, coefficients)
    assert_near(f"{what} output", y, expected, absolute)
    cotangent = structure.cotangent()
    scales = gradients(absolute, absolute_leaves, cotangent.abs())
    pairs = zip(gradients(y, leaves, cotangent), gradients(expected, leaves, cotangent), scales, strict=True)
    for mine, theirs, scale in pairs:
        assert_near(f"{what} gradient", mine, theirs, scale)


def compiles_few_times(decomposition: Decomposition, structure: Structure) -> None:
    """At most 2 compilations serve batches of 1 to 4,096 samples, under `torch.compile`'s defaults for shapes."""
    w = structure.tensor(decomposition)
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(w, fullgraph=True, backend=counter)
    with _refusal_fails("torch.compile(fullgraph=True)", torch._dynamo.exc.TorchDynamoException):
        for samples in BATCH_SIZES:
            x, coefficients = replace(structure, batch_shape=(samples,)).arguments()
            compiled(x, coefficients).sum().backward()
    count = counter.frame_count
    assert count <= MOST_COMPILATIONS, f"{count} compilations for batches of {BATCH_SIZES}, allowed {MOST_COMPILATIONS}"


def exports_dynamic_batch(decomposition: Decomposition, structure: Structure) -> None:
    """`torch.export` with a dynamic batch gives a program that is right for other batch sizes."""
    w = structure.tensor(decomposition)
    batch = torch.export.Dim("batch")
    arguments = replace(structure, batch_shape=(4,)).arguments()
    shapes = ({0: batch}, [{0: batch} for _ in structure.expert_dims])
    with _refusal_fails("torch.export", RuntimeError, ValueError, TypeError):
        program = torch.export.export(w, arguments, dynamic_shapes=shapes).module()
    for samples in (2, 7, 64):
        x, coefficients = replace(structure, batch_shape=(samples,)).arguments()
        with _refusal_fails("the exported program", RuntimeError, ValueError, TypeError):
            y = program(x, coefficients)
        assert_near(f"exported, batch {samples}", y, w(x, coefficients), absolute_output(w, x, coefficients)[0])


def vmap_agrees(decomposition: Decomposition, structure: Structure) -> None:
    """`vmap` over samples equals the batch, and per-sample gradients of the parameters add up to the whole."""
    w = structure.tensor(decomposition)
    x, coefficients = replace(structure, batch_shape=(3,)).arguments()
    function, (_, *rest) = _as_function(w, x, coefficients)
    modes, parameters = len(coefficients), rest[len(coefficients) :]
    absolute, absolute_leaves = absolute_output(w, x, coefficients)
    axes = (0,) * (1 + modes) + (None,) * len(parameters)
    with _refusal_fails("vmap", RuntimeError):
        y = torch.func.vmap(function, in_dims=axes)(x, *coefficients, *parameters)
    assert_near("vmap", y, w(x, coefficients), absolute)
    positions = tuple(range(1 + modes, 1 + modes + len(parameters)))
    with _refusal_fails("vmap of grad", RuntimeError):
        gradient = torch.func.grad(lambda *arguments: function(*arguments).sum(), argnums=positions)
        each = torch.func.vmap(gradient, in_dims=axes)(x, *coefficients, *parameters)
    ones = torch.ones_like(y)
    scales = gradients(absolute, absolute_leaves, ones)[1 + modes :]
    for one, whole, scale in zip(each, gradients(w(x, coefficients), parameters, ones), scales, strict=True):
        assert_near("sum of per-sample gradients", one.sum(0), whole, scale)


def jacobians_agree(decomposition: Decomposition, structure: Structure) -> None:
    """`jacrev` and `jacfwd` of one sample's output by x are the mixed expert matrix without its bias row."""
    w = structure.tensor(decomposition)
    x, coefficients = replace(structure, batch_shape=()).arguments()

    def mixture(dense: Tensor, weights: Sequence[Tensor]) -> Tensor:
        for a in weights:
            dense = torch.tensordot(a, dense, dims=1)
        return dense[: w.in_features].T

    expected = mixture(oracle_dense(w), coefficients)
    scale = mixture(oracle_dense(w, absolute=True), [a.abs() for a in coefficients])
    transforms: dict[str, Any] = {"jacrev": torch.func.jacrev, "jacfwd": torch.func.jacfwd}
    for name, transform in transforms.items():
        with _refusal_fails(name, RuntimeError):
            jacobian = transform(lambda value: w(value, coefficients))(x)
        assert_near(name, jacobian, expected, scale)
