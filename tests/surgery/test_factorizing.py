"""Sparse experts in factorised tensors: the block's own function at full rank, and the reported error below it."""

import copy
import warnings
from collections.abc import Callable

import pytest
import tensorly
import tensorly.decomposition
import torch
from torch import Tensor, nn
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from factorized_moe import FactorizedExpertTensor
from factorized_moe.surgery.factorizing import FactorizedExperts, factorize_experts

COMMON = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "vocab_size": 50,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
QWEN = {**COMMON, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 3}
FULL = {"rank": (4, 16, 48), "down_rank": (4, 24, 16)}
HALF = {"rank": (4, 10, 20), "down_rank": (4, 12, 10)}


def mixtral(**options: object) -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**{**COMMON, "num_local_experts": 4, **options}))


def qwen2() -> PreTrainedModel:
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**QWEN, shared_expert_intermediate_size=20))


def qwen3() -> PreTrainedModel:
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**QWEN, head_dim=8))


MODELS = {"mixtral": mixtral, "qwen2_moe": qwen2, "qwen3_moe": qwen3}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    made: PreTrainedModel = MODELS[request.param]().eval()
    for parameter in made.parameters():  # the usual start, 0.02, makes experts that hardly matter
        parameter.data.mul_(10.0)
    return made


def tokens() -> Tensor:
    return torch.randint(50, (2, 7))


def routing(experts: int = 4, chosen: int = 2, hidden: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    scores = torch.rand(9, experts)
    weights, index = scores.topk(chosen)
    return torch.randn(9, hidden), index, weights / weights.sum(-1, keepdim=True)


def trained_experts(dtype: torch.dtype = torch.float32, **options: object) -> nn.Module:
    """Those of a Mixtral, called one expert after the other: transformers' other ways need float32 and all indices."""
    return mixtral(experts_implementation="eager", **options).model.layers[0].mlp.experts.to(dtype)


def relative(value: Tensor, exact: Tensor) -> float:
    return ((value - exact).norm() / exact.norm()).item()


# -- the block's own function


def test_at_full_rank_the_model_is_itself(model: PreTrainedModel) -> None:
    ids = tokens()
    exact = model(ids).logits
    reports = factorize_experts(model, "tucker", **FULL)
    assert list(reports) == [f"model.layers.{k}.mlp.experts" for k in range(2)]
    assert all(type(layer.mlp.experts) is FactorizedExperts for layer in model.model.layers)
    assert relative(model(ids).logits, exact) < 1e-4
    assert max(max(report.gate_up_errors + report.down_errors) for report in reports.values()) < 1e-6


def test_below_full_rank_the_outputs_differ_as_the_weights_do(model: PreTrainedModel) -> None:
    """The factorised experts compute what the original computes from the approximated weights, no more error."""
    ids, rebuilt = tokens(), copy.deepcopy(model)
    exact = model(ids).logits
    reports = factorize_experts(model, "tucker", **HALF)
    for layer, other in zip(model.model.layers, rebuilt.model.layers, strict=True):
        other.mlp.experts.gate_up_proj.data = layer.mlp.experts.gate_up.to_dense().transpose(1, 2).contiguous().data
        other.mlp.experts.down_proj.data = layer.mlp.experts.down.to_dense().transpose(1, 2).contiguous().data
    assert relative(model(ids).logits, rebuilt(ids).logits) < 1e-5
    assert relative(model(ids).logits, exact) > 0.01
    assert all(0.1 < report.gate_up_error < 1.0 and 0.1 < report.down_error < 1.0 for report in reports.values())


def test_mixing_the_weights_instead_would_be_another_function() -> None:
    """Why each pair of a token and an expert is a sample: the activation stands between the projections."""
    experts = trained_experts()
    nn.init.normal_(experts.gate_up_proj)
    nn.init.normal_(experts.down_proj)
    factorized = FactorizedExperts.from_experts(experts, **FULL)
    x, index, weights = routing()
    mixture = torch.zeros(9, 4).scatter(1, index, weights)
    gate, up = factorized.gate_up(x, [mixture]).chunk(2, dim=-1)
    mixed_inside = factorized.down(experts.act_fn(gate) * up, [mixture])
    exact = experts(x, index, weights)
    assert relative(factorized(x, index, weights), exact) < 1e-5
    assert relative(mixed_inside, exact) > 0.1


def test_an_index_past_the_last_expert_chooses_none() -> None:
    experts = trained_experts()
    factorized = FactorizedExperts.from_experts(experts, **FULL)
    x, index, weights = routing()
    index[2, 1] = index[5, 0] = 4
    index[7] = 4
    torch.testing.assert_close(factorized(x, index, weights), experts(x, index, weights))
    assert not factorized(x, index, weights)[7].any()


def test_gradients_reach_tokens_router_and_factors() -> None:
    experts = trained_experts()
    factorized = FactorizedExperts.from_experts(experts, **FULL)
    x, index, weights = routing()
    gradients = []
    for module in (experts, factorized):
        x_, weights_ = x.clone().requires_grad_(), weights.clone().requires_grad_()
        module(x_, index, weights_).square().sum().backward()
        gradients.append((x_.grad, weights_.grad))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-7)
    assert all(parameter.grad is not None for parameter in factorized.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_types(dtype: torch.dtype) -> None:
    """A router's weights stay float32 in a model of half precision."""
    experts = trained_experts(dtype)
    factorized = FactorizedExperts.from_experts(experts, **FULL)
    x, index, weights = routing()
    y = factorized(x.to(dtype), index, weights)
    assert y.dtype == dtype
    assert relative(y.double(), experts(x.to(dtype), index, weights.to(dtype)).double()) < 0.03


def test_no_tokens_and_one_expert() -> None:
    experts = trained_experts(num_local_experts=1, num_experts_per_tok=1)
    factorized = FactorizedExperts.from_experts(experts, rank=(1, 16, 48), down_rank=(1, 24, 16))
    x, index, weights = routing(experts=1, chosen=1)
    torch.testing.assert_close(factorized(x, index, weights), experts(x, index, weights))
    assert factorized(x[:0], index[:0], weights[:0]).shape == (0, 16)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_whole() -> None:
    factorized = FactorizedExperts.from_experts(trained_experts(), **HALF)
    arguments = routing()
    compiled = torch.compile(factorized, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), factorized(*arguments))


def test_trained_experts_are_left_alone_and_saved_ones_load() -> None:
    experts = trained_experts()
    before = copy.deepcopy(experts.state_dict())
    first, second = (FactorizedExperts.from_experts(experts, **HALF) for _ in range(2))
    assert all(torch.equal(experts.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.requires_grad for parameter in first.parameters())
    for parameter in second.parameters():
        nn.init.zeros_(parameter)
    second.load_state_dict(first.state_dict())
    arguments = routing()
    assert torch.equal(first(*arguments), second(*arguments))


def test_a_block_that_is_in_the_model_twice_is_replaced_twice() -> None:
    model = mixtral()
    model.model.layers[1] = model.model.layers[0]
    reports = factorize_experts(model, "tucker", **HALF)
    assert list(reports) == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    assert model.model.layers[0].mlp.experts is model.model.layers[1].mlp.experts


def test_only_the_named_experts_are_replaced() -> None:
    model = mixtral()
    reports = factorize_experts(model, "tucker", names=["model.layers.1.mlp.experts"], **HALF)
    assert list(reports) == ["model.layers.1.mlp.experts"]
    assert type(model.model.layers[0].mlp.experts) is MixtralExperts


# -- the report


def decaying_stack(experts: int = 4, hidden: int = 24, features: int = 32) -> MixtralExperts:
    """Experts with what trained ones have: something in common, a decaying spectrum, and noise."""
    module = trained_experts(hidden_size=hidden, intermediate_size=features, num_local_experts=experts)
    for parameter in (module.gate_up_proj, module.down_proj):
        n, rows, columns = parameter.shape
        decay = torch.arange(1.0, 13.0).rsqrt()
        left, right = torch.randn(rows, 12) * decay, torch.randn(12, columns)
        private = torch.randn(n, rows, 3) @ torch.randn(n, 3, columns)
        parameter.data = 0.05 * (left @ right + 0.5 * private + 0.2 * torch.randn(n, rows, columns))
    return module


RANKS = {"tucker": ((4, 10, 12), "partial_tucker"), "cp": (12, "parafac"), "tt": ((1, 4, 12, 1), "tensor_train")}


@pytest.mark.parametrize("decomposition", list(RANKS))
def test_stack_is_fitted_no_worse_than_by_tensorly(decomposition: str) -> None:
    """At the same ranks: the error that is reported is the one there is, and TensorLy's own call has no less."""
    experts = decaying_stack()
    rank, algorithm = RANKS[decomposition]
    factorized = FactorizedExperts.from_experts(experts, decomposition, rank)
    report = factorized.compare(experts)
    stacks = {
        "gate_up": (experts.gate_up_proj, report.gate_up_error, report.gate_up_errors),
        "down": (experts.down_proj, report.down_error, report.down_errors),
    }
    for name, (parameter, error, each) in stacks.items():
        stack = parameter.detach().transpose(1, 2).double()
        with tensorly.backend_context("pytorch", local_threadsafe=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorLy warns that a rank exceeds a mode
            theirs = relative(TENSORLY[algorithm](stack, rank), stack)
        dense = getattr(factorized, name).to_dense().double()
        assert error == pytest.approx(relative(dense, stack), rel=1e-6)
        assert each == pytest.approx([relative(a, b) for a, b in zip(dense, stack, strict=True)], rel=1e-6)
        assert 0.05 < error <= theirs * (1 + 1e-6), (name, error, theirs)


def _partial_tucker(stack: Tensor, rank: tuple[int, ...]) -> Tensor:
    """Over input and output alone; a full rank of the expert mode is the same."""
    factors, _ = tensorly.decomposition.partial_tucker(stack, rank=rank[1:], modes=[1, 2])
    return tensorly.tenalg.multi_mode_dot(factors[0], factors[1], modes=[1, 2])


TENSORLY: dict[str, Callable[..., Tensor]] = {
    "partial_tucker": _partial_tucker,
    "parafac": lambda stack, rank: tensorly.cp_to_tensor(
        tensorly.decomposition.parafac(stack, rank=rank, random_state=0)
    ),
    "tensor_train": lambda stack, rank: tensorly.tt_to_tensor(
        tensorly.decomposition.tensor_train(stack, rank=list(rank))
    ),
}


def test_report_counts_and_reads_well() -> None:
    experts = trained_experts()
    report = FactorizedExperts.from_experts(experts, "dense", 1).compare(experts)
    assert report.parameters == report.dense_parameters == 4 * 16 * 24 * 3
    assert report.share == 1.0
    assert str(report) == (
        "4,608 of 4,608 parameters (100%); errors: gate_up 0 (experts 0 to 0), down 0 (experts 0 to 0)"
    )


# -- what is refused


def test_model_without_experts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Linear has no module with fused experts .*use upcycle"):
        factorize_experts(nn.Linear(4, 4), "cp", 2)
    with pytest.raises(TypeError, match="Linear has no fused experts: expected parameters gate_up_proj"):
        FactorizedExperts.from_experts(nn.Linear(4, 4), "cp", 2)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'layers\.9' is not the name of experts in the model; it has \['model\.lay"):
        factorize_experts(mixtral(), "cp", 2, names=["layers.9"])


def test_failed_fit_leaves_the_model_as_it_was() -> None:
    model = mixtral()
    model.model.layers[1].mlp.experts.down_proj.data[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="MixtralExperts: the weights have a NaN or an infinite entry"):
        factorize_experts(model, "tucker", **HALF)
    assert all(type(layer.mlp.experts) is MixtralExperts for layer in model.model.layers)


class Clamped(MixtralExperts):
    """Gates are cut off, as some models do; at ordinary sizes nothing shows."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        pairs = hidden_states.repeat_interleave(top_k_index.shape[1], dim=0)
        first = torch.einsum("th,tfh->tf", pairs, self.gate_up_proj[top_k_index.flatten()])
        gate, up = first.chunk(2, dim=-1)
        hidden = self.act_fn(gate.clamp(max=7.0)) * up
        y = torch.einsum("tf,thf->th", hidden, self.down_proj[top_k_index.flatten()])
        return (y.reshape(*top_k_index.shape, -1) * top_k_weights.unsqueeze(-1)).sum(1)


class Interleaved(MixtralExperts):
    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        plain = copy.copy(self)
        plain.__class__ = MixtralExperts
        plain._parameters = {**self._parameters}
        halves = self.gate_up_proj[:, 0::2], self.gate_up_proj[:, 1::2]
        plain._parameters["gate_up_proj"] = nn.Parameter(torch.cat(halves, dim=1))
        return MixtralExperts.forward(plain, hidden_states, top_k_index, top_k_weights)


@pytest.mark.parametrize("kind", [Clamped, Interleaved], ids=["clamped", "interleaved"])
def test_another_formula_is_refused(kind: type[MixtralExperts]) -> None:
    experts = kind(mixtral().config)
    nn.init.normal_(experts.gate_up_proj)
    nn.init.normal_(experts.down_proj)
    with pytest.raises(ValueError, match=rf"{kind.__name__} does not compute down\(act_fn\(gate\) \* up\)"):
        FactorizedExperts.from_experts(experts, "tucker", **HALF)


def test_shapes_of_another_layout_are_refused() -> None:
    experts = trained_experts()
    experts.down_proj = nn.Parameter(experts.down_proj.detach().transpose(1, 2).contiguous())
    with pytest.raises(ValueError, match=r"gate_up_proj \(4, 48, 16\) and down_proj \(4, 24, 16\) are not of shapes"):
        FactorizedExperts.from_experts(experts, "tucker", **HALF)


def tensor(*expert_dims: int, in_features: int = 16, out_features: int = 48, bias: bool = False) -> nn.Module:
    return FactorizedExpertTensor(expert_dims, in_features, out_features, "cp", 2, bias=bias)


def test_tensors_that_do_not_fit_are_refused() -> None:
    down = tensor(4, in_features=24, out_features=16)
    silu = nn.functional.silu
    with pytest.raises(TypeError, match="gate_up is a FactorizedExpertTensor, got Linear"):
        FactorizedExperts(nn.Linear(2, 2), down, silu)
    with pytest.raises(ValueError, match=r"gate_up has expert modes \(2, 2\); expected one, which the"):
        FactorizedExperts(tensor(2, 2), down, silu)
    with pytest.raises(ValueError, match=r"limit is a number above 0 or None, got 0\.0"):
        FactorizedExperts(tensor(4), down, silu, limit=0.0)
    with pytest.raises(ValueError, match="shift is a finite number, got None"):
        FactorizedExperts(tensor(4), down, silu, shift=None)
    with pytest.raises(ValueError, match=r"gate_up is of shape \(4, 16, 46\), but down .* asks for \(4, 16, 48\)"):
        FactorizedExperts(tensor(4, out_features=46), down, silu)
    with pytest.raises(TypeError, match="activation is a function of a tensor, got 'silu'"):
        FactorizedExperts(tensor(4), down, "silu")


def test_routing_of_another_shape_is_refused() -> None:
    factorized = FactorizedExperts(tensor(4), tensor(4, in_features=24, out_features=16), nn.functional.silu)
    x, index, weights = routing()
    with pytest.raises(ValueError, match=r"hidden_states \(T, H\), .* got \(1, 9, 16\), \(9, 2\) and \(9, 2\)"):
        factorized(x[None], index, weights)
    with pytest.raises(ValueError, match=r"got \(9, 16\), \(9, 1\) and \(9, 2\)"):
        factorized(x, index[:, :1], weights)
