"""The study's command: ``python -m studies low_rank [--quick] [--only mixer language ..] [--page]``.

Every finished run is a line of a file, one file for each model, so a stopped command goes on where it was, and models
can be run side by side. The page and its picture are written anew at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from factorized_moe._writing import write_files
from studies.common.command import command_of, folder_of
from studies.common.runs import finish, read
from studies.low_rank.page import page, picture
from studies.low_rank.subjects import SUBJECTS, Amounts, Subject
from studies.low_rank.truncation import METHODS, kept, measure_moments, truncated

__all__ = ["SHARES", "main", "run"]

NAME = "low-rank"
CACHE = Path("results/studies")
MODELS = Path("results/models/packages")
SHARES = (1.0, 0.98, 0.95, 0.9, 0.75, 0.5, 0.35, 0.25, 0.1)
"""Of the singular vectors of every linear layer."""
RANDOM_SHARES = (0.9, 0.75, 0.5, 0.25)
SEEDS = {"mixer": (0, 1, 2)}
"""Trained anew; a given model has one."""
DRAWS = {"language": (0,), "sentences": (0, 1, 2), "vision": (0, 1, 2)}
"""Of random subspaces, where there is one model."""
QUICK = Amounts(
    mixer_steps=2,
    mixer_images=64,
    windows=2,
    calibration=2,
    tokens=16,
    classes=4,
    known=4,
    asked=2,
    images=40,
    asked_images=20,
    side=28,
)
"""Seconds, for tests: their figures say nothing."""


def run(
    settings: Mapping[str, Any], subject: Subject, moments: Mapping[str, Tensor], exact: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Measure a model at every share, with one method.

    Args:
        settings: As a line of the file holds them.
        subject: The model.
        moments: The second moments of its layers' inputs.
        exact: What it measures unchanged.
    """
    generator = torch.Generator().manual_seed(settings["draw"])
    weights = {name: _read(module) for name, module in subject.layers.items()}
    method = METHODS[settings["method"]]
    factors = {name: method(weight, moments[name], generator) for name, weight in weights.items()}
    numbers = sum(weight.numel() for weight in weights.values())
    shares: dict[str, Any] = {}
    for share in RANDOM_SHARES if settings["method"] == "random" else SHARES:
        ranks = {name: kept(weight, share) for name, weight in weights.items()}
        cut = {name: factors[name].at(rank) for name, rank in ranks.items()}
        with truncated(subject.layers, cut):
            found = subject.measure()
        size = sum(rank * sum(weights[name].shape) for name, rank in ranks.items())
        error = [float((cut[name] - weight).square().sum() / weight.square().sum()) for name, weight in weights.items()]
        shares[f"{share:g}"] = {
            "parameters": size / numbers,
            "weights_kept": 1.0 - sum(error) / len(error),
            **{name: compare(values, exact[name]) for name, values in found.items()},
        }
    result = {
        "layers": len(weights),
        "parameters": numbers,
        "exact": {name: float(values.mean()) for name, values in exact.items()},
        "samples": len(next(iter(exact.values()))),
        "shares": shares,
    }
    if settings["method"] == "singular":
        result["gaussian_kept"] = {f"{share:g}": _gaussian_kept(weights, share) for share in SHARES}
    return result


def compare(values: Tensor, exact: Tensor) -> dict[str, float]:
    """The mean, that of the difference from the unchanged model, and its standard error over samples.

    Args:
        values: A measure's, one for each sample.
        exact: Those of the unchanged model.
    """
    difference = values - exact
    error = float(difference.std() / len(difference) ** 0.5)
    return {"mean": float(values.mean()), "difference": float(difference.mean()), "error": error}


def _read(module: Any) -> Tensor:
    weight = module.weight.detach().clone()
    return weight.T if isinstance(module, torch.nn.Linear) else weight


def _gaussian_kept(weights: Mapping[str, Tensor], share: float) -> float:
    """The share of the squared norm that as many singular vectors of a random matrix of each shape hold."""
    found = []
    for weight in weights.values():
        squares = _gaussian_squares(*weight.shape)
        found.append(float(squares[: kept(weight, share)].sum() / squares.sum()))
    return sum(found) / len(found)


@cache
def _gaussian_squares(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.svdvals(torch.randn(rows, columns, generator=generator)).square()


def main(arguments: list[str] | None = None) -> None:
    """Do what is missing, and write the page.

    Args:
        arguments: Those of the command line.
    """
    parser = command_of("low_rank", __doc__, only=SUBJECTS)
    options = parser.parse_args(arguments)
    out = folder_of(options)
    amounts, runs = QUICK if options.quick else Amounts(), []
    torch.set_num_threads(1)
    for name, make in SUBJECTS.items():
        file = out / f"{NAME}-{name}.jsonl"
        if not options.page and name in (options.only or SUBJECTS):
            for seed in SEEDS.get(name, (0,))[: 1 if options.quick else None]:
                _finish(file, name, seed, make, amounts, options.quick)
        runs += read(file)
    write_files(out, {f"{NAME}.md": page(runs).encode(), f"{NAME}.svg": picture(runs)})


def _finish(file: Path, name: str, seed: int, make: Any, amounts: Amounts, quick: bool) -> None:
    """All runs of one model, which is loaded where one is missing."""
    draws = (seed,) if name in SEEDS else DRAWS[name][: 1 if quick else None]
    wanted = [{"subject": name, "seed": seed, "method": method, "draw": 0} for method in METHODS if method != "random"]
    wanted += [{"subject": name, "seed": seed, "method": "random", "draw": draw} for draw in draws]

    @cache
    def made() -> tuple[Subject, dict[str, Tensor], dict[str, Tensor]]:
        subject = make(CACHE if name in SEEDS else MODELS, amounts, seed)
        return subject, measure_moments(subject.layers, subject.calibrate), subject.measure()

    finish(file, wanted, lambda settings: run(settings, *made()))
