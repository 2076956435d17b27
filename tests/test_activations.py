"""The coefficient activations against the entmax package, and the laws that the gate relies on."""

import itertools
import math
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import entmax
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from factorized_moe.activations import (
    ACTIVATIONS,
    Entmax,
    TopKSoftmax,
    entmax15,
    resolve_activation,
    softmax,
    sparsemax,
)

EVERY = {
    "softmax": softmax,
    "entmax15": entmax15,
    "sparsemax": sparsemax,
    "Entmax(1.25)": Entmax(1.25),
    "Entmax(1.7)": Entmax(1.7),
    "Entmax(2.5)": Entmax(2.5),
    "TopKSoftmax(1)": TopKSoftmax(1),
}
EXACT_SUM = {torch.float32: 1e-6, torch.float64: 1e-12}

# torch itself scripts its derivatives of forward mode when they are first asked for; of which class its warning is
# depends on the version.
takes_tangents = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")

# torch._dynamo itself makes an instance of autograd.Function for every Function that it traces (torch 2.13,
# torch/_dynamo/side_effects.py), and autograd.Function warns of that.
traces_a_function = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

# The logits (value, how often) on which Newton's method was slowest for entmax15, found by an evolutionary search that
# maximised the error after one step fewer than is taken in float32: there, 2e-6 at width 64 and 1e-5 at width 256.
SLOW_ENTMAX15 = {
    64: [(-0.143421, 1), (-0.185726, 2), (-1.326103, 38), (-1.670076, 5), (-1.741689, 15), (-7.8, 3)],
    256: [(0.0, 2), (-1.414274, 196), (-1.67777, 1), (-1.694237, 1), (-1.719465, 4), (-1.736816, 19), (-1.748904, 33)],
}

each_activation = pytest.mark.parametrize("activation", list(EVERY.values()), ids=list(EVERY))
each_sparse = pytest.mark.parametrize("activation", list(EVERY.values())[1:], ids=list(EVERY)[1:])


def ladders(width: int) -> Tensor:
    """Rows that are hard for a search of the threshold: ties, ladders, huge and tiny scales, ``(rows, width)``."""
    steps = torch.arange(width, dtype=torch.float64)
    rows = [torch.zeros_like(steps), -(steps > 0).double(), -1e-7 * (steps > 0), -1.9999 * (steps > 0)]
    for scale in (1e-6, 0.01, 0.3, 1.0, 2.0, 4.0, 1e3, 1e6):
        rows += [-scale * torch.linspace(0, 1, width, dtype=torch.float64) ** power for power in (0.1, 1.0, 8.0)]
        for ratio in (1.001, 1.05, 1.4, 3.0):
            rows += [scale * ratio**-steps, -scale * ratio**-steps, -scale * torch.log1p(steps) / math.log(ratio)]
        generator = torch.Generator().manual_seed(0)
        rows += list(scale * torch.randn(8, width, dtype=torch.float64, generator=generator))
    return torch.stack(rows)


def slow_sparsemax_ladder(width: int, ratio: float) -> Tensor:
    """Sparsemax's worst case ``(width,)``: of the logits in play, each step of Newton's method leaves ``ratio``."""
    counts = [width]
    while counts[-1] > 2:
        counts.append(max(2, min(counts[-1] - 1, round(counts[-1] * ratio))))
    excess, offset = width / 4, 0.0
    row = []
    for count, rest in itertools.pairwise(counts):
        row += [offset + 1e-5 * excess / count] * (count - rest)
        offset += excess / count
        excess -= rest * excess / count
    return torch.tensor([*row, excess + 2 * offset, 1.0], dtype=torch.float64)


def draw(shape: tuple[int, ...], scale: float, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


# --- values


@given(
    batch=st.lists(st.integers(0, 3), max_size=3),
    width=st.integers(1, 300),
    scale=st.sampled_from([1e-4, 0.1, 1.0, 5.0, 100.0, 1e4]),
    seed=st.integers(0, 2**20),
)
@example(batch=[0], width=1, scale=1.0, seed=0)
def test_equal_to_the_entmax_package(batch: list[int], width: int, scale: float, seed: int) -> None:
    x = draw((*batch, width), scale, seed)
    torch.testing.assert_close(entmax15(x), entmax.entmax15(x, dim=-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(sparsemax(x), entmax.sparsemax(x, dim=-1), rtol=0, atol=1e-6)
    for alpha in (1.1, 1.25, 1.75, 2.5, 3.0):
        expected = entmax.entmax_bisect(x, alpha=alpha, dim=-1) if x.numel() else x
        torch.testing.assert_close(Entmax(alpha)(x), expected, rtol=0, atol=1e-6)


def one_row_at_a_time(x: Tensor) -> Tensor:
    """entmax15 by sorting, which few float32 logits take, where all rows of `x` together take Newton's method."""
    return torch.stack([entmax15(row) for row in x])


@pytest.mark.parametrize("width", [1, 2, 3, 16, 64, 300, 1024, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "activation",
    [entmax15, one_row_at_a_time, sparsemax, Entmax(1.25)],
    ids=["entmax15", "entmax15 by row", "sparsemax", "Entmax(1.25)"],
)
def test_hard_rows_are_exact(activation: Callable[[Tensor], Tensor], dtype: torch.dtype, width: int) -> None:
    x = ladders(width).to(dtype)
    with torch.no_grad():
        p = activation(x).double()
    assert (p.sum(-1) - 1).abs().max() < EXACT_SUM[dtype]
    assert (p >= 0).all()
    # The condition that defines the solution: on the support, (alpha - 1) * x - p ** (alpha - 1) is the threshold tau
    # of the row, and off the support (alpha - 1) * x is below it.
    alpha = {entmax15: 1.5, one_row_at_a_time: 1.5, sparsemax: 2.0}.get(activation, 1.25)
    scaled = (alpha - 1) * (x.double() - x.double().amax(-1, keepdim=True))
    tau = scaled - p ** (alpha - 1)
    on = p > 0
    highest = tau.masked_fill(~on, -math.inf).amax(-1)
    lowest = tau.masked_fill(~on, math.inf).amin(-1)
    tolerance = 8 * torch.finfo(dtype).eps
    assert (highest - lowest).max() < tolerance
    assert (scaled.masked_fill(on, -math.inf).amax(-1) - lowest).max() < tolerance


@pytest.mark.parametrize("ratio", [0.5, 0.65, 0.7, 0.75, 0.85])
@pytest.mark.parametrize("width", [64, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sparsemax_finishes_on_its_worst_case(dtype: torch.dtype, width: int, ratio: float) -> None:
    x = slow_sparsemax_ladder(width, ratio).to(dtype)
    p = sparsemax(x)
    assert abs(p.double().sum().item() - 1) < EXACT_SUM[dtype]
    torch.testing.assert_close(p.double(), entmax.sparsemax(x.double(), dim=-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", SLOW_ENTMAX15)
@pytest.mark.parametrize("logits", [1024, 2**16])
def test_entmax15_finishes_on_the_slowest_rows_found(width: int, dtype: torch.dtype, logits: int) -> None:
    values, counts = zip(*SLOW_ENTMAX15[width], strict=True)
    x = torch.tensor(values, dtype=torch.float64).repeat_interleave(torch.tensor(counts)).to(dtype)
    assert x.shape == (width,)
    rows = x.expand(1 + logits // width, width)  # few logits would be sorted, many stop by another bound
    assert (entmax15(rows).double().sum(-1) - 1).abs().max() < EXACT_SUM[dtype]
    torch.testing.assert_close(entmax15(rows).double(), entmax.entmax15(rows.double(), dim=-1), rtol=0, atol=1e-6)


def test_a_row_wider_than_the_fast_norm_is_exact() -> None:
    x = ladders(20_000).float()
    assert (entmax15(x).double().sum(-1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("width", [511, 512, 1000, 1024, 4096, 5000])
@pytest.mark.parametrize("scale", [0.0, 0.02, 0.5, 3.0, 50.0])
@pytest.mark.parametrize("count", [40, 160])
def test_wide_rows_stop_early_at_the_solution(width: int, scale: float, count: int) -> None:
    torch.manual_seed(width)
    x = scale * torch.randn(count, width) + 1e3 * torch.randn(count, 1)  # rows far from zero too
    expected = entmax.entmax15(x.double(), dim=-1)
    torch.testing.assert_close(entmax15(x), expected.float(), rtol=0, atol=1e-6)
    assert (entmax15(x).double().sum(-1) - 1).abs().max() < EXACT_SUM[torch.float32]


@pytest.mark.parametrize("times", [1, 100])
def test_one_hard_row_holds_back_the_others(times: int) -> None:
    """All rows go on until the last one is at its solution."""
    hard = ladders(600).float()
    easy = torch.zeros(times * len(hard), 600)
    expected = entmax15(hard.double()).float()
    torch.testing.assert_close(entmax15(torch.cat((easy, hard)))[len(easy) :], expected, rtol=0, atol=1e-6)
    assert (entmax15(torch.cat((easy, hard))).double().sum(-1) - 1).abs().max() < EXACT_SUM[torch.float32]


def test_many_logits_stop_with_a_sum_of_one() -> None:
    """Rows of few groups of ties, of which each step drops one: the curvature changes as fast as it can."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 6, (128, 1024), generator=generator) * torch.rand(128, 1, generator=generator)
    x[:, ::16] += torch.rand(128, 1, generator=generator)  # what the search starts from says little of the others
    for dtype in (torch.float32, torch.float64):
        assert (entmax15(x.to(dtype)).double().sum(-1) - 1).abs().max() < EXACT_SUM[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_general_entmax_agrees_with_the_special_ones(dtype: torch.dtype) -> None:
    x = draw((50, 40), 2.0, 0, dtype)
    torch.testing.assert_close(Entmax(1.5)(x), entmax15(x), rtol=0, atol=0)
    torch.testing.assert_close(Entmax(2)(x), sparsemax(x), rtol=0, atol=0)
    for alpha, limit in ((1.5, entmax15), (2.0, sparsemax)):
        for near in (alpha - 1e-6, alpha + 1e-6):  # another branch of the code, nearly the same function
            torch.testing.assert_close(Entmax(near)(x), limit(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(Entmax(1.0001)(x.double()), softmax(x.double()), rtol=0, atol=1e-3)


def test_top_k_keeps_the_largest_and_renormalises() -> None:
    x = draw((7, 3, 20), 1.0, 0)
    p = TopKSoftmax(4)(x)
    values, index = x.topk(4, dim=-1)
    torch.testing.assert_close(p.gather(-1, index), values.softmax(-1))
    assert (p > 0).sum(-1).eq(4).all()
    torch.testing.assert_close(TopKSoftmax(20)(x), softmax(x))


def test_top_k_keeps_ties_together() -> None:
    assert TopKSoftmax(2)(torch.zeros(5)).tolist() == pytest.approx([0.2] * 5)
    assert TopKSoftmax(2)(torch.tensor([3.0, 1.0, 1.0, 0.0])).count_nonzero() == 3
    assert TopKSoftmax(2)(torch.tensor([3.0, 1.0, float("nan"), 0.0])).isnan().all()
    assert TopKSoftmax(2)(torch.tensor([3.0, -math.inf, -math.inf])).tolist() == [1.0, 0.0, 0.0]


# --- special rows


@each_activation
def test_one_expert_and_empty_batches(activation: Callable[[Tensor], Tensor]) -> None:
    torch.testing.assert_close(activation(torch.tensor([-3.0])), torch.tensor([1.0]))
    for shape in ((0, 1), (0, 5), (2, 0, 5)):
        assert activation(torch.zeros(shape)).shape == shape


@each_activation
def test_a_masked_expert_gets_exactly_zero_and_no_gradient(activation: Callable[[Tensor], Tensor]) -> None:
    x = draw((6, 9), 1.0, 3)
    masked = torch.zeros(6, 9, dtype=torch.bool)
    masked[:, [0, 4]] = True
    logits = x.masked_fill(masked, -math.inf).requires_grad_()
    p = activation(logits)
    assert (p[masked] == 0).all()
    torch.testing.assert_close(p[~masked].view(6, 7), activation(x[~masked].view(6, 7)))
    (gradient,) = torch.autograd.grad((p * torch.arange(9)).sum(), logits)
    assert gradient.isfinite().all()
    assert (gradient[masked] == 0).all()


@each_activation
def test_nan_stays_in_its_row_and_fills_it(activation: Callable[[Tensor], Tensor]) -> None:
    x = draw((4, 6), 1.0, 0)
    x[1, 2] = math.nan
    x[2] = math.nan
    x[3] = -math.inf
    for rows in (x, x.clone().requires_grad_(), x.repeat(1, 200)):  # the last is too large to be sorted
        p = activation(rows)
        assert p[0].isfinite().all()
        assert p[1:].isnan().all()


@each_activation
def test_acts_on_the_last_dimension_of_any_layout_and_leaves_the_input(activation: Callable[[Tensor], Tensor]) -> None:
    x = draw((4, 5, 3), 2.0, 1)
    before = x.clone()
    expected = torch.stack([torch.stack([activation(row) for row in rows]) for rows in x])
    torch.testing.assert_close(activation(x), expected)
    torch.testing.assert_close(activation(x.transpose(0, 1)), expected.transpose(0, 1))
    torch.testing.assert_close(activation(x[:, :1].expand(4, 6, 3)), expected[:, :1].expand(4, 6, 3))
    torch.testing.assert_close(x, before, rtol=0, atol=0)


# --- dtypes


@each_activation
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_keeps_the_dtype_and_computes_half_precision_in_float32(
    activation: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    x = draw((30, 200), 2.0, 0, dtype).requires_grad_()
    p = activation(x)
    assert p.dtype == dtype
    if dtype in (torch.bfloat16, torch.float16):
        torch.testing.assert_close(p, activation(x.float()).to(dtype), rtol=0, atol=0)
    assert (p.double().sum(-1) - 1).abs().max() < max(torch.finfo(dtype).eps, 1e-15) * 4
    (gradient,) = torch.autograd.grad(p.square().sum(), x)
    assert gradient.dtype == dtype


@each_activation
def test_autocast_changes_nothing(activation: Callable[[Tensor], Tensor]) -> None:
    x = draw((30, 20), 2.0, 0, torch.float32).requires_grad_()
    expected = activation(x)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        p = activation(x)
    (gradient,) = torch.autograd.grad(p.square().sum(), x)
    torch.testing.assert_close(p, expected, rtol=0, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=0)


# --- derivatives


@each_activation
def test_first_and_second_derivatives(activation: Callable[[Tensor], Tensor]) -> None:
    x = draw((3, 2, 7), 1.0, 5).requires_grad_()
    assert torch.autograd.gradcheck(activation, x)
    assert torch.autograd.gradgradcheck(activation, x)


@each_sparse
def test_third_derivatives(activation: Callable[[Tensor], Tensor]) -> None:
    x = draw((2, 6), 0.7, 5).requires_grad_()

    def gradient(x: Tensor) -> Tensor:
        return torch.autograd.grad(activation(x).pow(3).sum(), x, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(gradient, x)


@given(width=st.integers(1, 40), scale=st.sampled_from([0.01, 1.0, 10.0]), seed=st.integers(0, 2**20))
def test_gradients_equal_to_the_entmax_package(width: int, scale: float, seed: int) -> None:
    x = draw((5, width), scale, seed).requires_grad_()
    cotangent = draw((5, width), 1.0, seed + 1)
    for ours, theirs in ((entmax15, entmax.entmax15), (sparsemax, entmax.sparsemax)):
        (expected,) = torch.autograd.grad(theirs(x, dim=-1), x, cotangent)
        (gradient,) = torch.autograd.grad(ours(x), x, cotangent)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


@each_activation
def test_same_values_with_and_without_gradients(activation: Callable[[Tensor], Tensor]) -> None:
    x = draw((20, 12), 2.0, 0).requires_grad_()
    with torch.no_grad():
        expected = activation(x)
    assert not expected.requires_grad
    torch.testing.assert_close(activation(x), expected, rtol=0, atol=0)


# --- the transformations of torch


@each_activation
def test_vmap_and_jacobians(activation: Callable[[Tensor], Tensor]) -> None:
    x = draw((4, 3, 5), 1.0, 2)
    torch.testing.assert_close(torch.vmap(activation)(x), activation(x))
    torch.testing.assert_close(torch.vmap(activation, in_dims=1, out_dims=1)(x), activation(x))
    expected = torch.stack([torch.autograd.functional.jacobian(activation, row) for row in x])
    torch.testing.assert_close(torch.vmap(torch.func.jacrev(activation))(x), expected)
    whole = torch.func.jacrev(torch.vmap(activation))(x)  # (4, 3, 5, 4, 3, 5)
    torch.testing.assert_close(torch.stack([whole[i, ..., i, :, :] for i in range(4)]), expected)
    hessian = torch.func.jacrev(torch.func.jacrev(lambda x: activation(x).square().sum()))(x[0])
    expected_hessian = torch.autograd.functional.hessian(lambda x: activation(x).square().sum(), x[0])
    torch.testing.assert_close(hessian, expected_hessian)


@takes_tangents
@each_activation
@pytest.mark.parametrize("shape", [(3, 6), (2, 600)], ids=str)
def test_forward_mode_derivatives_are_those_of_backward(
    activation: Callable[[Tensor], Tensor], shape: tuple[int, int]
) -> None:
    x, tangent = draw(shape, 1.0, 0), draw(shape, 1.0, 1)
    jacobians = torch.vmap(torch.func.jacrev(activation))(x)  # (batch, N, N)
    expected = (jacobians @ tangent[..., None])[..., 0]
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            found = torch.func.jvp(activation, (x,), (tangent,))[1]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    with forward_ad.dual_level():
        dual = activation(forward_ad.make_dual(x.float(), tangent.float()))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected.float(), rtol=1e-4, atol=1e-5)


@takes_tangents
@each_activation
@pytest.mark.parametrize("outer", [torch.func.jacfwd, torch.func.jacrev], ids=["forward", "reverse"])
@pytest.mark.parametrize("inner", [torch.func.jacfwd, torch.func.jacrev], ids=["forward", "reverse"])
def test_second_derivatives_in_every_mode(activation: Callable[[Tensor], Tensor], outer: Any, inner: Any) -> None:
    def value(x: Tensor) -> Tensor:
        return (activation(x).square() * torch.arange(1.0, 7.0, dtype=x.dtype)).sum()

    x = draw((6,), 1.0, 0)
    expected = torch.autograd.functional.hessian(value, x)
    torch.testing.assert_close(outer(inner(value))(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", [entmax15, sparsemax, softmax], ids=["entmax15", "sparsemax", "softmax"])
def test_logits_far_from_zero(activation: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """Such as a mask's: an offset of all logits changes nothing, alone or in a batch."""
    for offset in (torch.finfo(dtype).min, -1e4, 1e4, torch.finfo(dtype).max):
        tied = torch.full((1, 3), offset, dtype=dtype, requires_grad=True)
        torch.testing.assert_close(activation(tied), torch.full_like(tied, 1 / 3))
        (gradient,) = torch.autograd.grad(activation(tied)[0, 0], tied)
        assert gradient.isfinite().all()
        torch.testing.assert_close(activation(tied.expand(500, 3))[7:8], activation(tied))
    limits = torch.finfo(dtype)
    spread = torch.tensor([[limits.max, 0.0, limits.min]], dtype=dtype)
    assert activation(spread).tolist() == [[1.0, 0.0, 0.0]]


def test_a_short_row_takes_few_operations() -> None:
    """Of one token, each operation of the gate costs as much as one on many."""

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += 1
            return function(*args, **(kwargs or {}))

    counts = []
    for logits in (torch.randn(1, 256), torch.randn(1, 256, dtype=torch.float64)):  # sorted, and by Newton's method
        with torch.no_grad(), Counter() as counter:
            entmax15(logits)
        counts.append(counter.count)
    assert counts[0] <= 24
    assert 2 * counts[0] < counts[1]


@each_activation
def test_vmap_over_short_rows(activation: Callable[[Tensor], Tensor]) -> None:
    x = draw((4, 5), 1.0, 2).float()  # few logits in float32, which entmax15 sorts
    torch.testing.assert_close(torch.vmap(activation)(x), activation(x))
    jacobians = torch.vmap(torch.func.jacrev(activation))(x)
    torch.testing.assert_close(jacobians, torch.vmap(torch.func.jacrev(activation))(x.double()).float())


@pytest.mark.thorough
@traces_a_function
@pytest.mark.parametrize("activation", [softmax, entmax15, sparsemax, Entmax(1.25), Entmax(2.5), TopKSoftmax(2)])
def test_compiles_whole_with_gradients(activation: Callable[[Tensor], Tensor]) -> None:
    torch.compiler.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        compiled: Callable[..., Any] = torch._dynamo.lookup_backend("aot_eager")(graph, inputs)
        return compiled

    compiled = torch.compile(activation, backend=backend, fullgraph=True)
    for batch in (1, 2, 64, 4096):
        x = draw((batch, 6), 1.0, batch, torch.float32).requires_grad_()
        y = x.detach().clone().requires_grad_()
        p = compiled(y)
        torch.testing.assert_close(p, activation(x))
        expected = torch.autograd.grad(activation(x).square().sum(), x)
        torch.testing.assert_close(torch.autograd.grad(p.square().sum(), y), expected)
    assert len(graphs) <= 2


@pytest.mark.thorough
@traces_a_function
@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")  # torch._inductor's own imports
@pytest.mark.skipif(shutil.which("g++") is None, reason="the default compiler needs g++")
def test_the_default_compiler_agrees() -> None:
    torch.compiler.reset()
    x = draw((16, 9), 1.0, 0, torch.float32).requires_grad_()
    y = x.detach().clone().requires_grad_()
    p = torch.compile(entmax15, fullgraph=True)(y)
    torch.testing.assert_close(p, entmax15(x))
    expected = torch.autograd.grad(entmax15(x).square().sum(), x)
    torch.testing.assert_close(torch.autograd.grad(p.square().sum(), y), expected)


class Applied(torch.nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x)


@traces_a_function
@pytest.mark.parametrize(
    ("activation", "strict"), [(entmax15, True), *((activation, False) for activation in EVERY.values())]
)
def test_exports_with_a_dynamic_batch(activation: Callable[[Tensor], Tensor], strict: bool) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(Applied(activation), (torch.randn(4, 6),), dynamic_shapes=shapes, strict=strict)
    for batch in (1, 3, 50):
        x = draw((batch, 6), 2.0, batch, torch.float32)
        torch.testing.assert_close(program.module()(x), activation(x))


# --- names, values and errors


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_names_resolve_to_distributions(name: str) -> None:
    p = resolve_activation(name)(draw((5, 8), 1.0, 0))
    torch.testing.assert_close(p.sum(-1), torch.ones(5, dtype=torch.float64))
    assert pickle.loads(pickle.dumps(resolve_activation(name))) == resolve_activation(name)


def test_a_callable_stands_for_itself() -> None:
    assert resolve_activation(torch.sigmoid) is torch.sigmoid


def test_parametrised_activations_are_values() -> None:
    assert Entmax(1.25) == Entmax() == ACTIVATIONS["entmax"]
    assert {TopKSoftmax(2), TopKSoftmax(2)} == {ACTIVATIONS["topk_softmax"]}
    assert repr(Entmax(1.75)) == "Entmax(alpha=1.75)"
    with pytest.raises(FrozenInstanceError):
        Entmax().alpha = 2.0  # type: ignore[misc]  # what the test is about


ALL_NAMES = "pass one of 'entmax', 'entmax15', 'softmax', 'sparsemax', 'topk_softmax', or a callable"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: resolve_activation("Entmax1.5"),
            ValueError,
            f"activation: 'Entmax1.5' is not a known name; did you mean 'entmax15'? {ALL_NAMES}",
        ),
        (lambda: resolve_activation("?"), ValueError, f"activation: '?' is not a known name; {ALL_NAMES}"),
        (
            lambda: resolve_activation(3),
            TypeError,
            f"activation: expected a name or a callable, but got 3 of type int; {ALL_NAMES} from logits to ",
        ),
        (
            lambda: Entmax(1.0),
            ValueError,
            "Entmax: alpha must be a finite number above 1, but got 1.0; "
            "the limit alpha -> 1 is softmax: use the activation 'softmax' for it",
        ),
        (lambda: Entmax(math.inf), ValueError, "Entmax: alpha must be a finite number above 1, but got inf"),
        (lambda: Entmax(math.nan), ValueError, "Entmax: alpha must be a finite number above 1, but got nan"),
        (
            lambda: Entmax("1.5"),
            TypeError,
            "Entmax: alpha must be a number above 1, but got '1.5' of type str; pass a float such as 1.25",
        ),
        (lambda: Entmax(True), TypeError, "Entmax: alpha must be a number above 1, but got True of type bool"),
        (lambda: TopKSoftmax(0), ValueError, "TopKSoftmax: k must be a positive integer, but got 0; pass 1 or more"),
        (
            lambda: TopKSoftmax(2.0),
            TypeError,
            "TopKSoftmax: k must be a positive integer, but got 2.0 of type float; pass an int such as 2",
        ),
        (lambda: TopKSoftmax(True), TypeError, "TopKSoftmax: k must be a positive integer, but got True of type bool"),
        (
            lambda: TopKSoftmax(5)(torch.zeros(2, 4)),
            ValueError,
            "TopKSoftmax: k=5 is more than the 4 logits of the last dimension of an input of shape (2, 4); "
            "choose k of at most 4",
        ),
    ],
)
def test_messages(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + re.escape(message)):
        call()


@each_activation
def test_messages_about_logits(activation: Callable[[Tensor], Tensor]) -> None:
    name = getattr(activation, "__name__", type(activation).__name__)
    for given_, described in ((torch.arange(4), "a tensor of torch.int64"), ([1.0, 2.0], "list")):
        message = f"{name}: logits must be a floating-point tensor, but got {described}; convert it with .float()"
        with pytest.raises(TypeError, match="^" + re.escape(message)):
            activation(given_)  # type: ignore[arg-type]  # what the test is about
    for shape in ((), (0,), (3, 0)):
        message = (
            f"{name}: logits must have shape (*batch, N) with at least one expert N, but got {shape}; "
            "give the last dimension one logit per expert"
        )
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            activation(torch.zeros(shape))
