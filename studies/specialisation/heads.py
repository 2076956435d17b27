"""What is compared: a head, described by its settings, trained on features, and what is kept of it.

Legend: ``m`` test samples, ``N`` experts, ``C`` classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from factorized_moe import Budget, MuMoE
from factorized_moe.interpret import counterfactuals
from studies.common.training import train
from studies.specialisation.data import Data

__all__ = ["MATCHED", "RANK", "Outcome", "head", "outcome", "outcome_file"]

RANK = 128
"""The CP rank where parameters need not match."""
MATCHED = "matched"
"""A rank that gives the parameters of a linear head, the gate counted."""
BATCH = 256


@dataclass(frozen=True, eq=False)
class Outcome:
    """A trained head, as far as measures need it.

    Attributes:
        accuracy: On the test samples.
        train_accuracy: On the training samples.
        parameters: Of the head, the gate counted.
        class_sizes: Test samples of each class, ``(C,)``.
        correct: Those that are predicted correctly, ``(C,)``.
        correct_without: The same without each expert, ``(N, C)``; ``N`` is 0 for a head without experts.
        coefficients: Of the test samples, ``(m, N)``, float16.
    """

    accuracy: float
    train_accuracy: float
    parameters: int
    class_sizes: Tensor
    correct: Tensor
    correct_without: Tensor
    coefficients: Tensor

    def save(self, file: Path) -> None:
        """Write it to a file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npz")
        scalars = np.array([self.accuracy, self.train_accuracy, self.parameters])
        np.savez_compressed(
            partial,
            scalars=scalars,
            class_sizes=self.class_sizes.numpy().astype(np.int32),
            correct=self.correct.numpy().astype(np.int32),
            correct_without=self.correct_without.numpy().astype(np.int16),
            coefficients=self.coefficients.numpy(),
        )
        partial.replace(file)

    @classmethod
    def load(cls, file: Path) -> Outcome:
        """Read it from a file."""
        with np.load(file) as found:
            accuracy, train_accuracy, parameters = found["scalars"].tolist()
            names = ("class_sizes", "correct", "correct_without")
            counts = [torch.from_numpy(found[name].astype(np.int64)) for name in names]
            return cls(accuracy, train_accuracy, int(parameters), *counts, torch.from_numpy(found["coefficients"]))


def head(settings: Mapping[str, Any], features: int, classes: int) -> nn.Module:
    """The head that settings describe.

    Args:
        settings: As a line of the file of runs holds them.
        features: Its inputs.
        classes: Its outputs.
    """
    return _HEADS[settings["head"]](settings, features, classes)


def _linear(settings: Mapping[str, Any], features: int, classes: int) -> nn.Module:
    return nn.Linear(features, classes)


def _two_maps(settings: Mapping[str, Any], features: int, classes: int) -> nn.Module:
    """A linear head of more parameters: as many as CP has of rank `RANK` with so many experts."""
    like = MuMoE(features, classes, [settings["experts"]], "cp", RANK)
    width = (_size(like) - classes) // (features + classes)
    return nn.Sequential(nn.Linear(features, width, bias=False), nn.Linear(width, classes))


def _cp(settings: Mapping[str, Any], features: int, classes: int) -> nn.Module:
    rank = Budget(like=nn.Linear(features, classes)) if settings["rank"] == MATCHED else settings["rank"]
    return _experts(settings, features, classes, "cp", rank)


def _tr(settings: Mapping[str, Any], features: int, classes: int) -> nn.Module:
    like = nn.Linear(features, classes)
    if settings["rank"] != MATCHED:
        like = MuMoE(features, classes, [settings["experts"]], "cp", settings["rank"])
    return _experts(settings, features, classes, "tr", Budget(like=like))


def _experts(settings: Mapping[str, Any], features: int, classes: int, decomposition: str, rank: Any) -> nn.Module:
    options = {"gate": settings["gate"], "init": settings["init"]}
    return MuMoE(features, classes, [settings["experts"]], decomposition, rank, **options)


_HEADS: dict[str, Callable[[Mapping[str, Any], int, int], nn.Module]] = {
    "cp": _cp,
    "tr": _tr,
    "linear": _linear,
    "two linear maps": _two_maps,
}


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def outcome(settings: Mapping[str, Any], data: Data) -> Outcome:
    """Train a head and keep what measures need.

    Args:
        settings: As a line of the file of runs holds them.
        data: Its data.
    """
    torch.manual_seed(settings["seed"])
    features = data.hidden or data.train.shape[1]
    top = head(settings, features, data.num_classes)
    trunk = nn.Identity() if not data.hidden else _trunk(data.train.shape[1], data.hidden)
    model = nn.Sequential(trunk, top)
    steps = data.epochs * (len(data.train) // min(BATCH, len(data.train)))
    rate, decay = settings["learning_rate"], settings["weight_decay"]
    train(model, _batches(data, settings["seed"]), steps, rate, weight_decay=decay)
    model.eval()
    accuracy, train_accuracy = (
        _accuracy(model, *part) for part in ((data.test, data.test_labels), (data.train, data.train_labels))
    )
    batches = list(zip(data.test.split(1024), data.test_labels.split(1024), strict=True))
    if isinstance(top, MuMoE):
        found = counterfactuals(model, batches)
        assert found.class_sizes is not None  # the batches have labels
        assert found.correct is not None
        assert found.correct_without is not None
        with torch.no_grad():
            (coefficients,) = zip(*(top.gate(trunk(x)) for x, _ in batches), strict=True)
        counts = found.class_sizes, found.correct, found.correct_without, torch.cat(coefficients).half()
    else:
        nothing = torch.zeros(0, data.num_classes, dtype=torch.int64)
        sizes = data.test_labels.bincount(minlength=data.num_classes)
        counts = sizes, _correct(model, data), nothing, torch.zeros(len(data.test), 0, dtype=torch.float16)
    return Outcome(accuracy, train_accuracy, _size(top), *counts)


def outcome_file(settings: Mapping[str, Any], cache: Path) -> Path:
    """Where the outcome of a run is kept."""
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return cache / "specialisation" / f"{key}.npz"


def _trunk(pixels: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(pixels, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.LayerNorm(hidden))


def _batches(data: Data, seed: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Batches of all training samples in a new order for each pass; the last samples of a pass may be left out."""
    generator = torch.Generator().manual_seed(1000 + seed)
    size = min(BATCH, len(data.train))
    waiting: list[Tensor] = []

    def batch() -> tuple[Tensor, Tensor]:
        if not waiting:
            order = torch.randperm(len(data.train), generator=generator)
            waiting.extend(part for part in order.split(size) if len(part) == size)
        chosen = waiting.pop()
        return data.train[chosen], data.train_labels[chosen]

    return batch


@torch.no_grad()
def _accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    correct = sum(
        int((model(part).argmax(-1) == wanted).sum())
        for part, wanted in zip(x.split(4096), labels.split(4096), strict=True)
    )
    return correct / len(labels)


@torch.no_grad()
def _correct(model: nn.Module, data: Data) -> Tensor:
    return data.test_labels[model(data.test).argmax(-1) == data.test_labels].bincount(minlength=data.num_classes)
