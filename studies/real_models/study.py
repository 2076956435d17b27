"""One MLP of a model in many forms: upcycled, measured inside the model, distilled, and measured again.

Legend: ``n`` rows (tokens), ``I`` in_features.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe.budgets import rank_for_budget
from factorized_moe.surgery import DistillationSettings, distill, upcycle
from factorized_moe.surgery.replacing.linears import read_linear

__all__ = ["VARIANTS", "Ablated", "Place", "Row", "Variant", "make_block", "rows"]


@dataclass(frozen=True)
class Variant:
    """One form of an MLP.

    Attributes:
        decomposition: A registered name.
        experts: The number of experts.
        fraction: The most parameters, the gate included, as a share of the MLP's.
    """

    decomposition: str
    experts: int
    fraction: float


FORMS = (
    ("cp", 1),  # one product of two matrices: what experts add to
    *product(("cp", "tr", "tucker"), (16, 256)),
)
VARIANTS = tuple(Variant(*form, fraction) for fraction in (1.0, 0.75, 0.5) for form in FORMS)

INDEPENDENT = 4
"""Experts that must be able to be linearly independent; more would leave less rank to each one's matrix."""


@dataclass(frozen=True)
class Place:
    """One MLP in a model.

    Attributes:
        name: What the page calls the MLP.
        model: The model.
        mlp: What computes the MLP alone; its parts stay the model's own.
        linears: Its linear layers, in the order of application.
        changes: From what shall take the MLP's place to what goes where, by the modules' names in the model.
        inputs: What the MLP is given on the training text, ``(n, I)``.
        measure: Measures the model as it is.
    """

    name: str
    model: nn.Module
    mlp: nn.Module
    linears: tuple[nn.Module, ...]
    changes: Callable[[nn.Module], Mapping[str, nn.Module]]
    inputs: Tensor
    measure: Callable[[], dict[str, float]]

    @contextmanager
    def holding(self, block: nn.Module) -> Iterator[None]:
        """Put a module in the MLP's place for a block of code."""
        new = self.changes(block)
        old = {name: self.model.get_submodule(name) for name in new}
        try:
            for name, module in new.items():
                self.model.set_submodule(name, module)
            yield
        finally:
            for name, module in old.items():
                self.model.set_submodule(name, module)


@dataclass(frozen=True)
class Row:
    """What one variant cost and did.

    Attributes:
        variant: The variant.
        rank: The rank of the first tensor.
        share: Its parameters, the gate included, as a share of the MLP's.
        weight_error: The largest relative error of the experts' means.
        upcycled: What was measured before any training, started from the weights alone.
        fitted: The same, started from the weights and the covariance of the inputs.
        distilled: What was measured after distillation from the latter.
        losses: The normalised squared error of the first and the last step.
        seconds: What all this took.
    """

    variant: Variant
    rank: int | tuple[int, ...]
    share: float
    weight_error: float
    upcycled: Mapping[str, float]
    fitted: Mapping[str, float]
    distilled: Mapping[str, float]
    losses: tuple[float, float]
    seconds: float


class Ablated(nn.Module):
    """Zeros, as many as an input of the same width has."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the input's shape."""
        return torch.zeros_like(x)


def make_block(place: Place, variant: Variant, seed: int = 0, *, fit_inputs: bool = False) -> Any:
    """The MLP upcycled within the variant's parameters, each linear layer with its share of them.

    Args:
        place: The MLP.
        variant: Its form.
        seed: Of the noise between experts.
        fit_inputs: Whether what a low rank loses is chosen by the covariance of the place's inputs.

    Returns:
        What `upcycle` returns.
    """
    weights = [read for linear in place.linears if (read := read_linear(linear)) is not None]
    bias = any(read.bias is not None for read in weights)
    sizes = [read.matrix(bias).numel() for read in weights]
    gate = weights[0].weight.shape[0] * variant.experts
    total = int(variant.fraction * sum(sizes)) - gate
    shapes = [(*weights[k].weight.shape, total * sizes[k] // sum(sizes)) for k in (0, -1)]
    first, last = (_rank(variant, *shape, bias) for shape in shapes)
    rows = nn.functional.pad(place.inputs, (0, 1), value=1.0) if bias else place.inputs
    return upcycle(
        place.mlp,
        (variant.experts,),
        variant.decomposition,
        first,
        second_rank=last,
        seed=seed,
        input_covariance=rows.t() @ rows / len(rows) if fit_inputs else None,
    )


@cache
def _rank(variant: Variant, in_features: int, out_features: int, parameters: int, bias: bool) -> int | tuple[int, ...]:
    return rank_for_budget(
        (variant.experts,),
        in_features,
        out_features,
        variant.decomposition,
        parameters=parameters,
        bias=bias,
        count_gate=False,
        independent_experts=min(INDEPENDENT, variant.experts),
    )


def rows(place: Place, variants: Sequence[Variant], settings: DistillationSettings, batch_size: int) -> Iterator[Row]:
    """Every variant in turn.

    Args:
        place: The MLP.
        variants: Its forms.
        settings: How they are distilled.
        batch_size: Rows of the place's inputs in a batch, drawn anew for each.
    """
    dense = sum(parameter.numel() for parameter in place.mlp.parameters())
    for variant in variants:
        begun = time.perf_counter()
        started = make_block(place, variant, settings.seed)
        with place.holding(started.layer):
            upcycled = place.measure()
        block = make_block(place, variant, settings.seed, fit_inputs=True).layer
        with place.holding(block):
            fitted = place.measure()
        batches = _batches(place.inputs, batch_size, settings)
        losses = distill(place.mlp, {"": block}, batches, settings)[""]
        with place.holding(block):
            distilled = place.measure()
        share = sum(parameter.numel() for parameter in block.parameters()) / dense
        ends = losses[0], losses[-1]
        seconds = time.perf_counter() - begun
        yield Row(variant, block.first.rank, share, started.error, upcycled, fitted, distilled, ends, seconds)


def _batches(inputs: Tensor, batch_size: int, settings: DistillationSettings) -> Iterator[Tensor]:
    """Rows in a new order for each pass; the same ones for every variant."""
    generator = torch.Generator().manual_seed(settings.seed)
    needed = settings.steps * settings.accumulate
    per_pass = max(1, len(inputs) // batch_size)
    for _ in range(math.ceil(needed / per_pass)):
        order = torch.randperm(len(inputs), generator=generator)
        for k in range(per_pass):
            yield inputs[order[k * batch_size : (k + 1) * batch_size]]
