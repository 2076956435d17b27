"""Checkpoints: one file with all that the next step depends on, whole after any interruption; nothing unpickles.

A file holds whole tensors, so a run may go on with another number of processes or another placing. All processes call
`save`; the first one writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._writing import place_of
from factorized_moe.spread import like, whole
from factorized_moe.surgery.distillation.training_state import read_state, write_state
from recipes.options import Options
from recipes.recipe import Recipe

__all__ = ["BEST", "LAST", "Checkpoints", "Progress"]

LAST = "last.safetensors"
BEST = "best.safetensors"
"""The model of the evaluation with the least loss, without the optimiser."""


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: The steps done.
        best: The least loss of an evaluation.
    """

    step: int = 0
    best: float = float("inf")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        recipe: The recipe.
        options: Those of the run.
        accelerator: Accelerate's.
        model: The model, not wrapped.
        optimizer: Its AdamW.
    """

    def __init__(self, recipe: Recipe, options: Options, accelerator: Any, model: nn.Module, optimizer: Any) -> None:
        self.folder, self.accelerator, self.model, self.optimizer = options.out, accelerator, model, optimizer
        self.identity = {"recipe": recipe.name, "source": dict(recipe.source), "options": options.fixed()}
        self.identity = json.loads(json.dumps(self.identity))
        self.batch = options.batch

    def restore(self) -> Progress:
        """Take over the last checkpoint, if there is one; fresh progress otherwise.

        Raises:
            ValueError: If it is damaged or of another run; what differs is named.
        """
        file = self.folder / LAST
        if not place_of(self.folder, LAST).exists():
            return Progress()
        tensors, values = read_state(file)
        self._check(file, values)
        targets = dict(_named(self.model))
        found = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        if found.keys() != targets.keys():
            raise ValueError(f"{file}: of another model; differing: {sorted(found.keys() ^ targets.keys())[:3]}")
        with torch.no_grad():
            for name, target in targets.items():
                target.copy_(like(found[name].to(target.device), target))
        self._restore_optimizer(tensors)
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        if values["ranks"] == ranks:  # with another number nothing says whose generator is whose
            torch.set_rng_state(tensors["generators"][rank].clone())  # a row of a tensor is not taken
            if "generators.cuda" in tensors and torch.cuda.is_available():
                torch.cuda.set_rng_state(tensors["generators.cuda"][rank].clone())
        return Progress(values["step"], values["best"] if values["best"] is not None else float("inf"))

    def save(self, progress: Progress) -> None:
        """Write the last checkpoint.

        Raises:
            OSError: If it cannot be written; the one before stays.
        """
        tensors = {f"model.{name}": tensor for name, tensor in self._gathered(dict(_named(self.model)))}
        for number, parameter in enumerate(self._parameters()):
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{number}.{key}": value for key, value in self._gathered(state)}
        tensors["generators"] = self._of_all_ranks(torch.get_rng_state())
        if torch.cuda.is_available():
            tensors["generators.cuda"] = self._of_all_ranks(torch.cuda.get_rng_state())
        values = {
            **self.identity,
            "step": progress.step,
            "samples": progress.step * self.batch,
            "best": progress.best if progress.best < float("inf") else None,
            "ranks": self.accelerator.num_processes,
        }
        if self.accelerator.is_main_process:
            write_state(self.folder / LAST, tensors, values)

    def save_best(self, progress: Progress) -> None:
        """Write the model as the best one so far.

        Raises:
            OSError: If it cannot be written; the one before stays.
        """
        tensors = {f"model.{name}": tensor for name, tensor in self._gathered(dict(_named(self.model)))}
        if self.accelerator.is_main_process:
            write_state(self.folder / BEST, tensors, {**self.identity, "step": progress.step, "loss": progress.best})

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _gathered(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors in the first process's memory; nothing in the others'."""
        for name, tensor in tensors.items():
            full = whole(tensor.detach())  # all processes have to ask for it
            if self.accelerator.is_main_process:
                yield name, full.cpu()

    def _of_all_ranks(self, state: Tensor) -> Tensor:
        gathered: Tensor = self.accelerator.gather(state.unsqueeze(0).to(self.accelerator.device)).cpu()
        return gathered

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        parameters = self._parameters()
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".", 2)
                parameter = parameters[int(number)]
                spread = like(value.to(parameter.device), parameter) if value.shape == parameter.shape else value
                state.setdefault(int(number), {})[key] = spread
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def _check(self, file: Path, values: Mapping[str, Any]) -> None:
        for part, wanted in self.identity.items():
            found = values.get(part)
            if found == wanted:
                continue
            if isinstance(found, dict) and isinstance(wanted, dict):
                keys = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
                what = "; ".join(f"{part} {key}: {found.get(key)!r} there, {wanted.get(key)!r} now" for key in keys)
            else:
                what = f"{part}: {found!r} there, {wanted!r} now"
            raise ValueError(f"{file} is of another run ({what}); go on with its options, or give another --out")


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name, what has two names once."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor
