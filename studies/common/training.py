"""The training loop of the small models: AdamW, a warm-up, a cosine, clipped gradients.

Legend: ``B`` samples of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["evaluate", "learning_rate_share", "train"]

WARM_UP = 0.05
"""The share of all steps in which the learning rate grows."""


def learning_rate_share(step: int, steps: int) -> float:
    """The share of the highest learning rate at a step from 0: a linear warm-up, then half a cosine.

    Examples:
        >>> [round(learning_rate_share(step, 100), 2) for step in (0, 4, 5, 50, 99)]
        [0.2, 1.0, 0.99, 0.5, 0.0]
    """
    warm = WARM_UP * steps
    return (step + 1) / warm if step < warm else 0.5 * (1.0 + math.cos(math.pi * step / steps))


def train(
    model: nn.Module,
    batch: Callable[[], tuple[Tensor, Tensor]],
    steps: int,
    learning_rate: float,
    *,
    weight_decay: float = 0.01,
    extra_loss: Callable[[], Tensor] | None = None,
    after_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Train a classifier of samples or tokens in place.

    Args:
        model: From an input to logits ``(B, .., classes)``.
        batch: Gives an input and the labels ``(B, ..)``.
        steps: How many steps.
        learning_rate: The highest.
        weight_decay: AdamW's.
        extra_loss: Added to the loss, after each forward pass.
        after_step: Called with the number of steps done.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * learning_rate_share(step, steps)
        x, labels = batch()
        loss = nn.functional.cross_entropy(model(x).flatten(0, -2), labels.flatten())
        if extra_loss is not None:
            loss = loss + extra_loss()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        after_step(step + 1)


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, labels: Tensor) -> tuple[float, float]:
    """The mean loss and the accuracy of a classifier of samples or tokens, 256 samples at a time.

    Args:
        model: From an input to logits ``(B, .., classes)``.
        x: The inputs.
        labels: Their labels ``(B, ..)``.
    """
    losses, correct = 0.0, 0
    for part, wanted in zip(x.split(256), labels.split(256), strict=True):
        logits = model(part).flatten(0, -2)
        losses += float(nn.functional.cross_entropy(logits, wanted.flatten(), reduction="sum"))
        correct += int((logits.argmax(dim=-1) == wanted.flatten()).sum())
    return losses / labels.numel(), correct / labels.numel()
