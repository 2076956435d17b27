"""The image classifiers whose experts are looked at: a small network, and a head of many experts on its features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from factorized_moe import CPMuMoE
from factorized_moe.demo.idx import IdxImages, read_idx_folder
from factorized_moe.demo.training import Schedule, train

__all__ = ["FASHION_MNIST", "Images", "Sizes", "load", "train_classifier"]

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

LARGEST_SIDE = 64


@dataclass(frozen=True)
class Sizes:
    """Of the classifiers, and of their training.

    Attributes:
        features: The features of an image.
        rank: The CP rank of the head.
        epochs: Passes over the training images.
        batch_size: Images of one step.
    """

    features: int = 128
    rank: int = 64
    epochs: int = 3
    batch_size: int = 256


@dataclass(frozen=True, eq=False)
class Images:
    """Images as rows of standardised pixels, with their labels.

    Attributes:
        train: ``(n, P)``.
        train_labels: ``(n,)``.
        test: ``(m, P)``.
        test_labels: ``(m,)``.
        num_classes: The number of classes.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    num_classes: int

    def test_batches(self, size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images in batches, with their labels."""
        return zip(self.test.split(size), self.test_labels.split(size), strict=True)


def load(folder: Path) -> Images:
    """Read a folder of IDX files: MNIST's, Fashion-MNIST's or others in that format.

    Raises:
        ValueError: If there is no such folder, or no test images in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; install Debian's dataset-fashion-mnist or name one with --data")
    training, test = read_idx_folder(folder, LARGEST_SIDE)
    if test is None:
        raise ValueError(f"{folder}: no test images (t10k-images-...) among its IDX files")
    pixels = training.images.float()
    mean, spread = pixels.mean(), pixels.std()

    def rows(part: IdxImages) -> Tensor:
        return ((part.images.float() - mean) / spread).flatten(1)

    classes = int(training.labels.max()) + 1
    return Images(rows(training), training.labels, rows(test), test.labels, classes)


def train_classifier(images: Images, sizes: Sizes, experts: int, activation: str, seed: int) -> nn.Sequential:
    """A network from pixels to features and a CP head of experts on them, trained together; in evaluation mode."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(images.train.shape[1], sizes.features),
        nn.GELU(),
        nn.Linear(sizes.features, sizes.features),
        nn.LayerNorm(sizes.features),
        CPMuMoE(sizes.features, images.num_classes, expert_dims=[experts], rank=sizes.rank, gate=activation),
    )
    schedule = Schedule(epochs=sizes.epochs, batch_size=sizes.batch_size)
    train(model, images.train, images.train_labels, schedule, seed, lambda: None)
    return model.eval()
