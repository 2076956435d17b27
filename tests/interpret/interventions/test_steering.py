"""A causal language model generates under an intervention on one of its layers, and as before after it."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from factorized_moe import MuMoEBlock
from factorized_moe.interpret import Add, Force, counterfactuals, intervene


def block(features: int) -> MuMoEBlock:
    made = MuMoEBlock(features, 24, features, expert_dims=[6], rank=8, gate_norm="layer")
    nn.init.normal_(made.gate.get_parameter("projection.weight"))
    for parameter in made.second.parameters():  # loud enough to change which token is the likeliest
        nn.init.normal_(parameter)
    return made


def llama() -> tuple[PreTrainedModel, str]:
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    model = LlamaForCausalLM(config)
    model.model.layers[1].mlp = block(16)
    return model, "model.layers.1.mlp"


def gpt2() -> tuple[PreTrainedModel, str]:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2, pad_token_id=0))
    model.transformer.h[0].mlp = block(16)
    return model, "transformer.h.0.mlp"


@pytest.fixture(params=[llama, gpt2], ids=["llama", "gpt2"])
def language_model(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, str]:
    torch.manual_seed(0)
    model, name = request.param()
    return model.eval(), name


PROMPT = torch.tensor([[3, 14, 15, 9], [2, 6, 5, 35]])


def generate(model: PreTrainedModel) -> torch.Tensor:
    tokens: torch.Tensor = model.generate(
        PROMPT, attention_mask=torch.ones_like(PROMPT), do_sample=False, max_new_tokens=8, eos_token_id=None
    )
    return tokens


def test_generation_is_steered_by_one_expert(language_model: tuple[PreTrainedModel, str]) -> None:
    model, name = language_model
    before = generate(model)
    steered = {}
    for expert in range(2):
        with intervene(model, Force(expert, 20.0, layer=name)):
            steered[expert] = generate(model)
    with intervene(model, Add(1, 0.0, layer=name)):
        assert torch.equal(generate(model), before)
    assert not torch.equal(steered[0], before)
    assert not torch.equal(steered[0], steered[1])
    assert torch.equal(generate(model), before)


def test_every_step_of_a_generation_is_steered(language_model: tuple[PreTrainedModel, str]) -> None:
    model, name = language_model
    seen: list[torch.Tensor] = []
    with intervene(model, Force(2, 3.0, layer=name)):
        layer = model.get_submodule(name)
        handle = layer.gate.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
        generate(model)
        handle.remove()
    assert [tuple(a.shape[:2]) for a in seen] == [(2, 4), *[(2, 1)] * 7]  # the prompt, then token by token
    assert all((a[..., 2] == 3.0).all() for a in seen)


def test_counterfactuals_of_a_language_model(language_model: tuple[PreTrainedModel, str]) -> None:
    model, name = language_model
    found = counterfactuals(model, [PROMPT], name, forward=lambda ids: model(ids).logits)
    assert found.num_predictions == PROMPT.numel()
    assert found.changed.sum() > 0
