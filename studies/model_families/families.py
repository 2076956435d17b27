"""The families that are tried, as data: a class of transformers each, and how to make it tiny.

`SMALL` holds a small value for every setting that configs of transformers use; a family takes those that its config
knows, and says what it needs besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

__all__ = ["DENSE", "SPARSE", "Family", "inputs", "make"]

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "d_model": 16,
    "n_embd": 16,
    "dim": 16,
    "embedding_size": 16,
    "word_embed_proj_dim": 16,
    "intermediate_size": 24,
    "n_inner": 24,
    "ffn_dim": 24,
    "ffn_hidden_size": 24,
    "hidden_dim": 24,
    "d_inner": 24,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "d_ff": 24,
    "expansion_ratio": 2,
    "mlp_ratio": 2,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "n_head": 2,
    "n_heads": 2,
    "num_heads": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "n_ctx": 64,
    "max_seq_len": 64,
    "max_source_positions": 32,
    "max_target_positions": 32,
    "type_vocab_size": 2,
    "image_size": 16,
    "patch_size": 8,
    "num_mel_bins": 8,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    # sparse mixtures
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}


@dataclass(frozen=True)
class Family:
    """A class of models.

    Attributes:
        model: The class.
        settings: What its config needs beside `SMALL`; `None` takes a setting out.
        takes: What it is given: ``"text"``, ``"text to text"``, ``"pictures"``, ``"sound"`` or ``"spectra"``.
        variant: Which of the class's models, if its settings make it another than the usual one.
    """

    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    takes: str = "text"
    variant: str = ""

    @property
    def name(self) -> str:
        """The class, and which variant of its models."""
        return f"{self.model} ({self.variant})" if self.variant else self.model

    @property
    def generates(self) -> bool:
        """Whether the class generates text."""
        return self.takes.startswith("text") and self.model.endswith(("LM", "LMHeadModel", "Generation", "MTModel"))


def _families(models: str, takes: str, settings: Mapping[str, dict[str, Any]]) -> tuple[Family, ...]:
    return tuple(Family(model, settings.get(model, {}), takes) for model in models.split())


SOUND = {"conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2}

SETTINGS: dict[str, dict[str, Any]] = {
    "GPTNeoForCausalLM": {"attention_types": [[["global"], 2]]},
    "GPTJForCausalLM": {"rotary_dim": 4},
    "CodeGenForCausalLM": {"rotary_dim": 4, "n_head": 4, "num_attention_heads": 4},
    "FalconForCausalLM": {"head_dim": None},
    "XLNetModel": {"max_position_embeddings": None},
    "Gemma3nForCausalLM": {
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 50,
    },
    "DINOv3ConvNextModel": {"hidden_sizes": [16, 16], "depths": [1, 1], "layer_scale_init_value": 1.0},
    "ConvNextModel": {"hidden_sizes": [16, 16], "depths": [1, 1], "num_stages": 2, "layer_scale_init_value": 1.0},
    "ConvNextV2Model": {"hidden_sizes": [16, 16], "depths": [1, 1], "num_stages": 2},
    "SwinModel": {
        **dict.fromkeys(("num_attention_heads", "num_hidden_layers", "num_layers"), None),
        **{"num_heads": [2, 2], "depths": [1, 1], "patch_size": 4, "window_size": 2, "embed_dim": 8},
    },
    "LongformerModel": {"attention_window": 4},
    "LEDForConditionalGeneration": {"attention_window": 4, "max_encoder_position_embeddings": 64},
    "BigBirdModel": {"attention_type": "original_full"},
    **dict.fromkeys(
        ("Wav2Vec2Model", "HubertModel", "WavLMModel", "UniSpeechModel", "UniSpeechSatModel", "SEWModel"), SOUND
    ),
    "T5ForConditionalGeneration": {"decoder_start_token_id": 0},
    "NllbMoeForConditionalGeneration": {"encoder_sparse_step": 1, "decoder_sparse_step": 1},
    "SwitchTransformersForConditionalGeneration": {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "BeamForCausalLM": {"mlp_layer_types": ["dense", "sparse"]},
    "FlintForCausalLM": {"mlp_only_layers": []},
    "ZayaForCausalLM": {"num_experts_per_tok": 1},
    "Qwen3NextForCausalLM": {"layer_types": ["linear_attention", "full_attention"]},
    "Qwen3_5MoeForCausalLM": {"layer_types": ["linear_attention", "full_attention"]},
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "GraniteMoeHybridForCausalLM": {"mamba_n_heads": 4, "mamba_d_head": 8, "layer_types": ["mamba", "attention"]},
}
"""What a family needs beside `SMALL`."""

DENSE = (
    *_families(
        """GPT2LMHeadModel GPTBigCodeForCausalLM GPTNeoForCausalLM GPTNeoXForCausalLM GPTNeoXJapaneseForCausalLM
        GPTJForCausalLM CodeGenForCausalLM OPTForCausalLM BloomForCausalLM FalconForCausalLM MptForCausalLM
        LlamaForCausalLM MistralForCausalLM MinistralForCausalLM Qwen2ForCausalLM Qwen3ForCausalLM GemmaForCausalLM
        Gemma2ForCausalLM Gemma3ForCausalLM Gemma3nForCausalLM PhiForCausalLM Phi3ForCausalLM StableLmForCausalLM
        Starcoder2ForCausalLM CohereForCausalLM Cohere2ForCausalLM GraniteForCausalLM OlmoForCausalLM Olmo2ForCausalLM
        Olmo3ForCausalLM GlmForCausalLM Glm4ForCausalLM NemotronForCausalLM HeliumForCausalLM SmolLM3ForCausalLM
        ArceeForCausalLM ApertusForCausalLM Exaone4ForCausalLM SeedOssForCausalLM Ernie4_5ForCausalLM
        HunYuanDenseV1ForCausalLM DiffLlamaForCausalLM NanoChatForCausalLM PersimmonForCausalLM BioGptForCausalLM
        XGLMForCausalLM CTRLLMHeadModel BitNetForCausalLM Lfm2ForCausalLM ModernBertDecoderForCausalLM
        BertModel RobertaModel ElectraModel AlbertModel DistilBertModel MPNetModel DebertaModel DebertaV2Model
        ModernBertModel XLNetModel RoFormerModel EsmModel CamembertModel XLMRobertaModel NomicBertModel EuroBertModel
        MobileBertModel LongformerModel BigBirdModel ConvBertModel NystromformerModel XLMModel FNetModel CLIPTextModel
        SiglipTextModel""",
        "text",
        SETTINGS,
    ),
    *_families(
        """T5ForConditionalGeneration MT5ForConditionalGeneration UMT5ForConditionalGeneration
        BartForConditionalGeneration MBartForConditionalGeneration PegasusForConditionalGeneration
        M2M100ForConditionalGeneration MarianMTModel BlenderbotForConditionalGeneration
        BlenderbotSmallForConditionalGeneration LEDForConditionalGeneration PLBartForConditionalGeneration""",
        "text to text",
        SETTINGS,
    ),
    Family(
        "T5ForConditionalGeneration",
        {"feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0},
        "text to text",
        "T5 1.1",
    ),
    *_families(
        """ViTModel DeiTModel BeitModel Dinov2Model Dinov2WithRegistersModel DINOv3ViTModel ConvNextModel
        ConvNextV2Model DINOv3ConvNextModel SwinModel CLIPVisionModel SiglipVisionModel IJepaModel ViTMSNModel
        Aimv2VisionModel PixtralVisionModel""",
        "pictures",
        SETTINGS,
    ),
    *_families(
        """Wav2Vec2Model HubertModel WavLMModel UniSpeechModel UniSpeechSatModel Data2VecAudioModel SEWModel
        Wav2Vec2ConformerModel""",
        "sound",
        SETTINGS,
    ),
    Family("WhisperForConditionalGeneration", {}, "spectra"),
)
"""Families whose layers have one MLP each."""

SPARSE = (
    *_families(
        """AfmoeForCausalLM AriaTextForCausalLM AXK1ForCausalLM AXK2ForCausalLM BeamForCausalLM Cohere2MoeForCausalLM
        DeepseekV2ForCausalLM DeepseekV3ForCausalLM DeepseekV32ForCausalLM DeepseekV4ForCausalLM Dots1ForCausalLM
        Ernie4_5_MoeForCausalLM ExaoneMoeForCausalLM FlexOlmoForCausalLM FlintForCausalLM Glm4MoeForCausalLM
        Glm4MoeLiteForCausalLM GlmMoeDsaForCausalLM GptOssForCausalLM GraniteMoeForCausalLM GraniteMoeSWAForCausalLM
        GraniteMoeHybridForCausalLM GraniteMoeSharedForCausalLM HunYuanMoEV1ForCausalLM HYV3ForCausalLM HYV4ForCausalLM
        InklingForCausalLM Inkling2ForCausalLM JambaForCausalLM JetMoeForCausalLM Kolibri1ForCausalLM LagunaForCausalLM
        Llama4ForCausalLM LongcatFlashForCausalLM MellumForCausalLM MiniMaxForCausalLM MiniMaxM2ForCausalLM
        MiniMaxM3VLForCausalLM MixtralForCausalLM NemotronHForCausalLM OlmoeForCausalLM PhimoeForCausalLM
        Qwen2MoeForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM Qwen3_5MoeForCausalLM
        SolarOpenForCausalLM ZayaForCausalLM""",
        "text",
        SETTINGS,
    ),
    *_families("NllbMoeForConditionalGeneration SwitchTransformersForConditionalGeneration", "text to text", SETTINGS),
)
"""Families whose layers have many experts each, some of them beside MLPs that all tokens share."""


def make(family: Family, seed: int = 0) -> nn.Module:
    """A tiny model of a family, with random weights that are large enough to matter, in evaluation mode."""
    torch.manual_seed(seed)
    kind = getattr(transformers, family.model)
    known = kind.config_class()
    wanted = {name: value for name, value in SMALL.items() if hasattr(known, name)} | family.settings
    config = kind.config_class(**{name: value for name, value in wanted.items() if value is not None})
    model: nn.Module = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.requires_grad:  # the usual start, 0.02, makes MLPs that hardly matter
                parameter.copy_(torch.randn_like(parameter) * min(0.3, max(1, parameter[:1].numel()) ** -0.5))
            elif not torch.isfinite(parameter).all():
                parameter.zero_()
    return model


def inputs(family: Family) -> dict[str, Tensor]:
    """What a family's model is called with."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, (2, 6), generator=generator)
    match family.takes:
        case "text":
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        case "text to text":
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids[:, :4]}
        case "pictures":
            return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
        case "sound":
            return {"input_values": torch.randn(2, 800, generator=generator)}
        case "spectra":
            features = torch.randn(2, 8, 64, generator=generator)
            return {"input_features": features, "decoder_input_ids": ids[:, :4]}
    raise ValueError(f"a family takes {family.takes!r}, which is unknown")
