"""A pretrained sentence encoder whose last layers are trained, and short texts of many classes.

What the layers below give never changes, so it is kept: an epoch costs the trained layers alone.

Legend: ``n`` texts, ``B`` texts of a batch, ``T`` tokens, ``D`` features, ``C`` classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from studies.common.glosses import WORDNET, group
from studies.real_models import sentences
from studies.real_models.sources import SENTENCE_MODEL, unpack

__all__ = ["Backbone", "Features", "Sizes", "Texts", "load", "prepare"]


LEAST = 0.05
"""Of the mean standard deviation: a feature that hardly varies is not blown up, nor is its gradient."""


@dataclass(frozen=True)
class Sizes:
    """How much is trained on what.

    Attributes:
        classes: ``C``, those with the most texts.
        train: Texts of a class to train on.
        test: Texts of a class to measure on.
        tokens: The most tokens of a text.
        layers: How many of the last layers are trained.
        epochs: Passes over the training texts.
        batch_size: ``B``.
    """

    classes: int = 30
    train: int = 80
    test: int = 32
    tokens: int = 20
    layers: int = 1
    epochs: int = 4
    batch_size: int = 64


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts as the trained layers are given them.

    Attributes:
        hidden: What the layers below give for each text, ``(T, D)`` in half precision, without padding.
        labels: ``(n,)``.
    """

    hidden: Sequence[Tensor]
    labels: Tensor

    def batch(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Some texts, ``(B, T, D)``, padded with zeros, and which of it is text, ``(B, T)``."""
        parts = [self.hidden[k].float() for k in chosen]
        padded = nn.utils.rnn.pad_sequence(parts, batch_first=True)
        return padded, torch.stack([torch.arange(padded.shape[1]) < len(part) for part in parts]).long()

    def epoch(self, size: int, generator: torch.Generator) -> Iterator[list[int]]:
        """Batches of texts of like lengths, in a random order; the last texts of a pass may be left out."""
        order = torch.randperm(len(self.hidden), generator=generator).tolist()
        batches = []
        for begin in range(0, len(order), 8 * size):
            chunk = sorted(order[begin : begin + 8 * size], key=lambda k: len(self.hidden[k]))
            batches += [chunk[k : k + size] for k in range(0, len(chunk) - size + 1, size)]
        for place in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[place]


class _AsGiven(nn.Module):
    """In place of an encoder's embeddings: what is given is passed on."""

    def forward(self, *, inputs_embeds: Tensor, **rest: Any) -> Tensor:
        return inputs_embeds


class Backbone(nn.Module):
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


@dataclass(frozen=True, eq=False)
class Features:
    """The problem: texts to train and to measure on, the layers above them, and a scale for what these give.

    Attributes:
        model: The layers as they were pretrained.
        train: Texts.
        test: Texts.
        mean: Of the pretrained layers' outputs on the training texts, ``(D,)``.
        spread: Their standard deviations, ``(D,)``.
        classes: ``C``.
    """

    model: Backbone
    train: Texts
    test: Texts
    mean: Tensor
    spread: Tensor
    classes: int

    def scaled(self, features: Tensor) -> Tensor:
        """Features as heads are given them, ``(B, D)``."""
        return (features - self.mean) / self.spread


@torch.no_grad()
def embedded(model: Backbone, texts: Texts) -> Tensor:
    """What a backbone gives for all texts, ``(n, D)``."""
    order = sorted(range(len(texts.hidden)), key=lambda k: len(texts.hidden[k]))
    parts = [model(*texts.batch(order[k : k + 128])) for k in range(0, len(order), 128)]
    return torch.cat(parts)[torch.tensor(order).argsort()]


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
    train, test = (Texts(hidden, torch.tensor(labels)) for hidden, labels in (parts[False], parts[True]))
    backbone = Backbone(model, sizes.layers).eval()
    rows = embedded(backbone, train)
    spread = rows.std(0)
    return Features(backbone, train, test, rows.mean(0), spread.clamp(min=LEAST * float(spread.mean())), len(classes))


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
