"""The study's command: ``python -m studies hierarchy [--quick] [--only head mixer] [--page]``.

Every finished run is a line of a file, one file for each problem, so a stopped command goes on where it was, and two
problems can be run side by side. The page and its picture are written anew at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._writing import write_files
from factorized_moe.interpret import Force, intervene, measure_usage
from studies.common.command import command_of, folder_of
from studies.common.problems import PROBLEMS, Size
from studies.common.runs import finish, read
from studies.common.training import evaluate, train
from studies.hierarchy.contenders import (
    CONTENDERS,
    PROBLEM_SIZES,
    QUICK_SIZES,
    Contender,
    GridForm,
    freeze_mode,
    rated_by,
)
from studies.hierarchy.page import page, picture

__all__ = ["main", "run", "use_of_modes"]

NAME = "hierarchy"
RATES = {"head": (1e-3, 3e-3, 1e-2), "mixer": (1e-2,)}
"""The Mixer's is what every contender of the study `many_experts` chose among three for the same model."""
RATE_SEED = 100
"""Learning rates are chosen with this seed, on the half of the held-out samples that is not reported."""
SEEDS = (0, 1, 2)
WATCHED = 1024
"""Samples whose coefficients are averaged."""


def run(settings: Mapping[str, Any], sizes: Mapping[str, Size]) -> dict[str, Any]:
    """Train one contender on one problem, and measure it.

    Args:
        settings: As a line of the file holds them.
        sizes: How large each problem's model is, and how long it trains.
    """
    contender, size = Contender.of(settings), sizes[settings["problem"]]
    torch.manual_seed(settings["seed"])
    generator = torch.Generator().manual_seed(1000 + settings["seed"])
    problem = PROBLEMS[settings["problem"]](size, GridForm.of(contender), generator)
    if contender.frozen:
        freeze_mode(problem.model)
    half = slice(None, None, 2) if settings["seed"] == RATE_SEED else slice(1, None, 2)
    x, labels = (part[half] for part in problem.held_out)
    train(problem.model, problem.batch, size.steps, settings["learning_rate"])
    loss, accuracy = evaluate(problem.model.eval(), x, labels)
    found = {"loss": loss, "accuracy": accuracy, "samples": len(x)}
    found["parameters"] = sum(p.numel() for p in problem.model.parameters())
    if contender.expert_dims and settings["seed"] != RATE_SEED:
        found |= use_of_modes(problem.model, x, labels)
    return found


def use_of_modes(model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Any]:
    """What each expert mode does in a trained model, in all its layers together.

    A mode is made idle by giving all inputs the mean of its coefficients over inputs.

    Args:
        model: From an input to logits; its layers have equally many modes.
        x: The inputs.
        labels: Their labels.

    Returns:
        ``"modes"``: for each mode the experts in use and all, the bits between input and expert, and the accuracy
        without it; ``"constant"``: the accuracy with all modes idle.
    """
    usage = list(measure_usage(model, x[:WATCHED]))
    idle: dict[int, list[Force]] = {}
    for part in usage:
        means = part.means.to(x.dtype)
        idle.setdefault(part.mode, []).append(Force(range(part.num_experts), means, layer=part.layer, mode=part.mode))
    modes = []
    for mode, forced in idle.items():
        with intervene(model, *forced):
            without = evaluate(model, x, labels)[1]
        parts = [part for part in usage if part.mode == mode]
        modes.append(
            {
                "experts": sum(part.num_experts for part in parts),
                "in_use": sum(part.num_in_use for part in parts),
                "bits": sum(part.mutual_information for part in parts) / len(parts),
                "without": without,
            }
        )
    with intervene(model, *(force for forced in idle.values() for force in forced)):
        constant = evaluate(model, x, labels)[1]
    return {"modes": modes, "constant": constant}


def wanted(problem: str, file: Path, sizes: Mapping[str, Size], quick: bool) -> list[dict[str, Any]]:
    """The settings of all runs of a problem that are reported, each with the learning rate that was chosen for it.

    Args:
        problem: Its name.
        file: The table of runs; what the choice needs is added.
        sizes: As for `run`.
        quick: Whether for tests.
    """
    best: dict[Contender, float] = {}
    found = []
    for contender in CONTENDERS[problem]:
        judge = rated_by(contender)
        if judge not in best and len(RATES[problem]) == 1:
            (best[judge],) = RATES[problem]
        elif judge not in best:
            rates = RATES[problem][: 1 if quick else None]
            tried = [{"problem": problem, **judge.settings, "seed": RATE_SEED, "learning_rate": rate} for rate in rates]
            entries = finish(file, tried, lambda settings: run(settings, sizes))
            best[judge] = min(entries, key=lambda entry: entry["result"]["loss"])["settings"]["learning_rate"]
        found.append({"problem": problem, **contender.settings, "learning_rate": best[judge]})
    seeds = SEEDS[: 1 if quick else None]
    return [{**settings, "seed": seed} for seed in seeds for settings in found]


def main(arguments: list[str] | None = None) -> None:
    """Do what is missing, and write the page.

    Args:
        arguments: Those of the command line.
    """
    parser = command_of("hierarchy", __doc__, only=sorted(PROBLEM_SIZES))
    options = parser.parse_args(arguments)
    out = folder_of(options)
    sizes = QUICK_SIZES if options.quick else PROBLEM_SIZES
    torch.set_num_threads(1)
    files = {problem: out / f"{NAME}-{problem}.jsonl" for problem in PROBLEM_SIZES}
    for problem in [] if options.page else options.only or PROBLEM_SIZES:
        file = files[problem]
        finish(file, wanted(problem, file, sizes, options.quick), lambda settings: run(settings, sizes))
    runs = [entry for file in files.values() for entry in read(file)]
    write_files(out, {f"{NAME}.md": page(runs).encode(), f"{NAME}.svg": picture(runs)})
