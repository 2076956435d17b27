"""One run: MLPs of a model in one form, distilled for a number of steps, and the model measured with them in place.

Legend: ``n`` rows (tokens), ``I`` in_features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe.surgery import DistillationSettings, distill
from studies.real_models.forms import Form, make
from studies.real_models.mlps import MLP, MeanOutput

__all__ = ["Place", "SideBySide", "measure_run"]

FITTED = 8192
"""Rows that a start is fitted to."""


@dataclass(frozen=True, eq=False)
class Place:
    """MLPs of a model that change their form together.

    Attributes:
        model: The model.
        mlps: The MLPs, by what the page calls them.
        changes: From what shall take the MLPs' places, in their order, to what goes where, by the modules' names.
        inputs: What each MLP is given on the training text, ``(n, I)`` of one order; half precision saves memory.
        validation: The same of text that is neither trained nor measured on.
        measure: Measures the model as it is, on held-out text.
        batches: What the whole model is called with for training, over and over, and how it answers with one tensor;
            None if it is never trained as a whole.
    """

    model: nn.Module
    mlps: Mapping[str, MLP]
    changes: Callable[[Sequence[nn.Module]], Mapping[str, nn.Module]]
    inputs: Sequence[Tensor]
    validation: Sequence[Tensor]
    measure: Callable[[], dict[str, float]]
    whole: Whole | None = None

    @property
    def parameters(self) -> int:
        """Of all the MLPs."""
        return sum(mlp.parameters for mlp in self.mlps.values())

    @contextmanager
    def holding(self, blocks: Sequence[nn.Module]) -> Iterator[None]:
        """Put modules in the MLPs' places for a block of code."""
        new = self.changes(blocks)
        old = {name: self.model.get_submodule(name) for name in new}
        try:
            for name, module in new.items():
                self.model.set_submodule(name, module)
            yield
        finally:
            for name, module in old.items():
                self.model.set_submodule(name, module)


@dataclass(frozen=True, eq=False)
class Whole:
    """How a model is trained as a whole.

    Attributes:
        answer: From the model to a module that gives the one tensor that is learned.
        batches: What this is called with, from a seed; without end.
        tokens: The mean number of tokens of a batch.
    """

    answer: Callable[[nn.Module], nn.Module]
    batches: Callable[[int], Iterator[Any]]
    tokens: float


class SideBySide(nn.Module):
    """Several MLPs, each with an input of its own."""

    def __init__(self, mlps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(mlps)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What each gives."""
        return tuple(mlp(x) for mlp, x in zip(self.mlps, inputs, strict=True))


def measure_run(place: Place, settings: Mapping[str, Any], batch_size: int, checkpoint: Path | None) -> dict[str, Any]:
    """Make a form, distil it, and measure the model with it.

    Args:
        place: The MLPs.
        settings: ``kind``, ``experts``, ``fraction``, ``start``, ``seed``, ``loss`` (``"layers"``: each MLP learns what
            its own original gives; ``"model"``: all together what the whole model answers), ``steps`` and
            ``learning_rate``. The kinds ``"original"``, ``"mean"`` and ``"zeros"`` are the MLPs as they are, and what
            they give on average or nothing in their place.
        batch_size: Tokens of a batch.
        checkpoint: Where a long run is kept; it is removed at the end.
    """
    kind = settings["kind"]
    if kind in ("original", "mean", "zeros"):
        blocks = [_fixed(kind, mlp, inputs) for mlp, inputs in zip(place.mlps.values(), place.inputs, strict=True)]
        with place.holding(blocks):
            return {"measured": place.measure()}
    form = Form(kind, settings["experts"], settings["fraction"], settings["start"])
    seed, steps = settings["seed"], settings["steps"]
    blocks = [
        copy.deepcopy(_made(mlp, form, rows, seed))
        for mlp, rows in zip(place.mlps.values(), map(_fitted_rows, place.inputs), strict=True)
    ]
    tokens = 0.0
    if steps:
        how = DistillationSettings(steps=steps, learning_rate=settings["learning_rate"], seed=seed)
        train = _train_layers if settings["loss"] == "layers" else _train_whole
        blocks, tokens = train(place, blocks, how, batch_size, checkpoint)
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
    with place.holding(blocks):
        measured = place.measure()
    made = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    return {
        "share": made / place.parameters,
        "ranks": [list(_ranks(block)) for block in blocks],
        "tokens": tokens,
        "validation": [
            _error(mlp.module, block, x)
            for mlp, block, x in zip(place.mlps.values(), blocks, place.validation, strict=True)
        ],
        "measured": measured,
    }


_made = cache(make)  # runs of several lengths start from the same


_ROWS: dict[int, Tensor] = {}


def _fitted_rows(inputs: Tensor) -> Tensor:
    """Rows at equal distances, the same tensor each time."""
    if id(inputs) not in _ROWS:
        _ROWS[id(inputs)] = inputs[:: max(1, len(inputs) // FITTED)][:FITTED].float()
    return _ROWS[id(inputs)]


@torch.no_grad()
def _fixed(kind: str, mlp: MLP, inputs: Tensor) -> nn.Module:
    if kind == "original":
        return mlp.module
    return MeanOutput(mlp.module(_fitted_rows(inputs)).mean(0) if kind == "mean" else None)


def _train_layers(
    place: Place, blocks: list[nn.Module], how: DistillationSettings, batch_size: int, checkpoint: Path | None
) -> tuple[list[nn.Module], float]:
    originals = SideBySide([mlp.module for mlp in place.mlps.values()]).eval()
    replacements = {f"mlps.{k}": block for k, block in enumerate(blocks)}
    batches = _rows(place.inputs, batch_size, how.seed)
    distill(originals, replacements, batches, how, checkpoint=checkpoint, checkpoint_every=256)
    return blocks, how.steps * min(batch_size, len(place.inputs[0]))


def _rows(inputs: Sequence[Tensor], batch_size: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """Rows in a new order for each pass, without end; the same ones for every form."""
    generator = torch.Generator().manual_seed(seed)
    count = len(inputs[0])
    while True:
        order = torch.randperm(count, generator=generator)
        for begin in range(0, max(1, count - batch_size + 1), batch_size):
            chosen = order[begin : begin + batch_size]
            yield tuple(rows[chosen].float() for rows in inputs)


def _train_whole(
    place: Place, blocks: list[nn.Module], how: DistillationSettings, batch_size: int, checkpoint: Path | None
) -> tuple[list[nn.Module], float]:
    """Only the blocks are trained; everything below and between them stays as it is."""
    whole = place.whole
    if whole is None:
        raise ValueError("this place says nothing of how the whole model is trained; distil its layers")
    changed = copy.deepcopy(place.model)
    for parameter in changed.parameters():
        parameter.requires_grad_(False)
    for name, module in place.changes(blocks).items():
        changed.set_submodule(name, module)
    for block in blocks:
        block.requires_grad_(True)
    model, answer = whole.answer(place.model), whole.answer(changed)
    distill(model, {"": answer}, whole.batches(how.seed), how, checkpoint=checkpoint, checkpoint_every=64)
    return blocks, how.steps * whole.tokens


@torch.no_grad()
def _error(exact: nn.Module, other: nn.Module, rows: Tensor) -> float:
    """The mean squared error of the outputs over the outputs' mean square about their mean."""
    rows = rows.float()
    wanted = exact(rows)
    missed = (other.eval()(rows) - wanted).square().sum()
    return float(missed / (wanted - wanted.mean(0)).square().sum())


def _ranks(block: nn.Module) -> Iterator[int | list[int]]:
    for experts in getattr(block, "expert_tensors", {}).values():
        yield list(experts.rank) if isinstance(experts.rank, tuple) else experts.rank
