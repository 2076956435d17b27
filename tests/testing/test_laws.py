"""Every law bites: each is given something that breaks it, and must raise AssertionError."""

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import torch

import factorized_moe.tensor
from factorized_moe import Decomposition, ExpertGate, FactorizedExpertTensor
from factorized_moe.contraction import plan_along
from factorized_moe.decompositions import CP, balanced
from factorized_moe.network import Node
from factorized_moe.parallel import moves
from factorized_moe.testing import LAWS, Structure, cost_laws, value_laws

pytestmark = pytest.mark.thorough

STRUCTURE = Structure((3, 2), 3, 4, rank=2, bias=True, batch_shape=(2, 3), seed=5)
EVEN = replace(STRUCTURE, expert_dims=(3, 3), in_features=2, out_features=3, batch_shape=(3,), rank=3)
FORWARD = FactorizedExpertTensor.forward

Patch = Callable[[pytest.MonkeyPatch], Decomposition | None]
BREAKS: dict[tuple[str, str], Patch] = {}


def breaks(law: str, case: str) -> Callable[[Patch], Patch]:
    def keep(patch: Patch) -> Patch:
        BREAKS[law, case] = patch
        return patch

    return keep


def forward(law: str, case: str, broken: Callable[..., torch.Tensor]) -> None:
    """A break that replaces the forward pass by `broken(w, x, coefficients)`."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(FactorizedExpertTensor, "forward", broken)

    BREAKS[law, case] = patch


class Identity(torch.autograd.Function):
    """Its first derivative is right, its second one is lost."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.detach() + 0.0 * gradient


def graph_break(w: FactorizedExpertTensor, x: torch.Tensor, a: Any) -> torch.Tensor:
    torch._dynamo.graph_break()
    return FORWARD(w, x, a)


def flattened(w: FactorizedExpertTensor, x: torch.Tensor, a: Any) -> torch.Tensor:
    return FORWARD(w, x, a).reshape(-1, w.out_features)


forward("forward_equals_dense", "slightly wrong", lambda w, x, a: FORWARD(w, x, a) * (1 + 1e-8))
forward("forward_equals_dense", "in single precision", lambda w, x, a: FORWARD(w, x, a).float().to(x.dtype))
forward("forward_equals_dense", "of another dtype", lambda w, x, a: FORWARD(w, x, a).double())
forward("forward_equals_dense", "without bias", lambda w, x, a: FORWARD(w, x, a) - FORWARD(w, 0 * x, a))
forward("gradients_equal_dense", "of x", lambda w, x, a: FORWARD(w, x.detach(), a))
forward("gradients_equal_dense", "of coefficients", lambda w, x, a: FORWARD(w, x, [a[0], a[1].detach()]))
forward("gradients_equal_dense", "none", lambda w, x, a: FORWARD(w, x, a).detach())
forward("leading_shape_is_kept", "flattened", flattened)
forward("leading_shape_is_kept", "mixed samples", lambda w, x, a: FORWARD(w, x + 1e-6 * x.sum() / x.shape[-1], a))
forward("forward_is_multilinear", "not in x", lambda w, x, a: FORWARD(w, x.relu(), a))
forward("forward_is_multilinear", "not in coefficients", lambda w, x, a: FORWARD(w, x, [a[0].softmax(-1), a[1]]))
forward("one_hot_selects_expert", "the next expert", lambda w, x, a: FORWARD(w, x, [a[0].roll(1, -1), a[1]]))
forward("dtypes_agree", "in bfloat16", lambda w, x, a: FORWARD(w, x, a).bfloat16().to(x.dtype))
forward("dtypes_agree", "upcast", lambda w, x, a: FORWARD(w, x, a).double())
forward("autocast_agrees", "wrong", lambda w, x, a: FORWARD(w, x, a) * (-1 if torch.is_autocast_enabled("cpu") else 1))
forward("vmap_agrees", "reads values", lambda w, x, a: FORWARD(w, x, a) if x.sum().item() < 1e9 else x)
forward("vmap_agrees", "sees the batch", lambda w, x, a: FORWARD(w, x, a) * x.ndim)
forward("jacobians_agree", "detached", lambda w, x, a: FORWARD(w, x.detach(), a) + 0 * x.sum())
forward("jacobians_agree", "reads values", lambda w, x, a: FORWARD(w, x, a) * x.detach().numpy().size)
forward("first_derivatives", "detached", lambda w, x, a: FORWARD(w, x.detach(), a) + 0 * x.sum())
forward("second_derivatives", "lost", lambda w, x, a: FORWARD(w, Identity.apply(x), a))
forward("compiles_whole", "breaks the graph", graph_break)
forward("compiles_whole", "wrong", lambda w, x, a: FORWARD(w, x, a) * (1.1 if torch.compiler.is_compiling() else 1))
forward("compiles_few_times", "special sizes", lambda w, x, a: FORWARD(w, x, a) * (2 if x.shape[0] > 5 else 3))
forward("exports_dynamic_batch", "special sizes", lambda w, x, a: FORWARD(w, x, a) * (2 if x.shape[0] > 5 else 3))
forward(
    "exports_dynamic_batch", "wrong", lambda w, x, a: FORWARD(w, x, a) * (2 if torch.compiler.is_exporting() else 1)
)


@breaks("gradients_equal_dense", "of parameters")
def parameters_detached(monkeypatch: pytest.MonkeyPatch) -> None:
    def operands(weight: Any) -> tuple[torch.Tensor, ...]:
        return tuple(getattr(weight, node.parameter).detach() for node in weight.network.nodes)

    monkeypatch.setattr("factorized_moe.storage.NetworkTensor.operands", property(operands))


@breaks("dense_equals_nodes", "experts reversed")
def dense_reversed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = FactorizedExpertTensor.to_dense
    monkeypatch.setattr(FactorizedExpertTensor, "to_dense", lambda w: original(w).flip(0))


@breaks("dense_equals_nodes", "modes in another order")
def dense_transposed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = FactorizedExpertTensor.to_dense
    monkeypatch.setattr(FactorizedExpertTensor, "to_dense", lambda w: original(w).transpose(0, 1))


class WrongToTensorly(CP):
    def to_tensorly(self, tensors: Any) -> Any:
        return super().to_tensorly({**tensors, "input": -tensors["input"]})


class CopyingToTensorly(CP):
    def to_tensorly(self, tensors: Any) -> Any:
        return super().to_tensorly({name: tensor.detach().clone() for name, tensor in tensors.items()})


class WrongFromTensorly(CP):
    def from_tensorly(self, value: Any) -> Any:
        tensors = super().from_tensorly(value)
        return {**tensors, "input": 2.0 * tensors["input"]}


breaks("dense_equals_tensorly", "wrong sign")(lambda _: WrongToTensorly())
breaks("tensorly_round_trip", "copies")(lambda _: CopyingToTensorly())
breaks("tensorly_round_trip", "another tensor")(lambda _: WrongFromTensorly())


@breaks("one_hot_selects_expert", "the first expert")
def always_first_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    original = FactorizedExpertTensor.expert
    monkeypatch.setattr(FactorizedExpertTensor, "expert", lambda w, *indices: original(w, *[0 for _ in indices]))


@breaks("expert_slices_dense", "negative numbers")
def negative_from_the_front(monkeypatch: pytest.MonkeyPatch) -> None:
    original = FactorizedExpertTensor.expert

    def expert(w: FactorizedExpertTensor, *indices: int | None) -> torch.Tensor:
        return original(w, *(None if n is None else max(n, 0) for n in indices))

    monkeypatch.setattr(FactorizedExpertTensor, "expert", expert)


@breaks("expert_slices_dense", "partial slices")
def modes_left_out_are_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = FactorizedExpertTensor.expert

    def expert(w: FactorizedExpertTensor, *indices: int | None) -> torch.Tensor:
        return original(w, *indices, *[0] * (len(w.expert_dims) - len(indices)))

    monkeypatch.setattr(FactorizedExpertTensor, "expert", expert)


@breaks("expert_never_builds_dense", "builds it")
def expert_through_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FactorizedExpertTensor, "expert", lambda w, *indices: w.to_dense()[indices])


@breaks("expert_never_builds_dense", "plans it")
def expert_plan_with_all_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    original = value_laws.dense_request
    monkeypatch.setattr(value_laws, "dense_request", lambda network, fixed: original(network))


@breaks("node_order_is_free", "planner ignores it")
def plan_of_sorted_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    original = value_laws.make_plan

    def plan(network: Any, request: Any) -> Any:
        terms = tuple(tuple(Node(n.name, tuple(sorted(n.labels))) for n in term) for term in network.terms)
        return original(replace(network, terms=terms), request)

    monkeypatch.setattr(value_laws, "make_plan", plan)


class Forgetful(CP):
    """Gives another network at every call."""

    calls = 0

    def network(self, expert_dims: Any, in_features: int, out_features: int, rank: Any) -> Any:
        self.calls += 1
        network = super().network(expert_dims, in_features, out_features, rank)
        nodes = tuple(replace(node, name=f"{node.name}_{self.calls}") for node in network.nodes)
        return replace(network, terms=(nodes,))


class Larger(CP):
    """Describes one more output than it is asked for."""

    def network(self, expert_dims: Any, in_features: int, out_features: int, rank: Any) -> Any:
        return super().network(expert_dims, in_features, out_features + 1, rank)


breaks("description_is_a_value", "differs at each call")(lambda _: Forgetful())
breaks("description_is_a_value", "of another shape")(lambda _: Larger())


@breaks("parameter_count", "wrong")
def one_parameter_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    original = FactorizedExpertTensor.num_parameters.fget
    monkeypatch.setattr(FactorizedExpertTensor, "num_parameters", property(lambda w: original(w) + 1))


@breaks("parameter_count", "hidden parameter")
def hidden_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    original = FactorizedExpertTensor.state_dict
    monkeypatch.setattr(
        FactorizedExpertTensor, "state_dict", lambda w: {**original(w), "weight.hidden": torch.zeros(1)}
    )


def wrong_step(**changes: int) -> Patch:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        original = FactorizedExpertTensor.plan

        def plan(w: FactorizedExpertTensor, batch_size: int = 64) -> Any:
            found = original(w, batch_size)
            first = found.steps[0]
            wrong = replace(first, **{name: getattr(first, name) + more for name, more in changes.items()})
            return replace(found, steps=(wrong, *found.steps[1:]))

        monkeypatch.setattr(FactorizedExpertTensor, "plan", plan)

    return patch


breaks("plan_costs_are_exact", "FLOPs")(wrong_step(flops=1))
breaks("plan_costs_are_exact", "elements")(wrong_step(elements=-1))
breaks("plan_costs_are_exact", "labels")(wrong_step(labels=("expert_0",)))


@breaks("plan_costs_are_exact", "largest")
def wrong_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = type(FactorizedExpertTensor((), 2, 2, rank=1).plan())
    monkeypatch.setattr(plan, "largest_intermediate", property(lambda _: 1))


def in_written_order(network: Any, request: Any, batch_size: int = 64) -> Any:
    """The first two operands, then the next two, and so on: few networks are cheapest so."""
    count = max(map(len, network.terms)) + len(request.vectors)
    return plan_along(network, request, [(0, 1)] * (count - 1), batch_size)


@breaks("plans_are_cheapest", "for a batch size")
def wasteful_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_laws, "make_plan", in_written_order)


@breaks("plans_are_cheapest", "of the layer")
def wasteful_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FactorizedExpertTensor, "plan", lambda w, size: in_written_order(w.network, w._request, size))


def wrong_bound(more: int) -> Patch:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        original = FactorizedExpertTensor.expert_rank_bound.fget
        monkeypatch.setattr(FactorizedExpertTensor, "expert_rank_bound", property(lambda w: original(w) + more))

    return patch


breaks("rank_bound_holds", "too low")(wrong_bound(-1))
breaks("rank_bound_is_met", "too high")(wrong_bound(1))


class Spendthrift(CP):
    def useful_rank(self, rank: Any, shape: Any) -> Any:
        return rank + 1

    def resolve_rank(self, rank: Any, shape: Any) -> Any:
        return super().resolve_rank(rank, shape) + (0 if isinstance(rank, int) else 1)


class AnyBudget(CP):
    def resolve_rank(self, rank: Any, shape: Any) -> Any:
        return 1


breaks("budget_is_kept", "spends more")(lambda _: Spendthrift())
breaks("budget_is_kept", "takes any")(lambda _: AnyBudget())


def normal(mean: float, std: float) -> type[CP]:
    def fill(network: Any, tensors: Any) -> None:
        for tensor in tensors.values():
            tensor.normal_(mean, std)

    return type("Normal", (CP,), {"initialisations": MappingProxyType({"variance_preserving": fill})})


breaks("initial_variance", "too small")(lambda _: normal(0.0, 0.1)())
breaks("initial_variance", "shifted")(lambda _: normal(0.5, 0.1)())


def filled(fill: Any) -> type[CP]:
    """CP whose every initialisation also does this."""

    def after(network: Any, tensors: Any) -> None:
        balanced(network, tensors)
        fill(network, tensors)

    return type("Filled", (CP,), {"initialisations": MappingProxyType({"balanced": after})})


def equal_rows(_: Any, tensors: Any) -> None:
    tensors["expert_0"].copy_(tensors["expert_0"][:1].expand_as(tensors["expert_0"]).clone())


breaks("balanced_variance", "too small")(lambda _: filled(lambda _, tensors: tensors["input"].mul_(0.5))())
breaks("balanced_variance", "no noise")(lambda _: filled(equal_rows)())
breaks("every_mode_learns", "equal experts")(lambda _: filled(equal_rows)())


@breaks("every_mode_learns", "a gate that does not learn")
def gate_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ExpertGate.forward
    monkeypatch.setattr(ExpertGate, "forward", lambda gate, x: tuple(a.detach() for a in original(gate, x)))


@breaks("sharded_equals_whole", "summands not added")
def no_reduction(monkeypatch: pytest.MonkeyPatch) -> None:
    original = moves._all_reduce
    monkeypatch.setattr(moves, "_all_reduce", lambda tensor, group: original(tensor, group) / group.ranks)


@breaks("sharded_equals_whole", "a collective too many")
def another_collective(monkeypatch: pytest.MonkeyPatch) -> None:
    original = moves._all_reduce
    monkeypatch.setattr(moves, "_all_reduce", lambda tensor, group: original(original(tensor, group) / 2, group))


@breaks("fit_recovers", "wrong")
def random_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    original = factorized_moe.tensor.fit

    def fit(*arguments: Any, **options: Any) -> Any:
        fitted = original(*arguments, **options)
        return replace(fitted, tensors={name: torch.ones_like(tensor) for name, tensor in fitted.tensors.items()})

    monkeypatch.setattr(factorized_moe.tensor, "fit", fit)


@breaks("fit_recovers", "error told wrong")
def wrong_relative_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FactorizedExpertTensor, "relative_error", lambda w, dense: 0.5)


@breaks("state_dict_round_trip", "numbered names")
def numbered_names(monkeypatch: pytest.MonkeyPatch) -> None:
    original = FactorizedExpertTensor.state_dict
    monkeypatch.setattr(
        FactorizedExpertTensor,
        "state_dict",
        lambda w: {f"weight.factors.{k}": tensor for k, tensor in enumerate(original(w).values())},
    )


@breaks("state_dict_round_trip", "not loaded")
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FactorizedExpertTensor, "load_state_dict", lambda w, state: None)


@breaks("pickle_round_trip", "loses values")
def values_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def restore(w: FactorizedExpertTensor, state: dict[str, Any]) -> None:
        torch.nn.Module.__setstate__(w, state)
        for parameter in w.parameters():
            parameter.data.zero_()

    monkeypatch.setattr(FactorizedExpertTensor, "__setstate__", restore)


@breaks("deepcopy_is_independent", "shared")
def copy_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FactorizedExpertTensor, "__deepcopy__", lambda w, memo: w, raising=False)


@breaks("meta_device_is_filled_later", "allocates")
def device_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    original = FactorizedExpertTensor.__init__

    def build(w: FactorizedExpertTensor, *arguments: Any, device: Any = None, **options: Any) -> None:
        original(w, *arguments, **options)

    monkeypatch.setattr(FactorizedExpertTensor, "__init__", build)


@breaks("meta_device_is_filled_later", "other values")
def another_start(monkeypatch: pytest.MonkeyPatch) -> None:
    original = FactorizedExpertTensor.to_empty

    def to_empty(w: FactorizedExpertTensor, device: str) -> None:
        original(w, device=device)
        w._init = lambda network, tensors: [tensor.zero_() for tensor in tensors.values()]

    monkeypatch.setattr(FactorizedExpertTensor, "to_empty", to_empty)


def test_every_law_is_broken_by_something() -> None:
    assert {law for law, _ in BREAKS} == set(LAWS)


@pytest.mark.parametrize(("law", "case"), BREAKS, ids=lambda value: value.replace(" ", "_"))
def test_law_bites(law: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    structure = EVEN if law == "node_order_is_free" else STRUCTURE
    if law == "every_mode_learns":
        structure = replace(structure, expert_dims=(3, 3), in_features=12, out_features=6, rank=3)
    if law == "balanced_variance":
        structure = replace(structure, expert_dims=(8,), in_features=20, out_features=15, rank=4)
    if law in ("first_derivatives", "second_derivatives"):
        structure = replace(structure, batch_shape=(2,))
    LAWS[law].check(CP(), structure)
    broken = BREAKS[law, case](monkeypatch)
    with pytest.raises(AssertionError):
        LAWS[law].check(broken or CP(), structure)
