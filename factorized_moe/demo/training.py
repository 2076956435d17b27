"""Training and evaluating the classifiers of the demonstration, all in the same way.

Legend: ``n`` images, ``H`` height, ``W`` width in pixels, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from factorized_moe.optimisation import warm_up_and_cosine

__all__ = ["Schedule", "predict", "reproducible", "train"]


@dataclass(frozen=True)
class Schedule:
    """How a classifier is trained: AdamW, a short warm-up, then a cosine to zero.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images of one step; the steps of an epoch share the images evenly.
        learning_rate: Its largest value.
        weight_decay: AdamW's.
        gradient_norm: Gradients are clipped to this norm, as in the uMoE paper's experiments.
    """

    epochs: int = 12
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    gradient_norm: float = 1.0

    def steps_per_epoch(self, num_images: int) -> int:
        """The number of steps in a pass over so many images."""
        return max(1, round(num_images / self.batch_size))


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch's generator for a block, and put it back after.

    One thread computes: sums then come out the same on any number of cores, and other programs on the same cores
    slow these small networks down far less.

    Args:
        seed: The seed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    schedule: Schedule,
    seed: int,
    after_step: Callable[[], object],
) -> None:
    """Train a classifier in place.

    Args:
        model: Images to logits ``(n, C)``.
        images: ``(n, H, W)``.
        labels: The classes' numbers, ``(n,)``.
        schedule: How.
        seed: Draws the order of the images: the same for every model.
        after_step: Called after each step.
    """
    model.train()
    steps = schedule.steps_per_epoch(len(images))
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    total = steps * schedule.epochs
    rate = partial(warm_up_and_cosine, steps=total, warm_up=max(1, total // 10))
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(schedule.epochs):
        for batch in torch.randperm(len(images), generator=generator).tensor_split(steps):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), schedule.gradient_norm)
            optimizer.step()
            rates.step()
            after_step()


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, batch_size: int = 1024) -> Tensor:
    """A model's outputs in evaluation mode.

    Args:
        model: Any module with one tensor in and one out.
        inputs: ``(n, ...)``.
        batch_size: Inputs of one call.

    Returns:
        The outputs, ``(n, ...)``.
    """
    model.eval()
    return torch.cat([model(part) for part in inputs.split(batch_size)])
