"""Images as tensors, and the uMoE paper's augmentation of a Mixer, each sample with random numbers of its own.

The paper crops at random, flips, applies RandAugment (2 operations of magnitude 15) and mixes pairs of images (mixup).
Where torchvision can be imported its transforms do that; elsewhere a subset on Pillow does: the crop, the flip and
eight of RandAugment's operations. Mixing draws its partner from all of training, not from the batch, so that a sample
does not depend on which process has it.

Legend: ``C`` channels, ``S`` pixels of a side.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

__all__ = ["Augmentation", "has_torchvision", "to_tensor"]

OPERATIONS = 2
STRENGTH = 0.5
"""RandAugment's magnitude as a share of the largest: 15 of 30."""

SMALLEST_CROP = 0.08
MEANS = {1: (0.5,), 3: (0.485, 0.456, 0.406)}
SPREADS = {1: (0.5,), 3: (0.229, 0.224, 0.225)}
"""ImageNet's statistics of colours."""

Operation = Callable[[Image.Image, float], Image.Image]

PILLOW: tuple[Operation, ...] = (
    lambda image, strength: image.rotate(30 * strength),
    lambda image, strength: image.transform(image.size, Image.Transform.AFFINE, (1, 0.3 * strength, 0, 0, 1, 0)),
    lambda image, strength: image.transform(image.size, Image.Transform.AFFINE, (1, 0, 0, 0.3 * strength, 1, 0)),
    lambda image, strength: ImageOps.autocontrast(image),
    lambda image, strength: ImageOps.posterize(image, 8 - round(4 * abs(strength))),
    lambda image, strength: ImageOps.solarize(image, 255 - round(255 * abs(strength))),
    lambda image, strength: ImageEnhance.Brightness(image).enhance(1 + 0.9 * strength),
    lambda image, strength: ImageEnhance.Contrast(image).enhance(1 + 0.9 * strength),
)
"""Operations on an image with a strength between -1 and 1."""


def has_torchvision() -> bool:
    """Whether torchvision is there and can be imported beside this torch."""
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


def to_tensor(image: Image.Image, side: int, means: tuple[float, ...], spreads: tuple[float, ...]) -> Tensor:
    """The whole image, scaled to a square and standardised, ``(C, S, S)``.

    Args:
        image: The image.
        side: ``S``.
        means: The mean of each channel, of values from 0 to 1.
        spreads: The standard deviation of each.
    """
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    values = np.asarray(image, dtype=np.float32).reshape(side, side, -1) / 255.0
    pixels = torch.from_numpy(values.copy()).permute(2, 0, 1)
    shape = (-1, 1, 1)
    return ((pixels - torch.tensor(means).view(shape)) / torch.tensor(spreads).view(shape)).contiguous()


@dataclass(frozen=True)
class Augmentation:
    """A random change of an image.

    Attributes:
        side: ``S`` of what comes out.
        smallest: The least share of the image's area that a crop keeps.
        operations: Operations of RandAugment, one after the other.
        flips: How often the image is mirrored.
        torchvision: Whether torchvision's transforms do it.
    """

    side: int
    smallest: float = SMALLEST_CROP
    operations: int = OPERATIONS
    flips: float = 0.5
    torchvision: bool = False

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        """Change an image.

        Args:
            image: The image.
            generator: All random numbers come from it.
        """
        return self._by_torchvision(image, generator) if self.torchvision else self._by_pillow(image, generator)

    def _by_pillow(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        def uniform(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand(1, generator=generator))

        image = image.resize(
            (self.side, self.side), Image.Resampling.BILINEAR, box=_crop(image, self.smallest, uniform)
        )
        if uniform(0, 1) < self.flips:
            image = ImageOps.mirror(image)
        for _ in range(self.operations):
            chosen = int(torch.randint(len(PILLOW), (1,), generator=generator))
            image = PILLOW[chosen](image, STRENGTH if uniform(0, 1) < 0.5 else -STRENGTH)
        return image

    def _by_torchvision(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        from torchvision.transforms import v2

        steps = [v2.RandomResizedCrop(self.side, scale=(self.smallest, 1.0)), v2.RandomHorizontalFlip(self.flips)]
        steps += [v2.RandAugment(self.operations, round(30 * STRENGTH))] if self.operations else []
        with torch.random.fork_rng(devices=()):  # its transforms read torch's own generator
            torch.default_generator.set_state(generator.get_state())
            changed: Image.Image = v2.Compose(steps)(image)
        return changed


def _crop(
    image: Image.Image, smallest: float, uniform: Callable[[float, float], float]
) -> tuple[float, float, float, float]:
    """A box of a random share of the area and of a random shape within the image; the whole image after ten tries."""
    width, height = image.size
    for _ in range(10):
        area = uniform(smallest, 1.0) * width * height
        shape = math.exp(uniform(-math.log(4 / 3), math.log(4 / 3)))
        w, h = math.sqrt(area * shape), math.sqrt(area / shape)
        if w <= width and h <= height:
            left, top = uniform(0, width - w), uniform(0, height - h)
            return left, top, left + w, top + h
    return 0, 0, width, height
