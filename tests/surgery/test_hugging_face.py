"""transformers' own round trip keeps layers of experts; without this package a folder is refused, never random."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, Trainer, TrainingArguments

from factorized_moe import MuMoE
from factorized_moe.network import TensorNetwork
from factorized_moe.surgery import (
    FactorizedExperts,
    MuMoEConfig,
    MuMoEDelta,
    factorize_experts,
    is_mlp,
    load,
    replace,
    save,
)
from factorized_moe.surgery.hugging_face import METHOD, ExpertsConfig, ExpertsQuantizer, attach

from .small_models import MODELS, run

CONFIG = MuMoEConfig(expert_dims=(4,), rank=6, gate_norm="layer")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(level)
    transformers.logging.enable_progress_bar()


def changed(name: str, gate_rank: int | None = None, **options: object) -> nn.Module:
    """A model with layers of experts whose parameters are no longer what they started from."""
    small = MODELS[name]
    model = small.make()
    if name == "mixtral":
        factorize_experts(model, "tt", rank=(1, 3, 8, 1))
    else:
        replace(model, small.target, dataclasses.replace(CONFIG, gate_rank=gate_rank), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def folder_of(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def assert_alike(first: nn.Module, second: nn.Module, name: str) -> None:
    example = MODELS[name].example()
    assert [type(module) for module in first.modules()] == [type(module) for module in second.modules()]
    assert torch.equal(run(first, example), run(second, example))
    state = second.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in first.state_dict().items())


@pytest.mark.parametrize(("name", "gate_rank"), [*((name, None) for name in MODELS), ("gpt2", 3)])
def test_saved_and_loaded_by_transformers(name: str, gate_rank: int | None, tmp_path: Path) -> None:
    model = changed(name, gate_rank)
    loaded, report = type(model).from_pretrained(folder_of(model, tmp_path / "first"), output_loading_info=True)
    assert not any(report.values()), report
    assert_alike(loaded, model, name)
    again = type(model).from_pretrained(folder_of(loaded, tmp_path / "second"))
    assert_alike(again, model, name)
    assert (tmp_path / "first" / "config.json").read_bytes() == (tmp_path / "second" / "config.json").read_bytes()


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_with_another_head(name: str, tmp_path: Path) -> None:
    model, example = changed(name), MODELS[name].example()
    inner = getattr(model, model.base_model_prefix)
    body = AutoModel.from_pretrained(folder_of(model, tmp_path / "whole"))
    assert torch.equal(run(body, example), run(inner, example))
    attach(inner)
    headed = type(model).from_pretrained(folder_of(inner, tmp_path / "body"))
    assert torch.equal(run(getattr(headed, model.base_model_prefix), example), run(inner, example))


def test_an_encoder_of_a_whole_and_a_part_that_is_elsewhere(tmp_path: Path) -> None:
    model = changed("t5")
    encoder = transformers.T5EncoderModel.from_pretrained(folder_of(model, tmp_path))
    ids = MODELS["t5"].example()["input_ids"]
    assert torch.equal(encoder(ids)[0], model.encoder(ids)[0])
    edit(tmp_path, lambda found: {path.replace("block.0", "block.7"): one for path, one in found.items()})
    with pytest.raises(ValueError, match=r"T5Model has no module '(en|de)coder\.block\.7\..*', which is a layer"):
        transformers.T5Model.from_pretrained(tmp_path)


def edit(folder: Path, change: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["modules"] = change(config["quantization_config"]["modules"])
    (folder / "config.json").write_text(json.dumps(config))


def test_another_type_is_asked_for(tmp_path: Path) -> None:
    loaded = type(model := changed("gpt2")).from_pretrained(folder_of(model, tmp_path), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    example = MODELS["gpt2"].example()
    torch.testing.assert_close(run(loaded, example), run(model.to(torch.bfloat16), example))


def test_a_delta_stays_frozen(tmp_path: Path) -> None:
    model = changed("bert", delta=True)
    loaded = type(model).from_pretrained(folder_of(model, tmp_path))
    assert_alike(loaded, model, "bert")
    assert any(isinstance(module, MuMoEDelta) for module in loaded.modules())
    trained = [[name for name, one in each.named_parameters() if one.requires_grad] for each in (loaded, model)]
    assert trained[0] == trained[1]


def test_one_layer_in_two_places_and_fixed_nodes(tmp_path: Path) -> None:
    text = "expert_0 a, in b, mask(1 0 1 1 0.5 -1): a b, core: a b c, d out, link(identity): c d; "
    network = TensorNetwork.parse(text + "expert_0=4 in=16 out=16 a=2 b=3 c=2 d=2")
    model = MODELS["llama"].make()
    layer = MuMoE(network=network, gate_norm="layer", bias=False)
    model.model.layers[0].mlp = model.model.layers[1].mlp = layer
    attach(model)
    loaded = type(model).from_pretrained(folder_of(model, tmp_path))
    assert_alike(loaded, model, "llama")
    assert loaded.model.layers[0].mlp is loaded.model.layers[1].mlp


def test_parts_are_saved_too_by_themselves(tmp_path: Path) -> None:
    """A model of two towers, whose towers have configs of their own, and a model in a module of one's own."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    towers = {
        "text_config": {**sizes, "vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 1},
        "vision_config": {**sizes, "image_size": 16, "patch_size": 8},
    }
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig(**towers, projection_dim=8)).eval()
    replace(model, is_mlp, CONFIG)
    ids, pictures = torch.randint(2, 50, (2, 5)), torch.randn(2, 3, 16, 16)
    exact = model(input_ids=ids, pixel_values=pictures).logits_per_text
    whole = transformers.CLIPModel.from_pretrained(folder_of(model, tmp_path / "whole"))
    assert torch.equal(whole(input_ids=ids, pixel_values=pictures).logits_per_text, exact)
    for given in (model, whole):
        tower = type(given.vision_model).from_pretrained(folder_of(given.vision_model, tmp_path / "tower"))
        assert torch.equal(tower(pictures)[0], model.vision_model(pictures)[0])

    holder = nn.ModuleDict({"body": MODELS["gpt2"].make()})
    replace(holder, "body.*.mlp", CONFIG)
    assert_alike(
        AutoModel.from_pretrained(folder_of(holder["body"], tmp_path / "body")), holder["body"].transformer, "gpt2"
    )


def test_in_several_files_and_on_a_device(tmp_path: Path) -> None:
    model = changed("gpt2")
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_alike(type(model).from_pretrained(tmp_path, device_map={"": "cpu"}), model, "gpt2")


# -- a second process


SCRIPT = """
import sys
{importing}
import torch, transformers
from safetensors.torch import load_file
model = getattr(transformers, {kind!r}).from_pretrained({folder!r})
assert ("factorized_moe" in sys.modules) == {imported}
given = load_file({example!r})
outputs = given.pop("outputs")
assert torch.equal(model(**given)[0], outputs), "other numbers"
"""


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_a_second_process_with_and_without_the_package(name: str, tmp_path: Path) -> None:
    model, example = changed(name), MODELS[name].example()
    folder_of(model, tmp_path / "model")
    save_file({**{key: one.clone() for key, one in example.items()}, "outputs": run(model, example)}, tmp_path / "x")

    def process(imported: bool, kind: str) -> subprocess.CompletedProcess[str]:
        importing = "import factorized_moe.surgery.hugging_face" if imported else ""
        values = {"folder": str(tmp_path / "model"), "example": str(tmp_path / "x"), "kind": kind}
        script = SCRIPT.format(importing=importing, imported=imported, **values)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)

    found = process(True, "AutoModelForCausalLM")
    assert found.returncode == 0, found.stderr
    for kind in ("AutoModelForCausalLM", type(model).__name__) if name == "gpt2" else ("AutoModel",):
        without = process(False, kind)
        assert without.returncode != 0
        assert "RuntimeError: You set `ignore_mismatched_sizes` to `False`" in without.stderr
        assert f"Unknown quantization type, got {METHOD}" in without.stderr


# -- Trainer


def trainer_of(model: nn.Module, folder: Path, steps: int) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(2, 50, (16, 6), generator=generator)]
    settings = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 1, "learning_rate": 1e-2}
    arguments = TrainingArguments(
        str(folder), max_steps=steps, save_steps=2, per_device_train_batch_size=4, logging_strategy="no", **settings
    )
    return Trainer(model, arguments, train_dataset=rows)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_trainer_s_checkpoints(name: str, tmp_path: Path) -> None:
    whole = trainer_of(changed(name), tmp_path / "whole", 4)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    loaded = type(whole.model).from_pretrained(checkpoint)
    assert_alike(loaded, whole.model.eval(), name)

    resumed = trainer_of(
        type(whole.model).from_pretrained(tmp_path / "whole" / "checkpoint-2"), tmp_path / "resumed", 4
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    assert_alike(resumed.model.eval(), whole.model, name)


# -- what is refused


def test_a_part_changed_unknown_to_the_whole_is_refused(tmp_path: Path) -> None:
    model = MODELS["gpt2"].make()
    replace(model.transformer, "h.0.mlp", CONFIG)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no `quant_method` attribute"):
        type(model).from_pretrained(tmp_path)
    missing = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["missing"]
    assert "call factorized_moe.surgery.hugging_face.attach on the whole model" in missing
    attach(model)
    assert_alike(type(model).from_pretrained(folder_of(model, tmp_path)), model, "gpt2")


def test_a_file_that_lacks_a_factor_is_refused(tmp_path: Path) -> None:
    model = changed("gpt2")
    file = folder_of(model, tmp_path) / "model.safetensors"
    state = load_file(file)
    del state["transformer.h.1.mlp.c_fc.second.weight.output"]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"second\.weight\.output' of the layer of experts 'transformer\.h\.1\.mlp"):
        type(model).from_pretrained(tmp_path)


def test_descriptions_that_say_nothing_are_refused(tmp_path: Path) -> None:
    folder_of(changed("gpt2"), tmp_path)
    for change, message in (
        (lambda found: {path: {**one, "kind": "Absent"} for path, one in found.items()}, "is of kind 'Absent'"),
        (lambda found: {"_modules": next(iter(found.values()))}, "has no module '_modules', which is a layer of expe"),
        (lambda found: {}, "describes no layers of experts"),
        (lambda found: [1], "modules of a quantization_config are descriptions by path, got"),
    ):
        edit(tmp_path, change)
        with pytest.raises(ValueError, match=message):
            transformers.GPT2LMHeadModel.from_pretrained(tmp_path)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    folder_of(changed("gpt2"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["version"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="of version 2 was written by a later release; this one reads 1"):
        transformers.GPT2LMHeadModel.from_pretrained(tmp_path)


def test_a_model_of_another_method_is_left_as_it_was() -> None:
    class Other(ExpertsQuantizer.__bases__[0]):
        is_serializable = is_trainable = True

    model = MODELS["gpt2"].make()
    before = [type(module) for module in model.modules()]
    config = ExpertsConfig()
    config.quant_method = "other"
    model.hf_quantizer = Other(config)
    with pytest.raises(ValueError, match="is quantised by other, and transformers saves a model by one method alone"):
        replace(model, "*.mlp", CONFIG)
    assert [type(module) for module in model.modules()] == before
    with pytest.raises(TypeError, match="attach takes a model of transformers, got Linear"):
        attach(nn.Linear(2, 2))


def test_a_model_from_a_gguf_file_whose_weights_were_all_dequantised_is_an_ordinary_one(tmp_path: Path) -> None:
    quantizer_gguf = pytest.importorskip("transformers.quantizers.quantizer_gguf")
    config = pytest.importorskip("transformers").GgufConfig("a.gguf")
    model = MODELS["llama"].make()
    model.hf_quantizer = quantizer_gguf.GgufHfQuantizer(config)
    model.config.quantization_config = config
    model.hf_quantizer.packed_modules = {"model.layers.0.mlp.up_proj.weight": nn.Linear(2, 2)}
    with pytest.raises(ValueError, match=r"is quantised by .*GGUF, and transformers saves a model by one method alone"):
        replace(model, "*.mlp", CONFIG)
    model.hf_quantizer.packed_modules = {}
    replace(model, "*.mlp", CONFIG)
    assert_alike(type(model).from_pretrained(folder_of(model, tmp_path)), model, "llama")


def test_an_unchanged_model_is_not_changed_while_it_is_loaded(tmp_path: Path) -> None:
    model = MODELS["gpt2"].make()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does require the model to be pre-quantized"):
        type(model).from_pretrained(tmp_path, quantization_config=ExpertsConfig())


def test_a_model_whose_layers_were_taken_out_again_is_an_ordinary_one(tmp_path: Path) -> None:
    model, other = changed("llama"), MODELS["llama"].make()
    for layer, own in zip(model.model.layers, other.model.layers, strict=True):
        layer.mlp = own.mlp
    loaded = type(model).from_pretrained(folder_of(model, tmp_path))
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert_alike(loaded, model, "llama")


# -- our own saving beside it


def test_save_leaves_a_hugging_face_folder_alone(tmp_path: Path) -> None:
    model = changed("gpt2")
    folder_of(model, tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds the config\.json of a Hugging Face model; give a folder of its own"):
        save(model, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before
    assert_alike(AutoModel.from_pretrained(tmp_path), model.transformer, "gpt2")
    with pytest.raises(ValueError, match=r"import factorized_moe\.surgery\.hugging_face and read it with the"):
        load(MODELS["gpt2"].make(), tmp_path)


@pytest.mark.parametrize("only_experts", [False, True])
def test_factorized_experts_are_saved_and_loaded(tmp_path: Path, only_experts: bool) -> None:
    model = MODELS["mixtral"].make()
    factorize_experts(model, "tt", rank=(1, 3, 8, 1))
    save(model, tmp_path, only_experts=only_experts)
    loaded = load(MODELS["mixtral"].make(), tmp_path)
    assert isinstance(loaded.model.layers[0].mlp.experts, FactorizedExperts)
    assert_alike(loaded, model, "mixtral")


def test_what_load_made_is_saved_by_transformers(tmp_path: Path) -> None:
    model = changed("gpt2")
    save(model, tmp_path / "ours")
    loaded = load(MODELS["gpt2"].make(), tmp_path / "ours")
    assert_alike(type(model).from_pretrained(folder_of(loaded, tmp_path / "theirs")), model, "gpt2")
    assert isinstance(loaded.hf_quantizer, ExpertsQuantizer)
    assert not any(isinstance(module, MuMoE) for module in MODELS["gpt2"].make().modules())
