"""Models of transformers with layers of experts: they start the same, train, and survive a save and a load."""

from pathlib import Path

import pytest
import torch
from torch import nn

from factorized_moe import GatedMuMoEBlock, MuMoE, MuMoEBlock
from factorized_moe.surgery import MuMoEConfig, load, replace, save

from .small_models import MODELS, run

FULL_RANK = MuMoEConfig(expert_dims=(4,), rank=24)
SURGERY = (MuMoE, MuMoEBlock, GatedMuMoEBlock)


@pytest.mark.parametrize("name", MODELS)
def test_replaced_trained_saved_and_loaded(name: str, tmp_path: Path) -> None:
    small = MODELS[name]
    model, example = small.make(), small.example()
    before = run(model, example)

    report = replace(model, small.target, FULL_RANK)
    assert tuple(one.path for one in report.replacements) == small.replaced
    assert (run(model, example) - before).abs().max() < 1e-5

    model.train()
    parameters = dict(model.named_parameters())
    ours = [f"{path}." for path, module in model.named_modules() if isinstance(module, SURGERY)]
    start = {path: parameter.detach().clone() for path, parameter in parameters.items()}
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    run(model, example).square().mean().backward()
    optimiser.step()
    for path, parameter in parameters.items():
        if path.startswith(tuple(ours)):
            assert torch.isfinite(parameter).all()
            assert not torch.equal(parameter, start[path]), path

    model.eval()
    save(model, tmp_path)
    loaded = load(small.make(seed=1), tmp_path)
    assert torch.equal(run(loaded, example), run(model, example))


@pytest.mark.parametrize("name", ["gpt2", "bert", "distilbert"])
def test_dropout_normalisation_and_residual_stay(name: str) -> None:
    small = MODELS[name]
    model = small.make()
    kinds = (nn.Dropout, nn.LayerNorm)
    before = [path for path, module in model.named_modules() if isinstance(module, kinds)]
    replace(model, small.target, FULL_RANK)
    assert [path for path, module in model.named_modules() if isinstance(module, kinds)] == before


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "vit"])
def test_delta_on_a_model(name: str, tmp_path: Path) -> None:
    small = MODELS[name]
    model, example = small.make(), small.example()
    before = run(model, example)
    replace(model, small.target, MuMoEConfig(expert_dims=(4,), rank=2), last=1, delta=True)
    assert torch.equal(run(model, example), before)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for _ in range(2):  # the first step moves the zero parameters away, the second all others
        run(model, example).square().mean().backward()
        torch.optim.SGD(trained, lr=0.1).step()
    assert all(parameter.grad is not None for parameter in trained)
    save(model, tmp_path, only_experts=True)
    assert torch.equal(run(load(small.make(), tmp_path), example), run(model, example))


def test_generation_runs_one_token_at_a_time() -> None:
    small = MODELS["llama"]
    model = small.make()
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 1}
    ids = {"input_ids": small.example()["input_ids"][:1]}
    ids["attention_mask"] = torch.ones_like(ids["input_ids"])
    expected = model.generate(**ids, **settings)
    replace(model, small.target, FULL_RANK)
    assert torch.equal(model.generate(**ids, **settings), expected)


def test_a_whole_mlp_is_replaced_as_a_whole() -> None:
    """The layer of a BART has an MLP's parts among others; where there are no others, nothing of it stays."""
    model = MODELS["vit"].make()
    replace(model, MODELS["vit"].target, FULL_RANK)
    assert all(isinstance(layer.mlp, MuMoEBlock) for layer in model.layers)
