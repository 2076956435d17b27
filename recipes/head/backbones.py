"""Pretrained backbones of transformers as classifiers, with experts in the head or in the last MLPs.

Legend: ``B`` samples, ``T`` tokens, ``D`` features, ``C`` colours, ``S`` pixels of a side.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe import Budget, ExpertLayer, MuMoE, parameter_groups
from factorized_moe.surgery import MuMoEConfig, is_mlp, replace
from recipes.augmentation import MEANS, SPREADS
from recipes.gpt.tokens import Bytes
from recipes.images import FASHION_MNIST
from recipes.options import Options, option

__all__ = [
    "TINY",
    "Classifier",
    "HeadOptions",
    "encoder_of",
    "freeze_unused",
    "load_backbone",
    "split_rates",
    "statistics_of",
]

TINY = "tiny"
"""The name of a backbone with random weights, to see that everything runs; it has nothing to be fine-tuned."""


def load_backbone(name: str, pictures: bool, options: HeadOptions) -> Any:
    """A backbone by the folder of its files, or by its name on the Hugging Face hub.

    Args:
        name: The folder, the name, or ``"tiny"``.
        pictures: Whether it takes images.
        options: For the size of the tiny one.

    Raises:
        OSError: If there is no such model.
    """
    import transformers

    if name != TINY:
        if not Path(name).exists() and name.startswith((".", "/")):
            raise FileNotFoundError(f"{name}: no such folder; name one with a model of transformers, or {TINY!r}")
        model = transformers.AutoModel.from_pretrained(name, dtype=torch.float32)
        return getattr(model, "vision_model", model) if pictures else model  # CLIP's and SigLIP's have two towers
    sizes: dict[str, Any] = {
        "hidden_size": options.features,
        "intermediate_size": 4 * options.features,
        "num_hidden_layers": options.depth,
        "num_attention_heads": max(1, options.features // 64),
    }
    if pictures:
        vision = transformers.ViTConfig(**sizes, image_size=28, patch_size=7, hidden_dropout_prob=0.0)
        return transformers.ViTModel(vision, add_pooling_layer=False)
    text = transformers.BertConfig(**sizes, vocab_size=Bytes.vocabulary, max_position_embeddings=512)
    return transformers.BertModel(text, add_pooling_layer=False)


@dataclass(frozen=True, kw_only=True)
class HeadOptions(Options):
    """What this recipe is told beside `Options`."""

    out: Path = option(Path("results/head"), "the folder of the run; one that holds a run goes on", free=True)
    data: Path = option(FASHION_MNIST, "images in a folder for each class, IDX files, or lines (.tsv)", free=True)
    backbone: str = option(TINY, "the folder or hub name of a transformers model; tiny has random weights")
    experts: tuple[int, ...] = option((4,), "the number of experts of each expert mode", type=int, nargs="+")
    batch: int = option(64, "samples of a step, over all processes")
    place: str = option("head", "where experts stand", choices=("head", "mlps"))
    head_size: float = option(1.0, "parameters of a head of experts, relative to those of the dense head")
    last: int = option(2, "with --place mlps, in how many of the last MLPs")
    backbone_rate: float = option(3e-5, "the largest learning rate of the backbone; 0 freezes it")
    dropout: float = option(0.0, "of what the head is given")
    side: int = option(0, "pixels of a side of an image; 0 for the backbone's own")
    tokens: int = option(64, "the most tokens of a line")
    augment: bool = option(False, "crop images at random, as the uMoE paper does for CLIP")


class Classifier(nn.Module):
    """A backbone, one vector for each input, a norm, and a head.

    Images have the vector that the backbone pools (CLIP, DINOv2) or that of its first token, texts the mean of their
    tokens.

    Args:
        backbone: The backbone.
        classes: The number of classes.
        options: Those of the run.
    """

    def __init__(self, backbone: Any, classes: int, options: HeadOptions) -> None:
        super().__init__()
        features = int(backbone.config.hidden_size)
        self.backbone, self.norm, self.dropout = backbone, nn.LayerNorm(features), nn.Dropout(options.dropout)
        self.head: nn.Module = nn.Linear(features, classes)
        norm = None if options.gate_norm == "none" else options.gate_norm
        if options.form != "dense" and options.place == "head":
            budget = Budget(parameters=round(options.head_size * (features + 1) * classes))
            self.head = MuMoE(features, classes, options.experts, options.form, budget, gate_norm=norm)
        elif options.form != "dense":
            config = MuMoEConfig(options.experts, options.form, fraction=1.0, gate_norm=norm, seed=options.seed)
            replace(backbone, is_mlp, config, last=options.last)

    def forward(self, x: Any) -> Tensor:
        """From pixels ``(B, C, S, S)``, or a dictionary of tokens ``(B, T)``, to logits ``(B, classes)``."""
        if isinstance(x, Tensor):
            output = self.backbone(pixel_values=x)
            pooled = getattr(output, "pooler_output", None)
            vector = output.last_hidden_state[:, 0] if pooled is None else pooled
        else:
            hidden = self.backbone(**x).last_hidden_state
            mask = x["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            vector = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        logits: Tensor = self.head(self.dropout(self.norm(vector)))
        return logits


def freeze_unused(model: nn.Module, example: Any) -> None:
    """Stop the parameters that one input's output does not depend on, such as a masked token's: DDP waits for them."""
    model.eval()(example).sum().backward()  # in evaluation mode: a gate's averages stay
    model.train()
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.requires_grad_(False)
        parameter.grad = None


def split_rates(model: Classifier, weight_decay: float, new: float, old: float) -> list[dict[str, Any]]:
    """Groups of parameters, those of the backbone with a learning rate of their own, or frozen if it is 0.

    Args:
        model: The model.
        weight_decay: As for `parameter_groups`.
        new: The learning rate of the head, its norm, and experts.
        old: That of the rest.
    """
    fresh = [model.norm, model.head, *(part for part in model.modules() if isinstance(part, ExpertLayer))]
    ours = {id(parameter) for part in fresh for parameter in part.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in ours and old == 0.0:
            parameter.requires_grad_(False)
    groups = []
    for group in parameter_groups(model, weight_decay=weight_decay):
        for name, rate, mine in ((group["name"], new, True), (f"{group['name']} of the backbone", old, False)):
            if chosen := [p for p in group["params"] if (id(p) in ours) == mine]:
                groups.append({**group, "name": name, "params": chosen, "lr": rate})
    return groups


def statistics_of(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation of colours that a backbone expects: its own, or ImageNet's."""
    file = Path(name) / "preprocessor_config.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return tuple(found.get("image_mean", MEANS[3])), tuple(found.get("image_std", SPREADS[3]))


def encoder_of(name: str, tokens: int) -> Callable[[str], dict[str, Tensor]]:
    """From a text to its tokens and their mask, ``(T,)`` both, filled up to a length.

    Args:
        name: The backbone.
        tokens: ``T``.
    """
    if name == TINY:
        words = Bytes()

        def encode(text: str) -> dict[str, Tensor]:
            numbers = words.encode(text)[:tokens]
            ids = torch.tensor(numbers + [words.end] * (tokens - len(numbers)))
            return {"input_ids": ids, "attention_mask": (torch.arange(tokens) < len(numbers)).long()}

        return encode
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)

    def tokenise(text: str) -> dict[str, Tensor]:
        found = tokenizer(text, truncation=True, max_length=tokens, padding="max_length", return_tensors="pt")
        return {key: found[key][0] for key in ("input_ids", "attention_mask")}

    return tokenise
