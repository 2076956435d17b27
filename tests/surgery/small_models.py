"""Tiny models of transformers' own classes, with random weights, one for each family that surgery is tested on."""

from dataclasses import dataclass, field

import torch
import transformers
from torch import nn

from factorized_moe.surgery import is_mlp

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**SIZES, "vocab_size": 50, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1}
PICTURES = {**SIZES, "image_size": 16, "patch_size": 8}


@dataclass(frozen=True)
class SmallModel:
    """How to make a model, and what of it is replaced."""

    model: str
    config: str
    settings: dict[str, object]
    target: object
    replaced: tuple[str, ...]
    pictures: bool = False
    inputs: dict[str, str] = field(default_factory=dict)

    def make(self, seed: int = 0, **changes: object) -> nn.Module:
        torch.manual_seed(seed)
        config = getattr(transformers, self.config)(**{**self.settings, **changes})
        return getattr(transformers, self.model)(config).eval()

    def example(self, batch: int = 3) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(batch)
        if self.pictures:
            return {"pixel_values": torch.randn(batch, 3, 16, 16, generator=generator)}
        ids = torch.randint(2, 50, (batch, 6), generator=generator)
        return dict.fromkeys(("input_ids", *self.inputs), ids)


def run(model: nn.Module, example: dict[str, torch.Tensor]) -> torch.Tensor:
    """The first output."""
    return model(**example)[0]


MODELS: dict[str, SmallModel] = {
    "gpt2": SmallModel(
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": 50,
            "n_positions": 32,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_inner": 24,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        "*.mlp",
        ("transformer.h.0.mlp", "transformer.h.1.mlp"),
    ),
    "llama": SmallModel(
        "LlamaForCausalLM",
        "LlamaConfig",
        {**TEXT, "num_key_value_heads": 1},
        "model.layers.*.mlp",
        ("model.layers.0.mlp", "model.layers.1.mlp"),
    ),
    "bert": SmallModel("BertModel", "BertConfig", TEXT, is_mlp, ("encoder.layer.0", "encoder.layer.1")),
    "vit": SmallModel("ViTModel", "ViTConfig", PICTURES, is_mlp, ("layers.0.mlp", "layers.1.mlp"), pictures=True),
    "dinov2": SmallModel(
        "Dinov2Model",
        "Dinov2Config",
        {**PICTURES, "mlp_ratio": 1},
        is_mlp,
        ("encoder.layer.0.mlp", "encoder.layer.1.mlp"),
        pictures=True,
    ),
    "mixtral": SmallModel(
        "MixtralForCausalLM",
        "MixtralConfig",
        {**TEXT, "num_key_value_heads": 1, "num_local_experts": 3},
        ["*.v_proj", "*.o_proj"],
        tuple(f"model.layers.{k}.self_attn.{name}" for k in range(2) for name in ("v_proj", "o_proj")),
    ),
    "t5": SmallModel(
        "T5Model",
        "T5Config",
        {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2},
        is_mlp,
        ("encoder.block.0.layer.1.DenseReluDense", "decoder.block.0.layer.2.DenseReluDense"),
        inputs={"decoder_input_ids": "input_ids"},
    ),
    "distilbert": SmallModel(
        "DistilBertModel",
        "DistilBertConfig",
        {"vocab_size": 50, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2},
        is_mlp,
        ("transformer.layer.0.ffn", "transformer.layer.1.ffn"),
    ),
}
