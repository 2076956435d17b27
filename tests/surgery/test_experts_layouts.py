"""The layouts of sparse experts: each is the module's own function, and no other is taken for it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.aria.modeling_aria import AriaExperts
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Experts
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.hy_v4.modeling_hy_v4 import HYV4Experts
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLExperts

from factorized_moe.surgery import FactorizedExperts, factorize_experts, load, save
from factorized_moe.surgery.replacing.experts_layouts import EXPERTS, read_experts

SIZES = {"hidden_size": 16, "intermediate_size": 24, "experts_implementation": "eager"}


def config(name: str, **sizes: object) -> transformers.PreTrainedConfig:
    made = getattr(transformers, name)()
    for key, value in {**SIZES, **sizes}.items():
        setattr(made, key, value)
    return made


MAKE: dict[str, Callable[[], nn.Module]] = {
    "limited": lambda: DeepseekV4Experts(config("DeepseekV4Config", num_local_experts=4)),
    "limited_silu": lambda: HYV4Experts(config("HYV4Config", num_local_experts=4, moe_intermediate_size=24)),
    "gpt_oss": lambda: GptOssExperts(config("GptOssConfig", num_local_experts=4)),
    "minimax_m3": lambda: MiniMaxM3VLExperts(config("MiniMaxM3VLTextConfig", num_local_experts=4)),
    "llama4": lambda: Llama4TextExperts(config("Llama4TextConfig", num_local_experts=4)),
    "aria": lambda: AriaExperts(config("AriaTextConfig", moe_num_experts=4)),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    experts = MAKE[name]()
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.5)
    return experts


def arguments(name: str) -> tuple[Tensor, ...]:
    x = 5.0 * torch.randn(12, 16)  # limits are met
    if name == "llama4":
        return (x,)
    weights, index = torch.rand(12, 4).topk(2)
    return x, index, weights


def relative(value: Tensor, exact: Tensor) -> float:
    return ((value - exact).norm() / exact.norm()).item()


def test_every_layout_has_a_module_here() -> None:
    assert [layout.name for layout in EXPERTS if layout.name != "mixtral"] == list(MAKE)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("decomposition", ["dense", "tt"])
def test_the_block_s_own_function(name: str, decomposition: str) -> None:
    experts, given = made(name), arguments(name)
    bias = int(name == "gpt_oss")
    ranks = {"rank": (1, 4, 48, 1), "down_rank": (1, 4, 16, 1)} if decomposition == "tt" else {"rank": 1}
    factorized = FactorizedExperts.from_experts(experts, decomposition, **ranks)
    assert factorized.gate_up.bias == factorized.down.bias == bool(bias)
    assert relative(factorized(*given), experts(*given)) < 1e-5
    report = factorized.compare(experts)
    assert report.dense_parameters == 4 * ((16 + bias) * 48 + (24 + bias) * 16)
    assert max(report.gate_up_error, report.down_error) < 1e-5


@pytest.mark.parametrize("name", MAKE)
def test_limits_and_shifts_are_met(name: str) -> None:
    """Without its limit and its shift the same tensors give another function, so the test above says something."""
    experts, given = made(name), arguments(name)
    factorized = FactorizedExperts.from_experts(experts, "dense", 1)
    exact, plain = experts(*given), name in ("llama4", "aria")
    factorized.limit, factorized.shift = None, 0.0
    assert (relative(factorized(*given), exact) < 1e-5) == plain


@pytest.mark.parametrize("name", MAKE)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model, given = nn.ModuleDict({"experts": made(name)}), arguments(name)
    factorize_experts(model, "tt", rank=(1, 3, 8, 1))
    save(model, tmp_path)
    loaded = load(nn.ModuleDict({"experts": made(name)}), tmp_path)
    assert torch.equal(loaded["experts"](*given), model["experts"](*given))


@pytest.mark.parametrize("name", ["limited", "gpt_oss", "minimax_m3"])
def test_another_formula_of_the_same_parts_is_refused(name: str) -> None:
    experts = made(name)

    class Other(type(experts)):
        def _apply_gate(self, gate_up: Tensor) -> Tensor:
            return super()._apply_gate(gate_up) * 1.2

    experts.__class__ = Other
    with pytest.raises(ValueError, match=r"Other does not compute down\(act\(min\(gate, limit\)\) \* clamp\(up\)\)"):
        read_experts(experts)


def test_tokens_sorted_by_expert_divide_among_them() -> None:
    factorized = FactorizedExperts.from_experts(made("llama4"), "dense", 1)
    with pytest.raises(ValueError, match=r"tokens are sorted, as many for each of 4 experts; got .* \(10, 16\)"):
        factorized(torch.randn(10, 16))


def test_shapes_of_two_counts_of_experts_are_refused() -> None:
    experts = made("limited")
    experts.gate_up_proj = nn.Parameter(torch.randn(6, 48, 16))
    with pytest.raises(ValueError, match=r"gate_up_proj \(6, 48, 16\) and down_proj \(4, 16, 24\) are not of shapes"):
        read_experts(experts)


class Stack(nn.Module):
    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))


def test_true_reasons() -> None:
    plain = nn.ModuleDict({"mlp": Stack(up_proj=(4, 6, 5), down_proj=(4, 5, 6))})
    with pytest.raises(ValueError, match=r"its mlp \(Stack\) holds up_proj \(4, 6, 5\), .*: not gated, and only gated"):
        factorize_experts(plain, "dense", 1)
    other = nn.ModuleDict({"mlp": Stack(first=(4, 6, 5), second=(4, 5, 6))})
    with pytest.raises(ValueError, match=r"its mlp \(Stack\) holds first .*: of no layout that is known"):
        factorize_experts(other, "dense", 1)
    apart = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})
    with pytest.raises(ValueError, match=r"its experts \(ModuleList\) holds its experts as modules of their own \(Lin"):
        factorize_experts(apart, "dense", 1)


def test_what_cannot_be_saved_is_refused_before_experts_are_changed() -> None:
    model = nn.ModuleDict({"experts": made("aria")})
    del model["experts"].act_fn
    model["experts"].act_fn = lambda x: x.relu()
    with pytest.raises(ValueError, match=r"activation <function .* give yours a name with register_nonlinearity"):
        factorize_experts(model, "dense", 1)
    assert isinstance(model["experts"], AriaExperts)


def test_experts_of_zeros_are_what_they_are() -> None:
    """Nothing is nothing: an error of zero where zero is allowed is no other formula."""
    experts = made("aria")
    for parameter in experts.parameters():
        nn.init.zeros_(parameter)
    assert not read_experts(experts).down.any()
