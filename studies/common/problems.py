"""The three problems: a small GPT, a small MLP-Mixer, a head of many classes; their MLPs or heads dense or of experts.

A form of experts has as many parameters as the dense form, the gate counted, or a little less.

Legend: ``B`` samples, ``T`` tokens, ``D`` features, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe import MuMoE, MuMoEBlock
from factorized_moe.budgets import rank_for_budget
from studies.common import glosses
from studies.common.images import FASHION_MNIST, load
from studies.common.text import VOCABULARY, standard_library

__all__ = ["PROBLEMS", "Form", "Problem", "Size"]

CACHE = Path("results/studies")


@dataclass(frozen=True)
class Form:
    """What stands in a model's MLPs, or in its head.

    Attributes:
        expert_dims: The sizes of the expert modes; empty for the dense form.
        decomposition: A registered name.
        init: The name of an initialisation.
        gate: From the number of features and the expert modes to what a layer takes as gate options.
    """

    expert_dims: tuple[int, ...]
    decomposition: str
    init: str
    gate: Callable[[int, tuple[int, ...]], dict[str, Any]]

    def mlp(self, features: int, hidden: int) -> nn.Module:
        """An MLP ``(.., D)`` to ``(.., D)``."""
        if not self.expert_dims:
            return nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features))
        sizes = features, hidden, features, self.expert_dims, self.decomposition
        rank = rank_for_budget(
            self.expert_dims,
            features,
            features,
            self.decomposition,
            hidden_features=hidden,
            parameters=2 * features * hidden + hidden + features,
        )
        return MuMoEBlock(*sizes, rank, init=self.init, **self.gate(features, self.expert_dims))

    def head(self, features: int, classes: int) -> nn.Module:
        """A head ``(.., D)`` to ``(.., C)``."""
        if not self.expert_dims:
            return nn.Linear(features, classes)
        sizes = features, classes, self.expert_dims, self.decomposition
        rank = rank_for_budget(
            self.expert_dims, features, classes, self.decomposition, parameters=features * classes + classes
        )
        return MuMoE(*sizes, rank, init=self.init, **self.gate(features, self.expert_dims))


@dataclass(frozen=True)
class Size:
    """How large the models of a stage are, and how long they train.

    Attributes:
        features: ``D`` of the GPT and the Mixer.
        layers: Their blocks.
        steps: Steps of training.
        batch: Samples of a step: sequences, images, or glosses.
        tokens: ``T`` of the GPT.
    """

    features: int
    layers: int
    steps: int
    batch: int
    tokens: int = 64


@dataclass(frozen=True, eq=False)
class Problem:
    """A model to be trained, and its data.

    Attributes:
        model: The model.
        batch: The next input and labels.
        held_out: An input and labels to measure on.
    """

    model: nn.Module
    batch: Callable[[], tuple[Tensor, Tensor]]
    held_out: tuple[Tensor, Tensor]


class _Attention(nn.Module):
    def __init__(self, features: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(features, 3 * features)
        self.output = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.inputs(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, T, D / heads)
        mixed = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        y: Tensor = self.output(mixed.transpose(1, 2).flatten(-2))
        return y


class _Across(nn.Module):
    """A Mixer's MLP over the patches of an image."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(patches, 2 * patches), nn.GELU(), nn.Linear(2 * patches, patches))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mlp(x.transpose(1, 2)).transpose(1, 2)
        return y


class _Block(nn.Module):
    def __init__(self, features: int, mixing: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.LayerNorm(features), nn.LayerNorm(features)
        self.mixing, self.mlp = mixing, mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixing(self.first_norm(x))
        y: Tensor = x + self.mlp(self.second_norm(x))
        return y


class _GPT(nn.Module):
    def __init__(self, size: Size, form: Form) -> None:
        super().__init__()
        features = size.features
        self.tokens = nn.Embedding(VOCABULARY, features)
        self.positions = nn.Parameter(0.02 * torch.randn(size.tokens, features))
        blocks = [_Block(features, _Attention(features), form.mlp(features, 4 * features)) for _ in range(size.layers)]
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(features)
        self.head = nn.Linear(features, VOCABULARY, bias=False)
        for weight in (self.tokens.weight, self.head.weight):
            nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions)))
        return y


class _Mixer(nn.Module):
    """Patches of 7 x 7 of images of 28 x 28."""

    def __init__(self, size: Size, form: Form, classes: int) -> None:
        super().__init__()
        features = size.features
        self.patches = nn.Linear(49, features)
        blocks = [_Block(features, _Across(16), form.mlp(features, 4 * features)) for _ in range(size.layers)]
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(features)
        self.head = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        grid = images.view(-1, 4, 7, 4, 7).permute(0, 1, 3, 2, 4).reshape(-1, 16, 49)
        y: Tensor = self.head(self.norm(self.blocks(self.patches(grid))).mean(dim=1))
        return y


def _gpt(size: Size, form: Form, generator: torch.Generator) -> Problem:
    text = _text()
    return Problem(
        _GPT(size, form), lambda: text.batch(generator, size.batch, size.tokens), text.evaluation(256, size.tokens)
    )


def _mixer(size: Size, form: Form, generator: torch.Generator) -> Problem:
    images = _images()

    def batch() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(images.train), (size.batch,), generator=generator)
        return images.train[chosen], images.train_labels[chosen]

    return Problem(_Mixer(size, form, images.num_classes), batch, (images.test, images.test_labels))


def _head(size: Size, form: Form, generator: torch.Generator) -> Problem:
    data = _glosses()

    def batch() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(data.train), (size.batch,), generator=generator)
        return data.train[chosen], data.train_labels[chosen]

    return Problem(form.head(data.train.shape[1], data.num_classes), batch, (data.test, data.test_labels))


PROBLEMS: dict[str, Callable[[Size, Form, torch.Generator], Problem]] = {"gpt": _gpt, "mixer": _mixer, "head": _head}
"""The problems by name."""


@cache
def _text() -> Any:
    return standard_library()


@cache
def _images() -> Any:
    return load(FASHION_MNIST)


@cache
def _glosses() -> Any:
    return glosses.load(CACHE)
