"""What a recipe gives the loop: a model, samples by their number, and what to do with the trained model.

Legend: ``B`` samples, ``C`` classes or tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe import ExpertLayer, parameter_groups
from factorized_moe.surgery import MuMoEConfig
from recipes.options import Options

__all__ = [
    "IGNORED",
    "Recipe",
    "Samples",
    "checked_batch",
    "cross_entropy",
    "experts_of",
    "generator_of",
    "has_experts",
    "listed",
    "shuffled",
]

IGNORED = -100
"""The label of a position that counts for nothing."""

Samples = Callable[[int], tuple[Any, Tensor]]
"""The input and the label of a sample by its number alone, so that no order, process or restart changes it."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """A model to train, and its data.

    Attributes:
        name: The recipe.
        build: A new model, with the parameters that its seed gives.
        training: The samples of training, numbered from 0 without end: an epoch follows the other.
        held_out: Those of evaluation.
        num_held_out: How many these are.
        source: What the data are, to be equal when a run goes on.
        learning_rate: The largest.
        unit: What throughput counts.
        units: How many of it a sample has.
        finish: Given the trained model in evaluation mode and the folder, writes what belongs to the recipe alone and
            gives the page of its experts to be written, or None.
        groups: The parameters in groups for the optimiser; `parameter_groups` with the weight decay by default.
    """

    name: str
    build: Callable[[], nn.Module]
    training: Samples
    held_out: Samples
    num_held_out: int
    source: Mapping[str, Any]
    learning_rate: float
    unit: str
    units: int = 1
    finish: Callable[[nn.Module, Path], Any] = lambda model, folder: None
    groups: Callable[[nn.Module, float], list[dict[str, Any]]] = field(
        default=lambda model, weight_decay: parameter_groups(model, weight_decay=weight_decay)
    )


def experts_of(options: Options, seed: int = 0) -> MuMoEConfig | None:
    """How experts stand in a model with as many parameters as what they replace; None for the dense form.

    Args:
        options: Those of the run.
        seed: Of the experts' values.
    """
    if options.form == "dense":
        return None
    norm = None if options.gate_norm == "none" else options.gate_norm
    return MuMoEConfig(
        options.experts, options.form, fraction=1.0, gate_norm=norm, pretrained=False, seed=options.seed + seed
    )


def cross_entropy(output: Any, labels: Tensor, reduction: str = "mean") -> Tensor:
    """The loss of logits ``(B, .., C)`` for labels ``(B, ..)``, or for shares of the classes ``(B, C)``.

    Args:
        output: The logits, or what transformers' models give.
        labels: The labels; `IGNORED` ones do not count.
        reduction: As for torch's function.
    """
    logits = (output if isinstance(output, Tensor) else output.logits).float()
    if not labels.is_floating_point():
        logits, labels = logits.flatten(0, -2), labels.flatten()
    return nn.functional.cross_entropy(logits, labels, reduction=reduction, ignore_index=IGNORED)


def generator_of(*numbers: int) -> torch.Generator:
    """A generator that these numbers determine: of one sample, or of one epoch's order.

    Examples:
        >>> a, b = (torch.rand(1, generator=generator_of(0, k)).item() for k in (1, 2))
        >>> a == b, a == torch.rand(1, generator=generator_of(0, 1)).item()
        (False, True)
    """
    seed = 0
    for number in numbers:  # the finaliser of SplitMix64: near numbers give far seeds
        seed = (seed ^ number) + 0x9E3779B97F4A7C15
        seed = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        seed = (seed ^ (seed >> 27)) * 0x94D049BB133111EB & (2**64 - 1)
        seed ^= seed >> 31
    return torch.Generator().manual_seed(seed & (2**63 - 1))


def has_experts(model: nn.Module) -> bool:
    """Whether a layer of experts is in a model."""
    return any(isinstance(module, ExpertLayer) and module.expert_dims for module in model.modules())


def shuffled(position: int, number: int, seed: int) -> int:
    """The sample of a data set of ``number`` that comes at a position: every epoch in an order of its own."""
    epoch, place = divmod(position, number)
    return int(_order(epoch, number, seed)[place])


_orders: dict[tuple[int, int, int], Tensor] = {}


def _order(epoch: int, number: int, seed: int) -> Tensor:
    key = epoch, number, seed
    if key not in _orders:
        if len(_orders) > 2:  # an epoch and the next are in use at once
            _orders.clear()
        _orders[key] = torch.randperm(number, generator=generator_of(seed, 1, epoch))
    return _orders[key]


def checked_batch(options: Options, data_ranks: int, number: int | None = None) -> int:
    """The samples of one process in one part of a step.

    Raises:
        ValueError: If the batch cannot be divided.
    """
    parts = options.accumulate * data_ranks
    if options.batch % parts:
        raise ValueError(
            f"--batch {options.batch} is to be divided among {data_ranks} processes and {options.accumulate} parts of "
            f"each; give a multiple of {parts}"
        )
    return options.batch // parts


def listed(values: Sequence[Any], most: int = 5) -> str:
    """The first few of many, for a message."""
    return ", ".join(map(str, values[:most])) + (f" and {len(values) - most} more" if len(values) > most else "")
