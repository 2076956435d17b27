"""The models whose layers are truncated, each with what is measured of it.

A measure gives one value for each held-out sample, so that a difference from the unchanged model has a standard error.

Legend: ``n`` held-out samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from studies.common.glosses import WORDNET, group
from studies.common.images import FASHION_MNIST
from studies.common.images import load as load_images
from studies.low_rank import mixers, vision
from studies.low_rank.truncation import linears
from studies.real_models import language, sentences
from studies.real_models.sources import IMAGE_MODEL, LANGUAGE_MODEL, SENTENCE_MODEL, prose, unpack

__all__ = ["SUBJECTS", "Amounts", "Subject"]

ACCURACY, LOSS, COSINE = "accuracy", "loss", "cosine"


@dataclass(frozen=True)
class Amounts:
    """How much is read.

    Attributes:
        mixer_steps: Steps of a Mixer's training.
        mixer_images: Images to measure a Mixer on, and as many to calibrate on.
        windows: Windows of text to measure on.
        calibration: Windows to calibrate on.
        tokens: Of a window.
        classes: Classes of glosses.
        known: Glosses of each class whose mean is its centre.
        asked: Glosses of each class that are measured on.
        images: Images whose classes' means are known to the ViT, and half as many to calibrate on.
        asked_images: Images to measure the ViT on.
        side: Pixels of an image for the ViT.
    """

    mixer_steps: int = mixers.STEPS
    mixer_images: int = 5000
    windows: int = 12
    calibration: int = 24
    tokens: int = 128
    classes: int = 50
    known: int = 20
    asked: int = 10
    images: int = 400
    asked_images: int = 1000
    side: int = 56


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained model.

    Attributes:
        model: The model.
        layers: The linear layers that are truncated.
        measure: For each measure the value of each held-out sample, ``(n,)``.
        calibrate: Calls the model on other samples.
    """

    model: nn.Module
    layers: Mapping[str, nn.Module]
    measure: Callable[[], dict[str, Tensor]]
    calibrate: Callable[[], Any]


def by_centres(known: Tensor, labels: Tensor, asked: Tensor, wanted: Tensor) -> Tensor:
    """Whether each vector is nearest, by cosine, to the mean of its own class, ``(n,)``.

    Args:
        known: Vectors whose classes are known, ``(m, D)``.
        labels: Their classes.
        asked: The vectors, ``(n, D)``.
        wanted: Their classes.
    """
    mean = known.mean(dim=0)
    known, asked = (nn.functional.normalize(part - mean, dim=-1) for part in (known, asked))
    centres = torch.stack([known[labels == k].mean(dim=0) for k in range(int(labels.max()) + 1)])
    found = (asked @ nn.functional.normalize(centres, dim=-1).T).argmax(dim=-1)
    return (found == wanted).double()


def _mixer(cache: Path, amounts: Amounts, seed: int) -> Subject:
    model = mixers.trained(cache, seed, amounts.mixer_steps)
    images, labels = mixers.held_out(cache, 0, 2 * amounts.mixer_images)
    asked, others = slice(0, None, 2), images[1::2]

    @torch.no_grad()
    def measure() -> dict[str, Tensor]:
        logits = torch.cat([model(part) for part in images[asked].split(500)])
        losses = nn.functional.cross_entropy(logits, labels[asked], reduction="none")
        return {ACCURACY: (logits.argmax(dim=-1) == labels[asked]).double(), LOSS: losses.double()}

    head = ("head",)  # one column for each of ten classes
    return Subject(model, linears(model, head), measure, lambda: [model(part) for part in others.split(500)])


def _language(cache: Path, amounts: Amounts, seed: int) -> Subject:
    text = prose()
    model, tokenizer = language.load(unpack(LANGUAGE_MODEL, cache))
    asked = language.windows(tokenizer, text.held_out, amounts.windows, amounts.tokens)
    train = language.windows(tokenizer, text.train, amounts.calibration, amounts.tokens)

    @torch.no_grad()
    def measure() -> dict[str, Tensor]:
        losses = [language.cross_entropy(model(ids[None], use_cache=False).logits, ids[None]) for ids in asked]
        return {LOSS: torch.tensor(losses, dtype=torch.float64)}

    head = ("lm_head",)  # the transposed embedding
    return Subject(
        model, linears(model, head), measure, lambda: [model.model(ids[None], use_cache=False) for ids in train]
    )


def _sentences(cache: Path, amounts: Amounts, seed: int) -> Subject:
    model, tokenizer = sentences.load(unpack(SENTENCE_MODEL, cache))
    with WORDNET.open(encoding="latin-1") as stream:
        classes = sorted(group(stream), key=len, reverse=True)[: amounts.classes]
    each = amounts.known + amounts.asked
    texts = [gloss for glosses in classes for gloss in glosses[:each]]
    others = [gloss for glosses in classes for gloss in glosses[each : each + 8]]
    order = sorted(range(len(texts)), key=lambda k: len(texts[k]))
    batches = sentences.encode(tokenizer, [texts[k] for k in order])
    labels = torch.arange(len(classes))[:, None]

    def embedded() -> Tensor:
        rows = sentences.embed(model, batches)[torch.tensor(order).argsort()]
        return rows.view(len(classes), each, -1)

    exact = embedded()

    @torch.no_grad()
    def measure() -> dict[str, Tensor]:
        rows = embedded()
        known, asked = rows[:, : amounts.known], rows[:, amounts.known :]
        right = by_centres(
            known.flatten(0, 1),
            labels.expand(-1, amounts.known).flatten(),
            asked.flatten(0, 1),
            labels.expand(-1, amounts.asked).flatten(),
        )
        cosine = (asked * exact[:, amounts.known :]).sum(dim=-1).flatten().double()
        return {ACCURACY: right, COSINE: cosine}

    layers = linears(model, ("pooler.dense",))  # the mean of all tokens does not pass through it
    return Subject(model, layers, measure, lambda: sentences.embed(model, sentences.encode(tokenizer, others)))


@cache
def _images() -> Any:
    return load_images(FASHION_MNIST)


def _vision(cache: Path, amounts: Amounts, seed: int) -> Subject:
    model, data, number = vision.load(unpack(IMAGE_MODEL, cache)), _images(), amounts.images
    tested = slice(amounts.asked_images)
    known, asked = (vision.pixels(part, amounts.side) for part in (data.train[:number], data.test[tested]))
    others = vision.pixels(data.train[number : number + number // 2], amounts.side)
    labels, wanted = data.train_labels[:number], data.test_labels[tested]
    exact = vision.features(model, asked)

    @torch.no_grad()
    def measure() -> dict[str, Tensor]:
        found = vision.features(model, asked)
        right = by_centres(vision.features(model, known), labels, found, wanted)
        return {ACCURACY: right, COSINE: torch.cosine_similarity(found, exact, dim=-1).double()}

    return Subject(model, linears(model), measure, lambda: vision.features(model, others))


SUBJECTS: dict[str, Callable[[Path, Amounts, int], Subject]] = {
    "mixer": _mixer,
    "language": _language,
    "sentences": _sentences,
    "vision": _vision,
}
"""From the folder of models, the amounts and a seed, which counts for the Mixer alone: the others are given."""
