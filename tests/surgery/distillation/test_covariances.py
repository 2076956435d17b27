"""Second moments at the experts of sparse mixtures, collected batch by batch, and what fits gain by them."""

import copy
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM

from factorized_moe.surgery import FactorizedExperts, capture, collect_covariances, factorize_experts, output_error

NAMES = ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]


def mixtral() -> MixtralForCausalLM:
    """Its tokens, and what its head reads, lie near few dimensions, as they do in trained models."""
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        vocab_size=50,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
    )
    model = MixtralForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.randn(50, 3) @ torch.randn(3, 16) + 0.1 * torch.randn(50, 16))
        model.lm_head.weight.copy_(torch.randn(50, 2) @ torch.randn(2, 16) + 0.02 * torch.randn(50, 16))
        for layer in model.model.layers:
            for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                weight.copy_(torch.randn(weight.shape) * 0.3)
    return model


def batches(count: int = 4, seed: int = 1) -> list[dict[str, Tensor]]:
    ids = torch.randint(50, (count, 3, 8), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": batch, "labels": batch} for batch in ids]


def loss_of(output: Any) -> Tensor:
    return output.loss


def test_moments_are_those_of_all_pairs_at_once() -> None:
    """Against sums over single pairs of a token and an expert, and autograd's gradients of each pair's own values."""
    model, data = mixtral(), batches(2)
    found = collect_covariances(model, data, loss_of)
    assert list(found.inputs) == NAMES
    assert found.outputs is not None
    for name in NAMES:
        experts = model.get_submodule(name)
        inputs: dict[str, Any] = {"gate_up": 0.0, "down": 0.0}
        outputs: dict[str, Any] = {"gate_up": 0.0, "down": 0.0}
        pairs = 0
        for batch in data:
            kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

            def replay(module: nn.Module, arguments: Any, output: Tensor, kept: Any = kept) -> Tensor:
                tokens, index, weights = arguments
                mixed = torch.zeros_like(output)
                for token in range(len(tokens)):
                    for place in range(index.shape[1]):
                        number = int(index[token, place])
                        first = tokens[token] @ module.gate_up_proj[number].T
                        first.retain_grad()
                        gate, up = first.chunk(2)
                        hidden = nn.functional.silu(gate) * up
                        second = hidden @ module.down_proj[number].T
                        second.retain_grad()
                        kept.append((tokens[token], first, hidden, second, weights[token, place]))
                        mixed[token] = mixed[token] + second * weights[token, place]
                torch.testing.assert_close(mixed, output)
                return mixed

            handle = experts.register_forward_hook(replay)
            model(**batch).loss.backward()
            handle.remove()
            for token, first, hidden, second, weight in kept:
                pairs += 1
                inputs["gate_up"] += (weight**2 * torch.outer(token, token)).detach().double()
                inputs["down"] += (weight**2 * torch.outer(hidden, hidden)).detach().double()
                # retained gradients hold the router's weight, which the inputs' moments count already
                outputs["gate_up"] += torch.outer(first.grad, first.grad).double() / float(weight.detach()) ** 2
                outputs["down"] += torch.outer(second.grad, second.grad).double() / float(weight.detach()) ** 2
        for key in ("gate_up", "down"):
            torch.testing.assert_close(found.inputs[name][key], inputs[key] / pairs, rtol=1e-4, atol=1e-7)
            scale = float(found.outputs[name][key].abs().max())
            torch.testing.assert_close(found.outputs[name][key], outputs[key] / pairs, rtol=1e-3, atol=1e-4 * scale)


def test_the_model_is_left_as_it_was_and_gradients_too() -> None:
    model = mixtral().train()
    model.model.layers[0].eval()
    model.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    found = collect_covariances(model, batches(1), loss_of, names=NAMES[1:])
    assert list(found.inputs) == NAMES[1:]
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert collect_covariances(model, batches(1)).outputs is None


def test_no_batch_is_kept() -> None:
    """While a batch is made, what the experts saw of earlier ones is gone."""
    model = mixtral()
    seen: list[weakref.ref[Tensor]] = []
    model.get_submodule(NAMES[0]).register_forward_hook(
        lambda module, arguments, output: seen.extend(weakref.ref(value) for value in (*arguments, output))
    )
    alive: list[int] = []

    def stream() -> Iterator[dict[str, Tensor]]:
        seen.clear()  # the experts are called beforehand, to see what they compute
        for batch in batches(4):
            alive.append(sum(reference() is not None for reference in seen))
            yield batch

    collect_covariances(model, stream(), lambda output: output.loss)
    assert len(seen) == 16
    assert max(alive) <= 4  # the last batch's
    assert alive[-1] <= 4


def test_experts_with_biases_and_limits_have_moments() -> None:
    """gpt-oss: the moments of what stands between the projections, beside a loop over tokens."""
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "vocab_size": 50, "head_dim": 8}
    model = GptOssForCausalLM(GptOssConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, num_local_experts=4))
    name = "model.layers.0.mlp.experts"
    experts = model.get_submodule(name)
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    ids = torch.randint(50, (2, 8))
    handle = experts.register_forward_hook(
        lambda module, given, keywords, output: calls.append((*given, *keywords.values())), with_kwargs=True
    )
    model(ids)
    handle.remove()
    ((tokens, index, weights),) = calls
    expected = torch.zeros(13, 13, dtype=torch.float64)
    inputs = torch.zeros(17, 17, dtype=torch.float64)
    for token, chosen, shares in zip(tokens.flatten(0, -2), index, weights, strict=True):
        for expert, share in zip(chosen, shares, strict=True):
            first = token @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
            gate, up = first[::2].clamp(max=experts.limit), first[1::2].clamp(-experts.limit, experts.limit)
            hidden = (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
            for moment, given in ((expected, hidden), (inputs, token)):
                row = share * torch.cat([given, torch.ones(1)])
                moment += torch.outer(row, row).detach().double() / index.numel()
    found = collect_covariances(model, [ids], lambda output: output.logits.sum())
    torch.testing.assert_close(found.inputs[name]["down"], expected, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(found.inputs[name]["gate_up"], inputs, rtol=1e-4, atol=1e-8)
    assert found.outputs[name]["gate_up"].shape == (24, 24)
    factorize_experts(model, rank=0.5, input_covariance=found.inputs, output_covariance=found.outputs)


def test_the_error_of_outputs_falls() -> None:
    """On tokens that the moments were not collected on: by the inputs' moments, and what the loss feels by both."""
    original, held_out = mixtral(), batches(4, seed=2)
    found = collect_covariances(original, batches(12), loss_of)
    assert found.outputs is not None
    options = {
        "plain": {},
        "inputs": {"input_covariance": found.inputs},
        "both": {"input_covariance": found.inputs, "output_covariance": found.outputs},
    }
    errors, felt = {}, {}
    for key, moments in options.items():
        model = copy.deepcopy(original)
        reports = factorize_experts(model, "tucker", rank=0.3, **moments)
        assert all(report.share <= 0.3 for report in reports.values())
        errors[key] = [output_error(model.get_submodule(n), capture(original, n, held_out)) for n in NAMES]
        felt[key] = [felt_by_the_loss(original, model, n, held_out) for n in NAMES]
    for number in range(len(NAMES)):
        assert errors["inputs"][number] < 0.9 * errors["plain"][number]
        assert felt["both"][number] < felt["plain"][number]
    assert sum(felt["both"]) < sum(felt["inputs"])


def felt_by_the_loss(original: nn.Module, changed: nn.Module, name: str, data: list[dict[str, Tensor]]) -> float:
    """The root mean square of ``g^T e`` over tokens, ``g`` the gradient of the loss and ``e`` the output's error."""
    total = 0.0
    for batch in data:
        kept = {}

        def keep(module: nn.Module, arguments: Any, output: Tensor, kept: Any = kept) -> None:
            output.retain_grad()
            kept["call"] = arguments, output

        handle = original.get_submodule(name).register_forward_hook(keep)
        original(**batch).loss.backward()
        handle.remove()
        arguments, output = kept["call"]
        with torch.no_grad():
            error = changed.get_submodule(name)(*arguments) - output
        total += float((error * output.grad).sum(-1).square().sum())
    return total**0.5


def test_moments_of_single_projections() -> None:
    experts = mixtral().get_submodule(NAMES[0])
    covariance = torch.diag(torch.linspace(0.01, 4.0, 16))
    ours = FactorizedExperts.from_experts(experts, "tucker", 0.3, input_covariance=covariance)
    same = FactorizedExperts.from_experts(experts, "tucker", 0.3, input_covariance={"gate_up": covariance})
    plain = FactorizedExperts.from_experts(experts, "tucker", 0.3)
    assert torch.equal(ours.gate_up.to_dense(), same.gate_up.to_dense())
    assert torch.equal(ours.down.to_dense(), plain.down.to_dense())
    assert not torch.allclose(ours.gate_up.to_dense(), plain.gate_up.to_dense())
    weighed = FactorizedExperts.from_experts(experts, "tucker", 0.3, output_covariance=covariance)
    assert torch.equal(weighed.gate_up.to_dense(), plain.gate_up.to_dense())
    assert not torch.allclose(weighed.down.to_dense(), plain.down.to_dense())


def refused(**options: Any) -> Any:
    return lambda: factorize_experts(mixtral(), "tucker", 0.3, **options)


REFUSED = {
    "other modules": (
        refused(input_covariance={NAMES[0]: torch.eye(16)}),
        ValueError,
        r"is for the modules \['model.layers.0.mlp.experts'\], replaced are .*layers.1.* give the same",
    ),
    "other projections": (
        refused(names=NAMES[:1], output_covariance={NAMES[0]: {"up": torch.eye(16)}}),
        ValueError,
        r"output_covariance is of 'gate_up' and 'down', got \['up'\]",
    ),
    "no tensor": (
        refused(names=NAMES[:1], input_covariance={NAMES[0]: [1.0]}),
        TypeError,
        "input_covariance is a tensor or a mapping of 'gate_up' and 'down' to tensors",
    ),
    "another size": (
        refused(names=NAMES[:1], input_covariance={NAMES[0]: torch.eye(24)}),
        ValueError,
        r"input_covariance has shape \(24, 24\), expected \(16, 16\)",
    ),
    "no experts": (
        lambda: collect_covariances(nn.Linear(2, 2), []),
        ValueError,
        "Linear has no module with fused experts",
    ),
    "no batches": (
        lambda: collect_covariances(mixtral(), []),
        ValueError,
        "the experts 'model.layers.0.mlp.experts' got no token; give batches that reach them",
    ),
    "no scalar": (
        lambda: collect_covariances(mixtral(), batches(1), lambda output: output.logits),
        TypeError,
        r"loss gives \(3, 8, 50\); expected a scalar tensor that depends on the experts, such as output.loss",
    ),
    "a loss of its own": (
        lambda: collect_covariances(mixtral(), batches(1), lambda output: torch.ones((), requires_grad=True) * 2),
        ValueError,
        "the loss does not depend on some of the experts; leave them out of names",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case: str) -> None:
    act, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        act()
