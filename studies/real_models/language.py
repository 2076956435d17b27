"""A Llama-like language model: the cross-entropy on held-out text, with one MLP in other forms.

Legend: ``w`` windows, ``T`` tokens of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe.surgery import capture, upcycle
from studies.real_models.study import Place

__all__ = ["CROSS_ENTROPY", "cross_entropy", "load", "place", "relative_change_at_full_rank", "windows"]

CROSS_ENTROPY = "cross-entropy"
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


def place(model: Any, train: Tensor, held_out: Tensor) -> Place:
    """The MLP of the middle layer.

    What the layers below it give for the held-out text is kept, so a measurement runs the upper half alone.

    Args:
        model: A model of transformers' Llama kind.
        train: The tokens to distil on, ``(w, T)``.
        held_out: The tokens to measure on, ``(w, T)``.
    """
    middle = len(model.model.layers) // 2
    name = f"model.layers.{middle}.mlp"
    mlp = model.get_submodule(name)
    batches = [{"input_ids": ids[None], "use_cache": False} for ids in train]
    calls = capture(model.model, f"layers.{middle}.mlp", batches)
    inputs = torch.cat([call.arguments[0].flatten(0, 1) for call in calls])
    (below,) = capture(model.model, f"layers.{middle}", [{"input_ids": held_out, "use_cache": False}])

    @torch.no_grad()
    def measure() -> dict[str, float]:
        hidden = below.arguments[0]
        for layer in model.model.layers[middle:]:
            hidden = layer(hidden, **below.keywords)
        return {CROSS_ENTROPY: cross_entropy(model.lm_head(model.model.norm(hidden)), held_out)}

    linears = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    return Place(name, model, mlp, linears, lambda block: {name: block}, inputs, measure)


@torch.no_grad()
def relative_change_at_full_rank(at: Place, ids: Tensor) -> float:
    """``||logits' - logits|| / ||logits||`` with the MLP upcycled to 16 different CP experts of full rank.

    Args:
        at: The MLP.
        ids: The tokens, ``(w, T)``.
    """
    exact = at.model(ids, use_cache=False).logits.double()
    rank = min(at.linears[0].weight.shape)
    with at.holding(upcycle(at.mlp, (16,), "cp", rank).layer):
        changed = at.model(ids, use_cache=False).logits.double()
    return float((changed - exact).norm() / exact.norm())
