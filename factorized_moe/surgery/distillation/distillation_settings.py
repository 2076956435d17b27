"""How a distillation is run, and what a step of it found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from factorized_moe._scalars import is_number, is_whole
from factorized_moe._validation import check_seed
from factorized_moe.optimisation import warm_up_and_cosine

__all__ = ["DistillationSettings", "DistillationStep"]

LARGEST_RATE = 1e30
"""Of learning rates: AdamW's first step is ten times as long, and has to be a number of single precision."""


@dataclass(frozen=True)
class DistillationSettings:
    """How replacements are trained: AdamW, a linear warm-up, then a cosine to zero.

    Attributes:
        steps: Steps of the optimiser.
        learning_rate: Its largest value.
        warm_up: The share of the steps in which it rises.
        weight_decay: AdamW's.
        gradient_norm: The gradient of each replacement is clipped to this norm; ``math.inf`` for no clipping.
        accumulate: Batches of one step.
        seed: Seeds torch's generator for the run, for replacements and batches that draw random numbers.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of range.

    Examples:
        >>> settings = DistillationSettings(steps=100, learning_rate=1e-3)
        >>> [round(settings.rate(step), 6) for step in (0, 9, 50, 99)]
        [0.0001, 0.00098, 0.0005, 0.0]
    """

    steps: int
    learning_rate: float = 1e-3
    warm_up: float = 0.1
    weight_decay: float = 0.0
    gradient_norm: float = 1.0
    accumulate: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate"):
            value = getattr(self, name)
            if not is_whole(value) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        for name in ("learning_rate", "gradient_norm", "warm_up", "weight_decay"):
            if not is_number(getattr(self, name)):
                raise TypeError(f"{name} is a number, got {getattr(self, name)!r}")
        for name in ("learning_rate", "gradient_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        if self.learning_rate > LARGEST_RATE:
            raise ValueError(f"learning_rate must be at most {LARGEST_RATE:g}, got {self.learning_rate!r}")
        if not 0 <= self.warm_up <= 1:
            raise ValueError(f"warm_up is a share of the steps, from 0 to 1, got {self.warm_up!r}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite and not negative, got {self.weight_decay!r}")
        check_seed(self.seed)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm_up = max(1, round(self.steps * self.warm_up))
        return self.learning_rate * warm_up_and_cosine(step, self.steps, warm_up)


@dataclass(frozen=True)
class DistillationStep:
    """The losses and the learning rate of one step of a distillation.

    Attributes:
        step: Its number, counted from 1.
        losses: For each replacement, by name, the normalised mean squared error before the step: 1 is what an output
            of zeros has.
        learning_rate: Its learning rate.
    """

    step: int
    losses: Mapping[str, float]
    learning_rate: float
