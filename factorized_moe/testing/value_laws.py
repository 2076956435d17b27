"""The laws of a decomposition as a multilinear map: outputs, gradients, dense tensors, slices.

Each law is a function of a decomposition and a structure that raises `AssertionError` if it does not hold.

Legend: `*batch` any leading shape, `N_k` experts of mode k, `I` in_features, `O` out_features.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
import tensorly
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from factorized_moe.contraction import dense_request, execute, forward_request, make_plan
from factorized_moe.contraction.fixed import with_fixed
from factorized_moe.decompositions import Decomposition
from factorized_moe.network import Node
from factorized_moe.tensor import FactorizedExpertTensor
from factorized_moe.testing.closeness import TOLERANCES, absolute_output, assert_near, gradients, oracle_dense
from factorized_moe.testing.oracles import contract_dense
from factorized_moe.testing.strategies import Structure

__all__ = [
    "dense_equals_nodes",
    "dense_equals_tensorly",
    "expert_never_builds_dense",
    "expert_slices_dense",
    "forward_equals_dense",
    "forward_is_multilinear",
    "gradients_equal_dense",
    "leading_shape_is_kept",
    "node_order_is_free",
    "one_hot_selects_expert",
    "tensorly_round_trip",
]


def forward_equals_dense(decomposition: Decomposition, structure: Structure) -> None:
    """The forward pass equals the contraction with `to_dense()`, in double and in single precision."""
    for dtype, tolerance in TOLERANCES.items():
        w, (x, coefficients) = structure.tensor(decomposition, dtype), structure.arguments(dtype)
        y = w(x, coefficients)
        assert y.dtype == dtype, f"the output is {y.dtype}, everything else {dtype}"
        scale, _ = absolute_output(w, x, coefficients)
        assert_near(f"forward in {dtype}", y, contract_dense(w.to_dense(), x, coefficients, w.bias), scale, tolerance)


def gradients_equal_dense(decomposition: Decomposition, structure: Structure) -> None:
    """The gradients of x, coefficients and parameters equal those through `to_dense()` and through the nodes."""
    for dtype, tolerance in TOLERANCES.items():
        w, (x, coefficients) = structure.tensor(decomposition, dtype), structure.arguments(dtype)
        cotangent = structure.cotangent(dtype)
        leaves = [x, *coefficients, *w.weight.tensors.values()]
        names = ["x", *(f"coefficients {mode}" for mode in range(len(coefficients))), *w.weight.tensors]
        y, absolute_leaves = absolute_output(w, x, coefficients)
        scales = gradients(y, absolute_leaves, cotangent.abs())
        actual = gradients(w(x, coefficients), leaves, cotangent)
        for route, dense in {"to_dense()": w.to_dense(), "the nodes": oracle_dense(w)}.items():
            expected = gradients(contract_dense(dense, x, coefficients, w.bias), leaves, cotangent)
            for name, mine, theirs, scale in zip(names, actual, expected, scales, strict=True):
                assert_near(f"gradient of {name} against {route} in {dtype}", mine, theirs, scale, tolerance)


def leading_shape_is_kept(decomposition: Decomposition, structure: Structure) -> None:
    """Any leading shape is kept, the empty one included, and a sample's output depends on that sample alone."""
    w, (x, coefficients) = structure.tensor(decomposition), structure.arguments()
    y = w(x, coefficients)
    expected = (*structure.batch_shape, structure.out_features)
    assert tuple(y.shape) == expected, f"input {tuple(x.shape)} gives output {tuple(y.shape)}, expected {expected}"
    scale, _ = absolute_output(w, x, coefficients)
    for position in itertools.product(*map(range, structure.batch_shape)):
        alone = w(x[position], [a[position] for a in coefficients])
        assert_near(f"sample {position} alone", alone, y[position], scale[position])


def forward_is_multilinear(decomposition: Decomposition, structure: Structure) -> None:
    """The output is linear in every coefficient argument, and linear in x up to the bias."""
    w, (x, coefficients) = structure.tensor(decomposition), structure.arguments()
    other_x, others = replace(structure, seed=structure.seed + 7).arguments()
    sums = [a.abs() + b.abs() for a, b in zip(coefficients, others, strict=True)]
    scale = 4.0 * absolute_output(w, x.abs() + other_x.abs(), sums)[0]  # 4 exceeds the products of the factors below
    second = 0.25 if w.bias else -1.5  # with a bias the map is affine in x, so the factors must add up to 1
    combined = w(0.75 * x + second * other_x, coefficients)
    assert_near("linearity in x", combined, 0.75 * w(x, coefficients) + second * w(other_x, coefficients), scale)
    for mode, (a, b) in enumerate(zip(coefficients, others, strict=True)):
        values = (0.75 * a - 1.5 * b, a, b)
        combined, one, two = (w(x, [*coefficients[:mode], v, *coefficients[mode + 1 :]]) for v in values)
        assert_near(f"linearity in coefficients {mode}", combined, 0.75 * one - 1.5 * two, scale)


def dense_equals_nodes(decomposition: Decomposition, structure: Structure) -> None:
    """`to_dense()` equals one `torch.einsum` over the network's nodes, and has the dense shape."""
    w = structure.tensor(decomposition)
    dense = w.to_dense()
    assert tuple(dense.shape) == structure.shape, f"to_dense() is {tuple(dense.shape)}, expected {structure.shape}"
    assert_near("to_dense()", dense, oracle_dense(w), oracle_dense(w, absolute=True))


def dense_equals_tensorly(decomposition: Decomposition, structure: Structure) -> None:
    """The dense tensor equals what TensorLy makes of `to_tensorly()`; skipped where TensorLy has no type."""
    _skip_without_tensorly_type(decomposition)
    w = structure.tensor(decomposition)
    assert_near("TensorLy's tensor", _dense_of(w.to_tensorly()), w.to_dense(), oracle_dense(w, absolute=True))


def tensorly_round_trip(decomposition: Decomposition, structure: Structure) -> None:
    """`from_tensorly(to_tensorly())` gives the same tensor, and what `to_tensorly()` gives shares memory."""
    _skip_without_tensorly_type(decomposition)
    w = structure.tensor(decomposition)
    value = w.to_tensorly()
    again = FactorizedExpertTensor.from_tensorly(value, decomposition, w.rank, bias=w.bias)
    for name, parameter in w.weight.tensors.items():
        assert torch.equal(again.weight.tensors[name], parameter), f"parameter {name!r} differs after the round trip"
    with torch.no_grad():
        for parameter in w.parameters():
            parameter.mul_(-2.0)
    what = "TensorLy's tensor after the parameters were changed in place"
    assert_near(what, _dense_of(value), oracle_dense(w), oracle_dense(w, absolute=True))


def _skip_without_tensorly_type(decomposition: Decomposition) -> None:
    if type(decomposition).to_tensorly is Decomposition.to_tensorly:
        pytest.skip(f"TensorLy has no tensor type for {type(decomposition).__name__}")


def _dense_of(value: Any) -> Tensor:
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        dense: Tensor = value.to_tensor()
    return dense


def one_hot_selects_expert(decomposition: Decomposition, structure: Structure) -> None:
    """One-hot coefficients apply `expert(...)`'s matrix, its last row as the bias."""
    w, (x, coefficients) = structure.tensor(decomposition), structure.arguments()
    index = _random_index(structure)
    one_hot = [torch.zeros_like(a) for a in coefficients]
    for a, n in zip(one_hot, index, strict=True):
        a[..., n] = 1.0
    expected = contract_dense(w.expert(*index), x, [], w.bias)
    assert_near(f"one-hot coefficients of expert {index}", w(x, one_hot), expected, absolute_output(w, x, one_hot)[0])


def _random_index(structure: Structure) -> tuple[int, ...]:
    source = random.Random(structure.seed)
    return tuple(source.randrange(size) for size in structure.expert_dims)


def expert_slices_dense(decomposition: Decomposition, structure: Structure) -> None:
    """`expert(...)` equals the slice of the dense tensor: one expert, several, negative numbers, modes left out."""
    w = structure.tensor(decomposition)
    dense, scale = oracle_dense(w), oracle_dense(w, absolute=True)
    index = _random_index(structure)
    negative = tuple(n - size for n, size in zip(index, structure.expert_dims, strict=True))
    alternating = tuple(n if mode % 2 else None for mode, n in enumerate(index))
    for indices in {index, negative, alternating, index[: len(index) // 2], ()}:
        at = tuple(slice(None) if n is None else n for n in indices)
        assert_near(f"expert{indices}", w.expert(*indices), dense[at], scale[at])


class _LargestValue(TorchDispatchMode):
    """Records the elements of the largest value that is made, not counting views of known memory."""

    known: frozenset[int] = frozenset()
    elements: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in self.known:
            self.elements = max(self.elements, result.numel())
        return result


def expert_never_builds_dense(decomposition: Decomposition, structure: Structure) -> None:
    """One expert costs the memory its plan says, and with many experts that is far less than the dense tensor."""
    w = structure.tensor(decomposition)
    fixed = frozenset(w.network.expert_labels)
    if not fixed:
        return
    plan = make_plan(w.network, dense_request(w.network, fixed))
    operands = [w.network.size_of(set(node.labels) - fixed) for node in w.network.nodes]
    recorded = _LargestValue()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    recorded.known = frozenset(parameter.data_ptr() for parameter in w.parameters())
    with torch.no_grad(), recorded:
        w.expert(*_random_index(structure))
    allowed = max(plan.largest_intermediate, *operands)  # a sliced operand may be copied
    assert recorded.elements <= allowed, f"expert() made {recorded.elements} elements, its plan says {allowed}"
    many = tuple(64 * size for size in structure.expert_dims)
    network = decomposition.network(many, structure.shape[-2], structure.shape[-1], w.rank)
    largest = make_plan(network, dense_request(network, fixed)).largest_intermediate
    everything = network.size_of(network.external_labels)
    assert largest < everything, f"one of {many} experts takes {largest} elements, the dense tensor {everything}"


def node_order_is_free(decomposition: Decomposition, structure: Structure) -> None:
    """The order of the nodes, and of each node's labels, changes memory and plan but not the function."""
    w, (x, coefficients) = structure.tensor(decomposition), structure.arguments()
    source = random.Random(structure.seed)
    terms, operands, known = [], [], with_fixed(w.network, w.weight.tensors)
    for term in w.network.terms:
        nodes = []
        for node in source.sample(term, len(term)):
            axes = source.sample(range(len(node.labels)), len(node.labels))
            nodes.append(Node(node.name, tuple(node.labels[axis] for axis in axes)))
            operands.append(known[node.parameter].permute(axes).contiguous())
        terms.append(tuple(nodes))
    network = replace(w.network, terms=tuple(terms))
    rows = [tensor.reshape(-1, tensor.shape[-1]) for tensor in (x, *coefficients)]
    y = execute(make_plan(network, forward_request(network, w.bias)), (*operands, *rows))
    expected = contract_dense(oracle_dense(w), x, coefficients, w.bias)
    scale, _ = absolute_output(w, x, coefficients)
    assert_near("another order of nodes and labels", y.reshape(expected.shape), expected, scale)
