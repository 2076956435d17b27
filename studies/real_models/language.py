"""A Llama-like language model: the cross-entropy on held-out text, with one MLP in other forms.

Legend: ``w`` windows, ``T`` tokens of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe.surgery import capture, upcycle
from studies.real_models.keeping import kept_rows
from studies.real_models.mlps import MLP, llama_parts
from studies.real_models.study import Place

__all__ = [
    "CROSS_ENTROPY",
    "DIVERGENCE",
    "cross_entropy",
    "divergence",
    "load",
    "place",
    "relative_change_at_full_rank",
    "windows",
]

CROSS_ENTROPY = "cross-entropy"
DIVERGENCE = "divergence"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load(folder: Path) -> tuple[Any, Any]:
    """The model, float32 and in evaluation mode, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32).eval(), tokenizer


def windows(tokenizer: Any, paragraphs: tuple[str, ...], count: int, length: int) -> Tensor:
    """The first tokens of a text, in windows ``(w, T)`` that do not overlap.

    Raises:
        ValueError: If the text is too short.
    """
    tokens = torch.tensor(tokenizer("\n\n".join(paragraphs)).input_ids)
    if len(tokens) < count * length:
        raise ValueError(f"the text has {len(tokens):,} tokens, but {count} windows of {length} are wanted")
    return tokens[: count * length].reshape(count, length)


@torch.no_grad()
def cross_entropy(logits: Tensor, ids: Tensor) -> float:
    """Nats for each token but the first of its window.

    Args:
        logits: The model's output, ``(w, T, vocabulary)``.
        ids: The tokens, ``(w, T)``.
    """
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()).item()


def divergence(exact: Tensor, logits: Tensor) -> float:
    """The mean Kullback-Leibler divergence from predictions, in nats a token.

    Args:
        exact: The logarithms of the probabilities that are right, ``(w, T, vocabulary)``.
        logits: What is compared, ``(w, T, vocabulary)``.

    Examples:
        >>> even = torch.tensor([[[0.5, 0.5]]]).log()
        >>> divergence(even, even + 3.0), round(divergence(even, torch.tensor([[[0.75, 0.25]]]).log()), 4)
        (0.0, 0.1438)
    """
    other = logits.log_softmax(-1)
    return float((exact.exp() * (exact - other)).sum(-1).mean().clamp(min=0.0))


def place(model: Any, train: Tensor, validation: Tensor, held_out: Tensor, cache: Path) -> Place:
    """The MLP of the middle layer.

    What the layers below it give for the held-out text is kept, so a measurement runs the upper half alone.
    ``"divergence"`` is the Kullback-Leibler divergence of the predictions from the unchanged model's, in nats a token.

    Args:
        model: A model of transformers' Llama kind.
        train: The tokens to distil on, ``(w, T)``.
        validation: The tokens to choose learning rates on, ``(w, T)``.
        held_out: The tokens to measure on, ``(w, T)``.
        cache: Where the MLP's inputs are kept.
    """
    middle = len(model.model.layers) // 2
    name = f"model.layers.{middle}.mlp"
    layers = model.model.layers

    def inputs(ids: Tensor) -> list[Tensor]:
        model.model.layers = layers[: middle + 1]  # what lies above is not needed
        try:
            batches = [{"input_ids": part, "use_cache": False} for part in ids.split(4)]
            calls = capture(model.model, f"layers.{middle}.mlp", batches)
            return [torch.cat([call.arguments[0].flatten(0, 1).half() for call in calls])]
        finally:
            model.model.layers = layers

    (below,) = capture(model.model, f"layers.{middle}", [{"input_ids": held_out, "use_cache": False}])

    @torch.no_grad()
    def logits() -> Tensor:
        hidden = below.arguments[0]
        for layer in model.model.layers[middle:]:
            hidden = layer(hidden, **below.keywords)
        found: Tensor = model.lm_head(model.model.norm(hidden)).float()
        return found

    exact = logits().log_softmax(-1)

    def measure() -> dict[str, float]:
        found = logits()
        return {DIVERGENCE: divergence(exact, found), CROSS_ENTROPY: cross_entropy(found, held_out)}

    parts = {"train": train, "validation": validation}
    mlp = MLP(model.get_submodule(name), llama_parts)
    kept = [
        kept_rows(cache / f"language-{part}-{ids.numel()}", lambda ids=ids: inputs(ids)) for part, ids in parts.items()
    ]
    return Place(model, {name: mlp}, lambda blocks: {name: blocks[0]}, *kept, measure)


@torch.no_grad()
def relative_change_at_full_rank(at: Place, ids: Tensor) -> float:
    """``||logits' - logits|| / ||logits||`` with the MLP upcycled to 16 different CP experts of full rank.

    Args:
        at: The MLP.
        ids: The tokens, ``(w, T)``.
    """
    exact = at.model(ids, use_cache=False).logits.double()
    (mlp,) = at.mlps.values()
    rank = min(mlp.parts(mlp.module).last.weight.shape)
    with at.holding([upcycle(mlp.module, (16,), "cp", rank).layer]):
        changed = at.model(ids, use_cache=False).logits.double()
    return float((changed - exact).norm() / exact.norm())
