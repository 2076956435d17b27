"""A Llama-like language model: the cross-entropy on held-out text, with one MLP in other forms.

Legend: ``w`` windows, ``T`` tokens of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe.surgery import capture, upcycle
from models.study import Place

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
def cross_entropy(model: nn.Module, ids: Tensor) -> float:
    """Nats for each token but the first of its window.

    Args:
        model: The language model.
        ids: The tokens, ``(w, T)``.
    """
    logits = model(ids, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()).item()


def place(model: Any, train: Tensor, held_out: Tensor) -> Place:
    """The MLP of the middle layer.

    Args:
        model: A model of transformers' Llama kind.
        train: The tokens to distil on, ``(w, T)``.
        held_out: The tokens to measure on, ``(w, T)``.
    """
    name = f"model.layers.{len(model.model.layers) // 2}.mlp"
    mlp = model.get_submodule(name)
    calls = capture(model.model, name.removeprefix("model."), [{"input_ids": ids[None]} for ids in train])
    inputs = torch.cat([call.arguments[0].flatten(0, 1) for call in calls])
    return Place(
        model,
        mlp,
        (mlp.gate_proj, mlp.up_proj, mlp.down_proj),
        lambda block: {name: block},
        inputs,
        lambda: {CROSS_ENTROPY: sum(cross_entropy(model, ids[None]) for ids in held_out) / len(held_out)},
    )


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
