"""The recipe: from images or lines with labels to a fine-tuned classifier."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from factorized_moe.interpret import record
from factorized_moe.interpret.report import Images, ReportData, Texts
from recipes.augmentation import Augmentation, has_torchvision, to_tensor
from recipes.head.backbones import (
    Classifier,
    HeadOptions,
    encoder_of,
    freeze_unused,
    load_backbone,
    split_rates,
    statistics_of,
)
from recipes.head.lines import LabelledLines, read_lines
from recipes.images import LabelledImages, read_images
from recipes.recipe import Recipe, generator_of, has_experts, shuffled

__all__ = ["head"]

SHOWN = 256
"""Held-out samples on the page of experts."""


def head(options: HeadOptions) -> Recipe:
    """The recipe.

    Args:
        options: Those of the command line.

    Raises:
        OSError: If data or backbone cannot be read.
        ValueError: If they are damaged.
    """
    pictures = not (options.data.suffix in (".tsv", ".txt") or (options.data / "train.tsv").exists())
    return _of_images(options) if pictures else _of_lines(options)


def _of_images(options: HeadOptions) -> Recipe:
    training, tested = (replace(part, channels=3) for part in read_images(options.data))
    means, spreads = statistics_of(options.backbone)
    side = options.side or int(load_backbone(options.backbone, True, options).config.image_size)
    crop = Augmentation(side, operations=0, flips=0.0, torchvision=has_torchvision())

    def sample(images: LabelledImages, k: int, n: int | None = None) -> tuple[Tensor, Tensor]:
        image = images.open(k)
        if n is not None and options.augment:
            image = crop(image, generator_of(options.seed, 3, n))
        return to_tensor(image, side, means, spreads), torch.tensor(images.labels[k])

    def shown(k: int) -> Any:
        return np.asarray(tested.open(k).resize((side, side)))

    return _recipe(
        options,
        training,
        tested,
        lambda n: sample(training, shuffled(n, len(training), options.seed), n),
        lambda k: sample(tested, k),
        "images",
        lambda chosen: Images(np.stack([shown(k) for k in chosen])),
    )


def _of_lines(options: HeadOptions) -> Recipe:
    training, tested = read_lines(options.data)
    encode = encoder_of(options.backbone, options.tokens)

    def sample(lines: LabelledLines, k: int) -> tuple[dict[str, Tensor], Tensor]:
        return encode(lines.texts[k]), torch.tensor(lines.labels[k])

    return _recipe(
        options,
        training,
        tested,
        lambda n: sample(training, shuffled(n, len(training), options.seed)),
        lambda k: sample(tested, k),
        "lines",
        lambda chosen: Texts([[tested.texts[k]] for k in chosen]),
    )


def _recipe(options: HeadOptions, training: Any, tested: Any, draw: Any, sample: Any, unit: str, shown: Any) -> Recipe:
    number = min(options.held_out, len(tested))
    rate = options.learning_rate or 1e-3

    def held_out(k: int) -> tuple[Any, Tensor]:
        found: tuple[Any, Tensor] = sample(k * len(tested) // number)  # at equal distances: of every class
        return found

    def build() -> nn.Module:
        torch.manual_seed(options.seed)
        backbone = load_backbone(options.backbone, unit == "images", options)
        model = Classifier(backbone, len(training.classes), options)
        freeze_unused(model, _batch(sample(0)[0]))
        return model

    def finish(model: nn.Module, folder: Path) -> ReportData | None:
        return page(model, options, tested, sample, shown)

    return Recipe(
        name="head",
        build=build,
        training=draw,
        held_out=held_out,
        num_held_out=number,
        source={"classes": list(training.classes), unit: [len(training), len(tested)]},
        learning_rate=rate,
        unit=unit,
        finish=finish,
        groups=lambda model, weight_decay: split_rates(model, weight_decay, rate, options.backbone_rate),
    )


def _batch(x: Any, copies: int = 2) -> Any:
    """One input as a batch of several."""
    if isinstance(x, Tensor):
        return x.unsqueeze(0).repeat(copies, *[1] * x.ndim)
    return {key: _batch(value, copies) for key, value in x.items()}


@torch.no_grad()
def page(model: nn.Module, options: HeadOptions, tested: Any, sample: Any, shown: Any) -> ReportData | None:
    """What the experts do with held-out samples; of experts in MLPs, with all their tokens. None for a dense model."""
    if not has_experts(model):
        return None
    number = min(SHOWN, len(tested))
    chosen = [k * len(tested) // number for k in range(number)]
    with record(model, class_names=tested.classes) as log:
        before = 0
        for k in chosen:
            x, label = sample(k)
            model(_batch(x, 1))
            log.annotate(labels=[int(label)] * (log.num_samples - before))
            before = log.num_samples
    modes = " x ".join(map(str, options.experts))
    facts = [("Backbone", Path(options.backbone).name), ("Experts", f"{modes}, {options.form}, {options.place}")]
    inputs = shown(chosen) if options.place == "head" else None
    return ReportData.from_recording(log.recording, "A head of experts", inputs=inputs, facts=facts)
