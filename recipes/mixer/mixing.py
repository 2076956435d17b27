"""The MLP-Mixer, and its recipe.

Legend: ``B`` images, ``C`` channels, ``S`` pixels of a side, ``P`` patches, ``D`` features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from factorized_moe import Budget, MuMoEBlock
from factorized_moe.decompositions.base import Rank
from factorized_moe.interpret import record
from factorized_moe.interpret.report import Images, ReportData
from recipes.augmentation import MEANS, SPREADS, Augmentation, has_torchvision, to_tensor
from recipes.images import FASHION_MNIST, LabelledImages, read_images
from recipes.options import Options, option
from recipes.recipe import Recipe, generator_of, has_experts, shuffled

__all__ = ["Mixer", "MixerOptions", "mixer"]

SHOWN = 256
"""Held-out images on the page of experts."""


@dataclass(frozen=True, kw_only=True)
class MixerOptions(Options):
    """What this recipe is told beside `Options`."""

    out: Path = option(Path("results/mixer"), "the folder of the run; one that holds a run goes on", free=True)
    data: Path = option(FASHION_MNIST, "a folder of images for each class, or of IDX files", free=True)
    batch: int = option(64, "images of a step, over all processes")
    weight_decay: float = option(1e-4, "AdamW's, of all parameters but biases and norms")
    side: int = option(28, "pixels of a side of an image")
    patch: int = option(7, "pixels of a side of a patch")
    augment: bool = option(False, "crop, flip, RandAugment and mixup, as the uMoE paper does")
    mixup: float = option(0.5, "of the Beta distribution that shares of two images are drawn from; 0 for none")
    stochastic_depth: float = option(0.0, "how often the last block is left out; earlier ones less")

    @property
    def largest_rate(self) -> float:
        """The largest learning rate: as told, else the uMoE paper's 1e-3 of 512 features, more for narrower models."""
        return self.learning_rate or 1e-3 * 512 / self.features


class Mixer(nn.Module):
    """Images in patches, blocks that mix patches and then channels, the mean over patches, a linear head.

    ``--depth 8 --patch 16 --side 224`` is Mixer-S/16, ``--depth 12`` Mixer-B/16.

    Args:
        options: Those of the run.
        channels: ``C``.
        classes: The number of classes.

    Raises:
        ValueError: If patches do not fill the image.
    """

    def __init__(self, options: MixerOptions, channels: int, classes: int) -> None:
        super().__init__()
        if options.side % options.patch:
            raise ValueError(f"--patch {options.patch} does not divide --side {options.side}")
        features, patches = options.features, (options.side // options.patch) ** 2
        self.patches = nn.Conv2d(channels, features, options.patch, stride=options.patch)
        self.blocks = nn.ModuleList(
            Block(patches, k / max(1, options.depth - 1), options) for k in range(options.depth)
        )
        self.norm = nn.LayerNorm(features)
        self.head = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        """From images ``(B, C, S, S)`` to logits ``(B, classes)``."""
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, P, D)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(dim=1))
        return logits


class Block(nn.Module):
    """One block: an MLP over the patches of each channel, and one over the channels of each patch."""

    def __init__(self, patches: int, place: float, options: MixerOptions) -> None:
        super().__init__()
        features = options.features
        self.drop = place * options.stochastic_depth
        self.first_norm, self.second_norm = nn.LayerNorm(features), nn.LayerNorm(features)
        self.tokens = mlp(patches, features // 2, options)
        self.channels = mlp(features, 4 * features, options)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, P, D)`` to the same."""
        x = x + self._kept(self.tokens(self.first_norm(x).transpose(1, 2)).transpose(1, 2))
        return x + self._kept(self.channels(self.second_norm(x)))

    def _kept(self, x: Tensor) -> Tensor:
        """Without the whole branch for some images, in training."""
        if not self.training or self.drop == 0.0:
            return x
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.drop
        return x * kept / (1.0 - self.drop)


def mlp(size: int, hidden: int, options: MixerOptions) -> nn.Module:
    """An MLP over the last axis, or a block of experts with at most as many parameters."""
    dense = nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))
    if options.form == "dense":
        return dense
    norm = None if options.gate_norm == "none" else options.gate_norm
    rank = _rank(options.experts, size, hidden, options.form)
    return MuMoEBlock(size, hidden, size, options.experts, options.form, rank, gate_norm=norm)


@cache
def _rank(experts: tuple[int, ...], size: int, hidden: int, form: str) -> Rank:
    """The rank with which a block has as many parameters as an MLP; searched for once, not for every block."""
    dense = nn.Sequential(nn.Linear(size, hidden, device="meta"), nn.Linear(hidden, size, device="meta"))
    return Budget(like=dense).rank(experts, [(size, hidden), (hidden, size)], form)


def mixer(options: MixerOptions) -> Recipe:
    """The recipe.

    Args:
        options: Those of the command line.

    Raises:
        ValueError: If there are no images, or a class has none.
    """
    training, tested = read_images(options.data)
    means, spreads = MEANS[training.channels], SPREADS[training.channels]
    number, classes = min(options.held_out, len(tested)), len(training.classes)
    change = Augmentation(options.side, torchvision=has_torchvision())

    def tensor(images: LabelledImages, k: int, generator: torch.Generator | None = None) -> Tensor:
        image = images.open(k)
        return to_tensor(image if generator is None else change(image, generator), options.side, means, spreads)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        k = shuffled(n, len(training), options.seed)
        label = torch.tensor(training.labels[k])
        if not options.augment:
            return tensor(training, k), label
        generator = generator_of(options.seed, 3, n)
        image, shares = tensor(training, k, generator), nn.functional.one_hot(label, classes).float()
        if options.mixup > 0.0:
            share = _beta(options.mixup, generator)
            other = int(torch.randint(len(training), (1,), generator=generator))
            image = share * image + (1.0 - share) * tensor(training, other, generator)
            shares *= share
            shares[training.labels[other]] += 1.0 - share
        return image, shares

    def held_out(k: int) -> tuple[Tensor, Tensor]:
        k = k * len(tested) // number  # at equal distances: of every class
        return tensor(tested, k), torch.tensor(tested.labels[k])

    def build() -> nn.Module:
        torch.manual_seed(options.seed)
        return Mixer(options, training.channels, classes)

    return Recipe(
        name="mixer",
        build=build,
        training=draw,
        held_out=held_out,
        num_held_out=number,
        source={"classes": list(training.classes), "images": [len(training), len(tested)]},
        learning_rate=options.largest_rate,
        unit="images",
        finish=lambda model, folder: page(model, options, tested),
    )


def _beta(shape: float, generator: torch.Generator) -> float:
    """A draw from a symmetric Beta distribution, by Johnk's method: exact for any shape."""
    while True:
        a, b = (torch.rand(2, generator=generator, dtype=torch.float64) ** (1.0 / shape)).tolist()
        if 0.0 < a + b <= 1.0:
            return float(a / (a + b))


@torch.no_grad()
def page(model: nn.Module, options: MixerOptions, tested: LabelledImages) -> ReportData | None:
    """The channel-mixing experts, whose samples are patches; None for a dense model."""
    if not has_experts(model):
        return None
    number, size, across = min(SHOWN, len(tested)), options.patch, options.side // options.patch
    means, spreads = MEANS[tested.channels], SPREADS[tested.channels]
    chosen = [k * len(tested) // number for k in range(number)]
    shown = []
    with record(model, "blocks.*.channels", class_names=tested.classes) as log:
        for k in chosen:
            image = tested.open(k).resize((options.side, options.side))
            model(to_tensor(image, options.side, means, spreads).unsqueeze(0))
            log.annotate(labels=[tested.labels[k]] * across**2)
            pixels = np.asarray(image).reshape(across, size, across, size, -1)
            shown.append(pixels.swapaxes(1, 2).reshape(across**2, size, size, -1))
    modes = " x ".join(map(str, options.experts))
    facts = [("Images", f"{number} held out, in {across**2} patches"), ("Experts", f"{modes}, {options.form}")]
    return ReportData.from_recording(
        log.recording, "An MLP-Mixer of experts", inputs=Images(_squeezed(np.concatenate(shown))), facts=facts
    )


def _squeezed(pixels: Any) -> Any:
    """Grey images without an axis of channels."""
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
