"""Short texts of many classes, and a pretrained sentence encoder whose last layers are trained.

Legend: ``B`` texts of a batch, ``T`` tokens, ``D`` features.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from studies.common.glosses import WORDNET, group
from studies.fine_tuned.backbone import Features, Samples, Sizes, features_of
from studies.real_models import sentences
from studies.real_models.sources import SENTENCE_MODEL, unpack

__all__ = ["LastLayers", "load", "prepare"]


class _AsGiven(nn.Module):
    """In place of an encoder's embeddings: what is given is passed on."""

    def forward(self, *, inputs_embeds: Tensor, **rest: Any) -> Tensor:
        return inputs_embeds


class LastLayers(nn.Module):
    """The last layers of an encoder: the mean over a text's tokens, ``(B, D)``."""

    def __init__(self, model: Any, layers: int) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.embeddings = _AsGiven()
        self.model.encoder.layer = self.model.encoder.layer[-layers:]
        self.model.pooler = None
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # few steps: what dropout is for is not met

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """``(B, T, D)`` and ``(B, T)`` to ``(B, D)``."""
        given: Tensor = self.model(inputs_embeds=hidden, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).float()
        return (given * weights).sum(1) / weights.sum(1)


@torch.no_grad()
def prepare(model: Any, tokenizer: Any, classes: Sequence[Sequence[str]], sizes: Sizes) -> Features:
    """Run what lies below the trained layers.

    Args:
        model: A model of transformers' BERT kind.
        tokenizer: Its tokenizer.
        classes: The texts of each class.
        sizes: How many of them are used, and what is trained.
    """
    below = copy.deepcopy(model).eval()
    below.encoder.layer = below.encoder.layer[: -sizes.layers]
    parts: dict[bool, tuple[list[Tensor], list[int]]] = {True: ([], []), False: ([], [])}
    for label, texts in enumerate(classes):
        places = torch.linspace(0, len(texts) - 1, sizes.train + sizes.test).round().long().tolist()
        tested = set(torch.linspace(0, len(places) - 1, sizes.test).round().long().tolist())
        chosen = [texts[place] for place in places]
        options = {"padding": True, "truncation": True, "max_length": sizes.tokens, "return_tensors": "pt"}
        batch = tokenizer(chosen, **options)
        given = below(**batch).last_hidden_state
        for number, (rows, mask) in enumerate(zip(given, batch["attention_mask"], strict=True)):
            hidden, labels = parts[number in tested]
            hidden.append(rows[mask.bool()].half())
            labels.append(label)
    train, test = (Samples(hidden, torch.tensor(labels)) for hidden, labels in (parts[False], parts[True]))
    return features_of(LastLayers(model, sizes.layers).eval(), train, test, len(classes))


def load(cache: Path, sizes: Sizes) -> Features:
    """WordNet's noun glosses, to be sorted by the concept above them, and all-MiniLM-L6-v2.

    Args:
        cache: Where the encoder is kept.
        sizes: How much is used.

    Raises:
        FileNotFoundError: If WordNet is not installed.
        ValueError: If the classes have too few glosses.
    """
    if not WORDNET.exists():
        raise FileNotFoundError(f"{WORDNET}: no such file; install Debian's wordnet-base")
    with WORDNET.open(encoding="latin-1") as stream:
        classes = sorted((list(dict.fromkeys(part)) for part in group(stream)), key=len, reverse=True)[: sizes.classes]
    if len(classes) < sizes.classes or len(classes[-1]) < sizes.train + sizes.test:
        raise ValueError(f"{sizes.classes} classes of {sizes.train + sizes.test} glosses are wanted; there are fewer")
    return prepare(*sentences.load(unpack(SENTENCE_MODEL, cache)), classes, sizes)
