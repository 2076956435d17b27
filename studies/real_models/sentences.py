"""A sentence encoder of the BERT kind: embeddings of held-out sentences, with one MLP in other forms.

Legend: ``n`` sentences, ``T`` tokens, ``D`` features of an embedding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from studies.real_models.keeping import kept_rows
from studies.real_models.mlps import MLP, bert_parts
from studies.real_models.study import Place, Whole

__all__ = [
    "AGREEMENT",
    "DISTANCE",
    "compare",
    "embed",
    "encode",
    "load",
    "mean_of_tokens",
    "place",
    "split_sentences",
]

DISTANCE = "distance"
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
    return torch.cat([mean_of_tokens(model, batch) for batch in batches])


def mean_of_tokens(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The same of one batch, with gradients."""
    mask = batch["attention_mask"].unsqueeze(-1).float()
    mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    return nn.functional.normalize(mean, dim=-1)


class Embedder(nn.Module):
    """An encoder that answers with the embeddings of sentences, ``(n, D)``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Tensor) -> Tensor:
        """The embeddings of a batch from `encode`."""
        return mean_of_tokens(self.model, batch)


def place(
    model: Any,
    layers: Sequence[int],
    train: Sequence[dict[str, Tensor]],
    validation: Sequence[dict[str, Tensor]],
    held_out: Sequence[dict[str, Tensor]],
    cache: Path,
) -> Place:
    """The MLPs of some layers; two measures against the unchanged model.

    ``"distance"`` is the mean of ``1 - cosine`` of a sentence's embedding and its embedding by the unchanged model,
    ``"nearest"`` the share of sentences whose nearest other sentence is the same as there.

    Args:
        model: A model of transformers' BERT kind.
        layers: The numbers of the layers, all of the upper half.
        train: The sentences to distil on, from `encode`.
        validation: The sentences to choose learning rates on.
        held_out: The sentences to measure on.
        cache: Where the MLPs' inputs are kept.
    """
    names = [f"encoder.layer.{number}" for number in layers]
    for part in model.modules():  # a student in training mode is to learn what a teacher without it gives
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    mlps, kept = {}, []
    for name in names:
        layer = model.get_submodule(name)
        mlp = nn.Sequential(layer.intermediate.dense, layer.intermediate.intermediate_act_fn, layer.output.dense)
        mlps[f"{name}.intermediate, {name}.output.dense"] = MLP(mlp.eval(), bert_parts)
    total = len(model.encoder.layer)
    every = [f"encoder.layer.{number}" for number in range(total // 2, total)]
    for part, batches in {"train": train, "validation": validation}.items():
        count = sum(len(batch["input_ids"]) for batch in batches)
        found = kept_rows(cache / f"sentences-{part}-{count}", partial(_inputs, model, every, batches))
        kept.append([found[every.index(name)] for name in names])
    exact = embed(model, held_out)

    def changes(blocks: Sequence[nn.Module]) -> dict[str, nn.Module]:
        first = {f"{name}.intermediate": block for name, block in zip(names, blocks, strict=True)}
        return first | {f"{name}.output.dense": nn.Identity() for name in names}

    tokens = sum(int(batch["attention_mask"].sum()) for batch in train) / len(train)
    whole = Whole(Embedder, lambda seed: _over_and_over(train, seed), tokens)
    return Place(model, mlps, changes, *kept, lambda: compare(embed(model, held_out), exact), whole)


def _inputs(model: nn.Module, names: Sequence[str], batches: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """What the MLPs are given, without padding, ``(n, D)`` each, in half precision."""
    parts: list[list[Tensor]] = [[] for _ in names]
    handles = []
    masks: list[Tensor] = []

    def recording(found: list[Tensor]) -> Any:
        return lambda module, arguments, output: found.append(arguments[0][masks[-1]].half())

    try:
        for name, found in zip(names, parts, strict=True):
            handles.append(model.get_submodule(f"{name}.intermediate").register_forward_hook(recording(found)))
        with torch.no_grad():
            for batch in batches:
                masks.append(batch["attention_mask"].bool())
                model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(found) for found in parts]


def _over_and_over(batches: Sequence[dict[str, Tensor]], seed: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        for number in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[number]


def compare(changed: Tensor, exact: Tensor) -> dict[str, float]:
    """The distance and the agreement of embeddings ``(n, D)`` of length 1 with the unchanged model's."""
    distance = 1.0 - (changed * exact).sum(-1).mean().item()
    agreement = (_nearest(changed) == _nearest(exact)).double().mean().item()
    return {DISTANCE: distance, AGREEMENT: agreement}


def _nearest(embeddings: Tensor) -> Tensor:
    """The number of each sentence's nearest other one, ``(n,)``."""
    return (embeddings @ embeddings.t()).fill_diagonal_(-1.0).argmax(-1)
