"""The image classifiers of the demonstration: one trunk, and on it a head of experts, a linear or a dense one.

Legend: ``B`` images, ``H`` height, ``W`` width in pixels, ``F`` features, ``C`` classes, ``N_k`` experts of mode k.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from factorized_moe.budgets import Budget, SizeLike
from factorized_moe.layers import MuMoE

__all__ = ["FEATURES", "HeadConfig", "ImageClassifier", "Trunk", "count_parameters", "dense_head", "fit_head"]

FEATURES = 64
"""``F``, what the trunk makes of an image."""

DEFAULT_RANK = 32
"""Without a rank, a head may have as many weights as the CP decomposition of this rank."""

POOLED_SIDE = 4


class Trunk(nn.Module):
    """A small convolutional network from images of any size to features.

    Args:
        pixel_mean: The mean of the training images' pixels.
        pixel_std: Their standard deviation.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, pixel_mean: float = 0.0, pixel_std: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean))
        self.register_buffer("pixel_std", torch.tensor(pixel_std))
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(16, 32, kernel_size=3, stride=2, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(POOLED_SIDE),
            nn.Flatten(),
            nn.Linear(32 * POOLED_SIDE**2, FEATURES),
            nn.LayerNorm(FEATURES),  # the gate and the experts then see features of one scale
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images to features.

        Args:
            images: Grey levels from 0 to 255 of any type, ``(B, H, W)``.

        Returns:
            ``(B, F)``.
        """
        pixels = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        features: Tensor = self.layers(pixels.unsqueeze(1))
        return features


class ImageClassifier(nn.Module):
    """A trunk and a head.

    Args:
        trunk: Images to features.
        head: Features to logits: a `MuMoE`, or any other module.
    """

    def __init__(self, trunk: Trunk, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits.

        Args:
            images: Grey levels from 0 to 255 of any type, ``(B, H, W)``.

        Returns:
            ``(B, C)``.
        """
        logits: Tensor = self.head(self.trunk(images))
        return logits


@dataclass(frozen=True)
class HeadConfig:
    """Everything a head of experts is built from.

    Attributes:
        num_classes: ``C``.
        expert_dims: ``(N_0, N_1, ..)``.
        decomposition: A registered name.
        rank: The rank; in its canonical form where `fit_head` made it.
        gate: The gate's activation.
        gate_norm: Its normalisation.
        gate_temperature: What its logits are divided by. The library's default shares images among more experts; here
            they are to be looked at.
    """

    num_classes: int
    expert_dims: tuple[int, ...]
    decomposition: str
    rank: SizeLike
    gate: str = "entmax15"
    gate_norm: str | None = "batch"
    gate_temperature: float = 1.0

    def build(self, device: str = "cpu") -> MuMoE:
        """A head with fresh parameters.

        Args:
            device: Where they are; ``"meta"`` to look at shapes alone.

        Raises:
            ValueError: If the decomposition is unknown or the rank does not suit it.
        """
        return MuMoE(
            FEATURES,
            self.num_classes,
            expert_dims=self.expert_dims,
            decomposition=self.decomposition,
            rank=self.rank,
            gate=self.gate,
            gate_norm=self.gate_norm,
            gate_temperature=self.gate_temperature,
            device=device,
        )


def fit_head(
    num_classes: int,
    expert_dims: tuple[int, ...],
    decomposition: str,
    rank: int | tuple[int, ...] | None,
    parameters: int | None,
) -> HeadConfig:
    """Settle the rank of a head of experts.

    Args:
        num_classes: ``C``.
        expert_dims: ``(N_0, N_1, ..)``.
        decomposition: A registered name.
        rank: The rank; exclusive with ``parameters``.
        parameters: The most parameters that the head may have, its gate included. Without either, the weights
            may have as many parameters as those of the CP decomposition of rank 32.

    Raises:
        ValueError: If both are given, the decomposition is unknown, the rank does not suit it, or the head cannot
            be made that small.
    """
    if rank is not None and parameters is not None:
        raise ValueError("both a rank and a number of parameters are given; give one of them")
    if rank is not None:
        chosen: SizeLike = rank
    elif parameters is not None:
        chosen = Budget(parameters=parameters)
    else:
        chosen = Budget(parameters=DEFAULT_RANK * (sum(expert_dims) + FEATURES + 1 + num_classes), count_gate=False)
    config = HeadConfig(num_classes, expert_dims, decomposition, chosen)
    return replace(config, rank=config.build("meta").experts.rank)


def dense_head(num_classes: int, parameters: int) -> nn.Sequential:
    """Two linear layers with a GELU between, of the size nearest to a number of parameters.

    Args:
        num_classes: ``C``.
        parameters: The number of parameters.
    """
    hidden = max(1, round((parameters - num_classes) / (FEATURES + 1 + num_classes)))
    return nn.Sequential(nn.Linear(FEATURES, hidden), nn.GELU(), nn.Linear(hidden, num_classes))


def count_parameters(module: nn.Module) -> int:
    """The number of trainable parameters of a module; a shared one counts once."""
    return sum(parameter.numel() for parameter in module.parameters())
