"""Pictures of kanji in real faces, and a pretrained vision transformer whose last layers are trained.

Legend: ``n`` pictures, ``B`` pictures of a batch, ``T`` tokens (one for the class and one for each patch), ``D``
features, ``S`` pixels of a side.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from studies.fine_tuned.backbone import Features, Samples, Sizes, features_of
from studies.low_rank import vision
from studies.real_models.sources import IMAGE_MODEL, unpack
from studies.specialisation import glyphs

__all__ = ["SIZES", "LastLayers", "load", "prepare"]

SIZES = Sizes(classes=64, train=20, test=20, tokens=56, layers=1, epochs=8, batch_size=64)


class LastLayers(nn.Module):
    """The last layers of a DINOv2: its class token, normalised, ``(B, D)``."""

    def __init__(self, model: Any, layers: int) -> None:
        super().__init__()
        self.layers = copy.deepcopy(model.encoder.layer[-layers:])
        self.norm = copy.deepcopy(model.layernorm)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """``(B, T, D)`` to ``(B, D)``; all pictures have as many tokens, so ``mask`` is not read."""
        for layer in self.layers:
            hidden = layer(hidden)
        found: Tensor = self.norm(hidden[:, 0])
        return found


@torch.no_grad()
def prepare(model: Any, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], sizes: Sizes) -> Features:
    """Run what lies below the trained layers.

    Args:
        model: A model of transformers' DINOv2 kind.
        train: Pictures as it takes them, ``(n, 3, S, S)``, and their labels.
        test: The same to measure on.
        sizes: What is trained.
    """
    below = copy.deepcopy(model).eval()
    below.encoder.layer = below.encoder.layer[: -sizes.layers]
    below.layernorm = nn.Identity()
    parts = []
    for pictures, labels in (train, test):
        given = torch.cat([below(pixel_values=part).last_hidden_state.half() for part in pictures.split(50)])
        parts.append(Samples(list(given), labels))
    return features_of(LastLayers(model, sizes.layers).eval(), *parts, sizes.classes)


def load(cache: Path, sizes: Sizes) -> Features:
    """Kanji, to be told apart in faces that they were not trained in, and a ViT of DINOv2-small's shape.

    Args:
        cache: Where the transformer and the faces are kept.
        sizes: How much is used.
    """
    faces, signs = glyphs.find_faces(cache), glyphs.characters(cache)
    numbers = np.linspace(0, len(signs) - 1, sizes.classes).round().astype(int).tolist()
    parts = []
    for part, count in enumerate((sizes.train, sizes.test)):
        drawn, labels = [], []
        for label, number in enumerate(numbers):
            for face in glyphs.faces_of(number, len(faces))[part][:count]:
                drawn.append(glyphs.draw(signs[number], faces[face], (number, face), sizes.tokens))
                labels.append(label)
        grey = torch.from_numpy(np.stack(drawn)).float().div_(255).unsqueeze(1)
        parts.append((vision.coloured(grey), torch.tensor(labels)))
    return prepare(vision.load(unpack(IMAGE_MODEL, cache)), *parts, sizes)
