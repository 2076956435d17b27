"""What both problems share: samples as the trained layers are given them, and features of a scale for heads.

What the layers below the trained ones give never changes, so it is kept: an epoch costs the trained layers alone.

Legend: ``n`` samples, ``B`` samples of a batch, ``T`` tokens, ``D`` features, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Features", "Samples", "Sizes", "embedded", "features_of"]


LEAST = 0.05
"""Of the mean standard deviation: a feature that hardly varies is not blown up, nor is its gradient."""


@dataclass(frozen=True)
class Sizes:
    """How much is trained on what.

    Attributes:
        classes: ``C``.
        train: Samples of a class to train on.
        test: Samples of a class to measure on.
        tokens: The most tokens of a text, or the pixels of a picture's side.
        layers: How many of the last layers are trained.
        epochs: Passes over the training samples.
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
class Samples:
    """Texts or pictures as the trained layers are given them.

    Attributes:
        hidden: What the layers below give for each sample, ``(T, D)`` in half precision, without padding.
        labels: ``(n,)``.
    """

    hidden: Sequence[Tensor]
    labels: Tensor

    def batch(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Some samples, ``(B, T, D)``, padded with zeros, and which tokens are theirs, ``(B, T)``."""
        parts = [self.hidden[k].float() for k in chosen]
        padded = nn.utils.rnn.pad_sequence(parts, batch_first=True)
        return padded, torch.stack([torch.arange(padded.shape[1]) < len(part) for part in parts]).long()

    def epoch(self, size: int, generator: torch.Generator) -> Iterator[list[int]]:
        """Batches of like lengths, in a random order; the last samples of a pass may be left out."""
        order = torch.randperm(len(self.hidden), generator=generator).tolist()
        batches = []
        for begin in range(0, len(order), 8 * size):
            chunk = sorted(order[begin : begin + 8 * size], key=lambda k: len(self.hidden[k]))
            batches += [chunk[k : k + size] for k in range(0, len(chunk) - size + 1, size)]
        for place in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[place]


@dataclass(frozen=True, eq=False)
class Features:
    """The problem: samples to train and to measure on, the layers above them, and a scale for what these give.

    Attributes:
        model: The trained layers as they were pretrained, from ``(B, T, D)`` and ``(B, T)`` to ``(B, D)``.
        train: Samples.
        test: Samples.
        mean: Of the pretrained layers' outputs on the training samples, ``(D,)``.
        spread: Their standard deviations, ``(D,)``.
        classes: ``C``.
    """

    model: nn.Module
    train: Samples
    test: Samples
    mean: Tensor
    spread: Tensor
    classes: int

    def scaled(self, features: Tensor) -> Tensor:
        """Features as heads are given them, ``(B, D)``."""
        return (features - self.mean) / self.spread


@torch.no_grad()
def embedded(model: nn.Module, samples: Samples) -> Tensor:
    """What a backbone gives for all samples, ``(n, D)``."""
    order = sorted(range(len(samples.hidden)), key=lambda k: len(samples.hidden[k]))
    parts = [model(*samples.batch(order[k : k + 128])) for k in range(0, len(order), 128)]
    return torch.cat(parts)[torch.tensor(order).argsort()]


@torch.no_grad()
def features_of(model: nn.Module, train: Samples, test: Samples, classes: int) -> Features:
    """The problem, with the scale that the training samples give.

    Args:
        model: The trained layers as they were pretrained.
        train: Samples.
        test: Samples.
        classes: ``C``.
    """
    rows = embedded(model, train)
    spread = rows.std(0)
    return Features(model, train, test, rows.mean(0), spread.clamp(min=LEAST * float(spread.mean())), classes)
