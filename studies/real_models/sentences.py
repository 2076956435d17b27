"""A sentence encoder of the BERT kind: embeddings of held-out sentences, with one MLP in other forms.

Legend: ``n`` sentences, ``T`` tokens, ``D`` features of an embedding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe.surgery import capture
from studies.real_models.study import Place

__all__ = ["AGREEMENT", "COSINE", "embed", "encode", "load", "place", "split_sentences"]

COSINE = "cosine"
AGREEMENT = "nearest"
BATCH = 32
FEWEST_WORDS = 6


def load(folder: Path) -> tuple[Any, Any]:
    """The encoder, in evaluation mode, and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    return AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)


def split_sentences(paragraphs: Sequence[str], count: int) -> list[str]:
    """The first different sentences of at least six words.

    Raises:
        ValueError: If there are fewer.
    """
    found: dict[str, None] = {}
    for paragraph in paragraphs:
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
            if len(sentence.split()) >= FEWEST_WORDS and sentence[0].isalpha() and sentence.endswith((".", "?", "!")):
                found[sentence] = None
    if len(found) < count:
        raise ValueError(f"the text has {len(found):,} sentences, but {count} are wanted")
    return list(found)[:count]


def encode(tokenizer: Any, sentences: Sequence[str]) -> list[dict[str, Tensor]]:
    """Batches of token numbers and masks, ``(n, T)`` each."""
    parts = [sentences[k : k + BATCH] for k in range(0, len(sentences), BATCH)]
    options = {"padding": True, "truncation": True, "max_length": 128, "return_tensors": "pt"}
    return [dict(tokenizer(list(part), **options)) for part in parts]


@torch.no_grad()
def embed(model: nn.Module, batches: Sequence[dict[str, Tensor]]) -> Tensor:
    """The mean of each sentence's tokens, scaled to length 1, ``(n, D)``.

    Args:
        model: The encoder.
        batches: The sentences, from `encode`.
    """
    parts = []
    for batch in batches:
        mask = batch["attention_mask"].unsqueeze(-1).float()
        mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
        parts.append(nn.functional.normalize(mean, dim=-1))
    return torch.cat(parts)


def place(model: Any, train: Sequence[dict[str, Tensor]], held_out: Sequence[dict[str, Tensor]]) -> Place:
    """The MLP of the middle layer; two measures against the unchanged model.

    ``"cosine"`` is the mean similarity of a sentence's embedding to its embedding by the unchanged model, ``"nearest"``
    the share of sentences whose nearest other sentence is the same as there.

    Args:
        model: A model of transformers' BERT kind.
        train: The sentences to distil on, from `encode`.
        held_out: The sentences to measure on.
    """
    name = f"encoder.layer.{len(model.encoder.layer) // 2}"
    layer = model.get_submodule(name)
    mlp = nn.Sequential(layer.intermediate.dense, layer.intermediate.intermediate_act_fn, layer.output.dense)
    calls = zip(train, capture(model, f"{name}.intermediate", train), strict=True)
    inputs = torch.cat([call.arguments[0][batch["attention_mask"].bool()] for batch, call in calls])
    exact = embed(model, held_out)
    return Place(
        f"{name}.intermediate, {name}.output.dense",
        model,
        mlp.eval(),
        (mlp[0], mlp[2]),
        lambda block: {f"{name}.intermediate": block, f"{name}.output.dense": nn.Identity()},
        inputs,
        lambda: _compare(embed(model, held_out), exact),
    )


def _compare(changed: Tensor, exact: Tensor) -> dict[str, float]:
    cosine = (changed * exact).sum(-1).mean().item()
    agreement = (_nearest(changed) == _nearest(exact)).double().mean().item()
    return {COSINE: cosine, AGREEMENT: agreement}


def _nearest(embeddings: Tensor) -> Tensor:
    """The number of each sentence's nearest other one, ``(n,)``."""
    return (embeddings @ embeddings.t()).fill_diagonal_(-1.0).argmax(-1)
