"""The gate: its values against a plain reference, and what a module of torch has to withstand."""

import copy
import functools
import io
import math
import pickle
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from factorized_moe.activations import ACTIVATIONS, TopKSoftmax, entmax15
from factorized_moe.gating import ExpertGate

NORMS = ("batch", "layer", None)
WIDTHS = ((), (7,), (4, 4), (8, 3), (2, 5, 1))

each_norm = pytest.mark.parametrize("norm", NORMS)
each_width = pytest.mark.parametrize("expert_dims", WIDTHS, ids=str)
# torch._dynamo itself makes an instance of autograd.Function for every Function that it traces (torch 2.13,
# torch/_dynamo/side_effects.py), and autograd.Function warns of that.
traces_a_function = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def trained_gate(expert_dims: Sequence[int] = (8, 3), norm: str | None = "batch", **options: Any) -> ExpertGate:
    """A gate of 6 features in evaluation mode, with weights and running averages that are not the initial ones."""
    torch.manual_seed(0)
    gate = ExpertGate(6, expert_dims, norm=norm, **options)
    if gate.projection is not None:
        nn.init.normal_(gate.projection.weight)
    if gate.batch_norm is not None:
        nn.init.normal_(gate.batch_norm.running_mean)
        nn.init.uniform_(gate.batch_norm.running_var, 0.5, 2.0)
    return gate.eval()


def reference_logits(gate: ExpertGate, x: Tensor) -> list[Tensor]:
    """The same by one map and one normalisation for each expert mode, as the source writes it."""
    logits, start = [], 0
    for width in gate.expert_dims:
        rows = slice(start, start + width)
        one = (x @ gate.projection.weight[rows].T).reshape(-1, width)
        if gate.norm == "batch":
            statistics = gate.batch_norm.running_mean[rows].clone(), gate.batch_norm.running_var[rows].clone()
            one = F.batch_norm(one, *statistics, training=gate.training)
        if gate.norm == "layer":
            one = F.layer_norm(one, (width,))
        logits.append(one.reshape(*x.shape[:-1], width) / gate.temperature)
        start += width
    return logits


# --- values


@given(
    batch=st.lists(st.integers(0, 4), max_size=3),
    expert_dims=st.lists(st.integers(1, 6), max_size=4),
    norm=st.sampled_from(NORMS),
    activation=st.sampled_from(["softmax", "entmax15", "sparsemax", "entmax"]),
    training=st.booleans(),
)
def test_equal_to_one_map_for_each_mode(
    batch: list[int], expert_dims: list[int], norm: str | None, activation: str, training: bool
) -> None:
    gate = trained_gate(expert_dims, norm, activation=activation, dtype=torch.float64)
    x = torch.randn(*batch, 6, dtype=torch.float64)
    gate.train(training and math.prod(batch) > 1)
    expected = reference_logits(gate, x)
    logits, coefficients = copy.deepcopy(gate).logits(x), gate(x)
    assert isinstance(logits, tuple)
    assert isinstance(coefficients, tuple)
    torch.testing.assert_close(logits, tuple(expected))
    torch.testing.assert_close(coefficients, tuple(ACTIVATIONS[activation](one) for one in expected))


@each_norm
def test_training_starts_from_the_uniform_mixture(norm: str | None) -> None:
    gate = ExpertGate(6, (8, 3), norm=norm)
    for coefficients, width in zip(gate(torch.randn(10, 6)), (8, 3), strict=True):
        torch.testing.assert_close(coefficients, torch.full((10, width), 1 / width))


def test_running_averages_are_those_of_torch() -> None:
    gate, plain = trained_gate((8, 3)), nn.BatchNorm1d(11, affine=False)
    plain.load_state_dict(gate.batch_norm.state_dict())
    gate.train()
    for _ in range(3):
        x = torch.randn(4, 5, 6)
        gate(x)
        plain(gate.projection(x).reshape(-1, 11))
    torch.testing.assert_close(gate.batch_norm.state_dict(), plain.state_dict())


@each_width
@each_norm
def test_gradients(norm: str | None, expert_dims: tuple[int, ...]) -> None:
    gate = trained_gate(expert_dims, norm, dtype=torch.float64)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    if expert_dims:
        assert torch.autograd.gradcheck(gate, x)
        assert torch.autograd.gradcheck(
            lambda w: torch.func.functional_call(gate, {"projection.weight": w}, x), gate.projection.weight
        )


# --- the module


@each_norm
@pytest.mark.parametrize("rank", [None, 2])
def test_state_dict_names(norm: str | None, rank: int | None) -> None:
    maps = {"projection.weight"} if rank is None else {"reduction.weight", "projection.weight"}
    statistics = {"batch_norm.running_mean", "batch_norm.running_var", "batch_norm.num_batches_tracked"}
    assert set(ExpertGate(6, (8, 3), norm=norm, rank=rank).state_dict()) == maps | (
        statistics if norm == "batch" else set()
    )
    assert ExpertGate(6, (), norm=norm, rank=rank).state_dict() == {}


@each_norm
@each_width
def test_copies_pickles_and_checkpoints(expert_dims: tuple[int, ...], norm: str | None) -> None:
    gate = trained_gate(expert_dims, norm)
    x = torch.randn(3, 6)
    file = io.BytesIO()
    torch.save(gate.state_dict(), file)
    file.seek(0)
    loaded = ExpertGate(6, expert_dims, norm=norm).eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (copy.deepcopy(gate), pickle.loads(pickle.dumps(gate)), loaded):
        torch.testing.assert_close(other(x), gate(x), rtol=0, atol=0)


def test_what_was_pickled_before_gates_could_have_a_rank_has_none() -> None:
    gate, x = trained_gate(), torch.randn(3, 6)
    earlier = ExpertGate.__new__(ExpertGate)
    earlier.__setstate__({name: value for name, value in vars(gate).items() if name not in ("rank", "reduction")})
    assert earlier.rank is None
    assert repr(earlier) == repr(gate)
    for other in (earlier, copy.deepcopy(earlier), pickle.loads(pickle.dumps(earlier))):
        torch.testing.assert_close(other(x), gate(x), rtol=0, atol=0)


@each_norm
@pytest.mark.parametrize(
    "options",
    [{}, {"rank": 2}, {"zero_start": False}, {"rank": 2, "zero_start": False, "logit_bias": True}],
    ids=["full", "low rank", "random start", "low rank, random start"],
)
def test_meta_device_then_memory_then_start_values(norm: str | None, options: dict[str, Any]) -> None:
    gate = ExpertGate(6, (8, 3), norm=norm, **options, device="meta")
    assert all(tensor.is_meta for tensor in gate.state_dict().values())
    assert [a.shape for a in gate(torch.empty(2, 5, 6, device="meta"))] == [(2, 5, 8), (2, 5, 3)]
    gate.to_empty(device="cpu")
    for tensor in gate.state_dict().values():
        tensor.fill_(7)
    torch.manual_seed(1)
    gate.reset_parameters()
    torch.manual_seed(1)
    torch.testing.assert_close(gate.state_dict(), ExpertGate(6, (8, 3), norm=norm, **options).state_dict())


def test_a_framework_that_resets_each_module_finds_the_same_start_values() -> None:
    gate = trained_gate()
    for module in gate.modules():
        module.reset_parameters()
    torch.testing.assert_close(gate.state_dict(), ExpertGate(6, (8, 3)).state_dict())


def test_construction_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    ExpertGate(6, (8, 3))
    assert torch.get_rng_state().equal(before)


@each_width
def test_hooks_see_the_tuple_and_may_replace_it(expert_dims: tuple[int, ...]) -> None:
    gate = trained_gate(expert_dims)
    x = torch.randn(3, 6)
    plain, seen = gate(x), []

    def halve(module: nn.Module, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(output)
        return tuple(coefficients / 2 for coefficients in output)

    with gate.register_forward_hook(halve):
        halved = gate(x)
    torch.testing.assert_close(seen, [plain])
    torch.testing.assert_close(halved, tuple(coefficients / 2 for coefficients in plain))


def test_forward_stores_nothing() -> None:
    gate = trained_gate()
    before = {name: dict(vars(module)) for name, module in gate.named_modules()}
    gate(torch.randn(5, 6, requires_grad=True))
    assert {name: dict(vars(module)) for name, module in gate.named_modules()} == before


def test_repr_says_how_the_gate_was_made() -> None:
    assert (
        ExpertGate(6, [8, 3]).extra_repr()
        == "in_features=6, expert_dims=(8, 3), activation=entmax15, norm='batch', temperature=2"
    )
    gate = ExpertGate(6, [8], TopKSoftmax(3), None, temperature=1.5)
    assert (
        gate.extra_repr() == "in_features=6, expert_dims=(8,), activation=TopKSoftmax(k=3), norm=None, temperature=1.5"
    )


@pytest.mark.parametrize("activation", [torch.sigmoid, nn.Softplus(), functools.partial(torch.softmax, dim=-1)])
def test_any_callable_is_an_activation(activation: Callable[[Tensor], Tensor]) -> None:
    gate = trained_gate((4, 4), activation=activation)
    x = torch.randn(3, 6)
    torch.testing.assert_close(gate(x), tuple(activation(logits) for logits in gate.logits(x)))
    assert "activation=" in repr(gate)


def test_modes_of_one_width_cost_one_call_of_the_activation() -> None:
    shapes = []

    def recording(logits: Tensor) -> Tensor:
        shapes.append(tuple(logits.shape))
        return entmax15(logits)

    for expert_dims in ((4,), (4, 4, 4), (4, 3)):
        trained_gate(expert_dims, activation=recording)(torch.randn(2, 5, 6))
    assert shapes == [(2, 5, 4), (2, 5, 3, 4), (2, 5, 4), (2, 5, 3)]


# --- dtypes


@each_norm
@each_width
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_dtypes(dtype: torch.dtype, expert_dims: tuple[int, ...], norm: str | None, training: bool) -> None:
    gate = trained_gate(expert_dims, norm, dtype=dtype).train(training)
    assert all(parameter.dtype == dtype for parameter in gate.parameters())
    x = torch.randn(9, 6).to(dtype).requires_grad_()
    coefficients = gate(x)
    expected = copy.deepcopy(gate).double()(x.double())
    for one, reference in zip(coefficients, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), reference, rtol=0, atol=8 * torch.finfo(dtype).eps)
    if expert_dims:
        sum(one.square().sum() for one in coefficients).backward()
        assert gate.projection.weight.grad.dtype == dtype


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_running_averages_stay_float32_under_half_precision(half: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(512, 6) * 40 + 30).to(half)
    cast, made = trained_gate((8,)).to(half), trained_gate((8,), dtype=half)
    exact = trained_gate((8,)).double()
    exact.load_state_dict(cast.state_dict())
    made.load_state_dict(cast.state_dict())
    for gate in (cast, made, exact):
        gate.train()
        for _ in range(50):
            gate(x.to(gate.projection.weight.dtype))
    for gate in (cast, made):
        assert gate.batch_norm.running_mean.dtype == torch.float32
        averages = {name: value.double() for name, value in gate.batch_norm.state_dict().items()}
        expected = {name: value.double() for name, value in exact.batch_norm.state_dict().items()}
        torch.testing.assert_close(averages, expected, rtol=2e-3, atol=0.1)


@each_norm
def test_autocast(norm: str | None) -> None:
    gate = trained_gate((8, 3), norm)
    x = torch.randn(5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coefficients = gate(x)
        gate(x.bfloat16())
    torch.testing.assert_close(coefficients, gate(x), rtol=0, atol=0.05, check_dtype=False)
    for one in coefficients:
        torch.testing.assert_close(one.float().sum(-1), torch.ones(5), rtol=0, atol=1e-2)


# --- the transformations of torch


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("norm", "expert_dims"), [("batch", (7,)), ("batch", (8, 3)), ("layer", (4, 4)), (None, (8, 3))]
)
@traces_a_function
def test_compiles_whole_and_at_most_twice(norm: str | None, expert_dims: tuple[int, ...]) -> None:
    torch.compiler.reset()
    gate = trained_gate(expert_dims, norm)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        compiled: Callable[..., Any] = torch._dynamo.lookup_backend("aot_eager")(graph, inputs)
        return compiled

    compiled = torch.compile(gate, backend=backend, fullgraph=True)
    for batch in (1, 2, 7, 256, 4096):
        x = torch.randn(batch, 6)
        torch.testing.assert_close(compiled(x), gate(x))
    assert len(graphs) <= 2


@pytest.mark.thorough
@traces_a_function
def test_compiles_in_training_with_gradients() -> None:
    torch.compiler.reset()
    gate = trained_gate().train()
    other = copy.deepcopy(gate)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    for batch in (2, 9, 64):
        x = torch.randn(batch, 6)
        for module, run in ((gate, gate), (other, compiled)):
            module.zero_grad()
            sum(one.square().sum() for one in run(x)).backward()
        torch.testing.assert_close(other.projection.weight.grad, gate.projection.weight.grad)
    torch.testing.assert_close(other.state_dict(), gate.state_dict())


@each_norm
@traces_a_function
def test_exports_with_a_dynamic_batch(norm: str | None) -> None:
    gate = trained_gate((4, 4), norm)
    program = torch.export.export(gate, (torch.randn(5, 6),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (1, 3, 50):
        x = torch.randn(batch, 6)
        torch.testing.assert_close(tuple(program.module()(x)), gate(x))


@each_norm
def test_vmap_and_jacobians(norm: str | None) -> None:
    gate = trained_gate((4, 4), norm, dtype=torch.float64)
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(gate)(x), gate(x))
    jacobians = torch.vmap(torch.func.jacrev(gate))(x[0])
    expected = [torch.autograd.functional.jacobian(gate, row) for row in x[0]]
    torch.testing.assert_close(jacobians, tuple(torch.stack(rows) for rows in zip(*expected, strict=True)))


# --- errors


@pytest.mark.parametrize("positions", [(), (0,), (1,), (1, 1)])
def test_batch_norm_in_training_needs_two_positions(positions: tuple[int, ...]) -> None:
    gate = ExpertGate(6, (8, 3))
    x = torch.randn(*positions, 6)
    message = (
        "ExpertGate: batch normalisation in training mode needs at least 2 positions, but the input of shape "
        f"{tuple(x.shape)} has {math.prod(positions)}; give more, call eval(), or build the gate with norm='layer'"
    )
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        gate(x)
    gate.batch_norm.eval()  # frozen averages are enough
    assert [a.shape for a in gate(x)] == [(*positions, 8), (*positions, 3)]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ExpertGate(6, 256),
            TypeError,
            "expert_dims is a sequence with one int for each expert mode, got 256",
        ),
        (lambda: ExpertGate(6, [8, 4.0]), TypeError, "expert_dims[1] must be an int, got 4.0"),
        (lambda: ExpertGate(6, [True]), TypeError, "expert_dims[0] must be an int, got True"),
        (lambda: ExpertGate(6, [np.bool_(True)]), TypeError, "expert_dims[0] must be an int, got "),
        (lambda: ExpertGate(6, [8, 0]), ValueError, "expert_dims[1] must be at least 1, got 0"),
        (lambda: ExpertGate(0, [8]), ValueError, "in_features must be at least 1, got 0"),
        (lambda: ExpertGate(6, [8], dtype=torch.int64), TypeError, "dtype is a real floating type"),
        (
            lambda: ExpertGate(6, [8], norm="group"),
            ValueError,
            "norm: expected 'batch', 'layer' or None, but got 'group'; pass None to leave the logits as they are",
        ),
        (
            lambda: ExpertGate(6, [8], "entmx15"),
            ValueError,
            "activation: 'entmx15' is not a known name; did you mean 'entmax15'?",
        ),
        (
            lambda: trained_gate()([1.0] * 6),
            TypeError,
            "ExpertGate: the input must be a floating-point tensor, but got list; convert it first",
        ),
        (
            lambda: trained_gate()(torch.arange(6)),
            TypeError,
            "ExpertGate: the input must be a floating-point tensor, but got a tensor of torch.int64; convert it first",
        ),
        (
            lambda: trained_gate(()).logits(torch.randn(2, 5)),
            ValueError,
            "ExpertGate: the input must have shape (*batch, 6), but got (2, 5); its last dimension is in_features",
        ),
        (
            lambda: trained_gate()(torch.tensor(1.0)),
            ValueError,
            "ExpertGate: the input must have shape (*batch, 6), but got ()",
        ),
        (
            lambda: trained_gate()(torch.randn(2, 6, dtype=torch.float64)),
            TypeError,
            "ExpertGate: the input is torch.float64 and the weight torch.float32; convert one of them, "
            "or use torch.autocast",
        ),
        (
            lambda: trained_gate()(torch.randn(2, 6, device="meta")),
            TypeError,
            "ExpertGate: the input is on meta and the weight on cpu; move one of them",
        ),
        (
            lambda: trained_gate(activation=lambda logits: (logits.softmax(-1),))(torch.randn(2, 6)),
            TypeError,
            "ExpertGate: the activation <lambda> returned tuple; it takes the logits of one mode and returns its "
            "coefficients, one tensor",
        ),
        (
            lambda: trained_gate(activation=torch.sum)(torch.randn(2, 6)),
            ValueError,
            "ExpertGate: the activation sum returned shape () for logits of shape (2, 8); "
            "it must keep the shape, one coefficient per expert",
        ),
    ],
)
def test_messages(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + re.escape(message)):
        call()


def test_sizes_take_any_integer_type() -> None:
    gate = ExpertGate(np.int64(6), (np.int64(8), 4))
    assert gate.expert_dims == (8, 4)
    assert all(type(size) is int for size in (gate.in_features, *gate.expert_dims))
    assert ExpertGate(6, torch.Size([8, 4])).expert_dims == (8, 4)


@pytest.mark.parametrize(
    ("temperature", "error"), [(0.0, ValueError), (math.inf, ValueError), (True, TypeError), ("hot", TypeError)]
)
def test_refused_temperature(temperature: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="temperature is a"):
        ExpertGate(6, [8], temperature=temperature)


@each_norm
def test_a_gate_of_low_rank_is_one_whose_weight_is_a_product(norm: str | None) -> None:
    torch.manual_seed(0)
    low, full = (ExpertGate(6, [8, 3], norm=norm, rank=rank).train() for rank in (2, None))
    nn.init.normal_(low.projection.weight)
    with torch.no_grad():
        full.projection.weight.copy_(low.projection.weight @ low.reduction.weight)
    x = torch.randn(40, 6)
    for one, other in zip(low(x), full(x), strict=True):
        torch.testing.assert_close(one, other)
    assert low.num_parameters == 2 * (6 + 11)
    assert "rank=2" in repr(low)
    assert "rank" not in repr(full)


@pytest.mark.parametrize(
    "optimise",
    [
        functools.partial(torch.optim.Adam, lr=0.02),
        functools.partial(torch.optim.AdamW, lr=0.02, weight_decay=0.1),
        functools.partial(torch.optim.SGD, lr=1.0, momentum=0.9, weight_decay=1e-4),
    ],
    ids=["adam", "adamw", "sgd"],
)
@pytest.mark.parametrize("zero_start", [True, False])
def test_a_gate_of_low_rank_learns(optimise: Callable[..., torch.optim.Optimizer], zero_start: bool) -> None:
    """At a start of zero the reduction has no gradient in the first step, and one in the second."""
    torch.manual_seed(0)
    gate = ExpertGate(6, [8], rank=2, zero_start=zero_start)
    x = torch.randn(64, 6)
    uniform = torch.full((64, 8), 1 / 8)
    assert torch.allclose(gate(x)[0], uniform) == zero_start
    target = F.one_hot(x[:, :4].argmax(dim=-1), 8).float()
    optimiser = optimise(gate.parameters())
    before = gate.reduction.weight.detach().clone()
    losses, moves = [], []
    for _ in range(60):
        losses.append((gate(x)[0] - target).square().mean())
        optimiser.zero_grad()
        losses[-1].backward()
        moves.append(bool(gate.reduction.weight.grad.all()))
        assert gate.projection.weight.grad.all()
        optimiser.step()
    assert moves[:2] == [not zero_start, True]
    assert losses[-1] < 0.7 * losses[0]
    assert (gate.reduction.weight - before).norm() > 0.1 * before.norm()
    gate.reset_parameters()
    assert torch.allclose(gate.eval()(x)[0], uniform) == zero_start


@pytest.mark.parametrize("rank", [0, -1, 1.5, "2", True])
def test_a_rank_of_a_gate_is_a_positive_int(rank: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="rank of the gate"):
        ExpertGate(6, [8], rank=rank)
