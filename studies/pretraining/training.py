"""The two models of the study, trained by their recipes: a GPT of three layers and a Mixer of four blocks.

Both are deeper and train longer than the same recipes do in the study ``recipes``.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recipes.gpt.language import GPTOptions, gpt
from recipes.mixer.mixing import MixerOptions, mixer
from recipes.options import Options
from recipes.recipe import Recipe
from recipes.train import train
from studies.common.text import token_shards

__all__ = ["CACHE", "FORMS", "PROBLEMS", "options_of", "run", "trained"]

CACHE = Path("results/studies")
FORMS = ("dense", "cp", "tr")
SHARED: dict[str, Any] = {"cpu": True, "quiet": True, "log_every": 10, "checkpoint_every": 10**6, "experts": (16,)}
QUICK = {"steps": 4, "evaluate_every": 2, "log_every": 2, "batch": 4, "held_out": 8}

Settings = Mapping[str, Any]


def options_of(settings: Settings, quick: bool, out: Path = Path("unused")) -> Options:
    """The options of one run.

    Args:
        settings: The problem, the form and the seed.
        quick: Whether the run is for tests.
        out: The folder of the run.
    """
    given = {**SHARED, "form": settings["form"], "seed": settings["seed"], "out": out, "evaluate_every": 100}
    small: dict[str, Any] = QUICK if quick else {}
    if settings["problem"] == "gpt":
        size = {"depth": 3, "width": 128, "tokens": 64, "steps": 1000, "batch": 16, "held_out": 512}
        return GPTOptions(**{**given, **size, **small}, data=token_shards(CACHE))
    size = {"depth": 4, "width": 96, "steps": 1200, "batch": 64, "held_out": 2000}
    return MixerOptions(**{**given, **size, **small})


PROBLEMS: dict[str, Callable[[Any], Recipe]] = {"gpt": gpt, "mixer": mixer}
"""From options to a recipe."""


def run(settings: Settings, quick: bool) -> dict[str, Any]:
    """Train one form of one model and keep it; its curves.

    Args:
        settings: The problem, the form and the seed.
        quick: Whether the run is for tests.
    """
    with tempfile.TemporaryDirectory() as place:
        options = options_of(settings, quick, Path(place) / "run")
        recipe = PROBLEMS[settings["problem"]](options)
        train(dataclasses.replace(recipe, finish=lambda model, folder: _keep(model, settings, quick)), options)
        lines = [json.loads(line) for line in (options.out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        result = json.loads((options.out / "results.json").read_text(encoding="utf-8"))
    held_out = [line for line in lines if "held_out_loss" in line]
    last = next(line for line in reversed(lines) if "loss" in line)
    return {
        "loss": result["held_out"]["loss"],
        "accuracy": result["held_out"]["accuracy"],
        "parameters": result["parameters"],
        "steps": [line["step"] for line in held_out],
        "losses": [round(line["held_out_loss"], 5) for line in held_out],
        "accuracies": [round(line["held_out_accuracy"], 5) for line in held_out],
        "experts": [[mode["in_use"], mode["experts"]] for mode in last.get("experts", [])],
    }


def trained(settings: Settings, quick: bool) -> tuple[nn.Module, Recipe, Options]:
    """The model that a run left, in evaluation mode; trained again if it was not kept.

    Args:
        settings: The problem, the form and the seed.
        quick: Whether the run is for tests.
    """
    file = _file(settings, quick)
    if not file.exists():
        run(settings, quick)
    options = options_of(settings, quick)
    recipe = PROBLEMS[settings["problem"]](options)
    model = recipe.build().eval()
    model.load_state_dict(torch.load(file, weights_only=True))
    return model, recipe, options


def _file(settings: Settings, quick: bool) -> Path:
    name = "-".join(str(settings[key]) for key in ("problem", "form", "seed"))
    return CACHE / ("pretraining-quick" if quick else "pretraining") / f"{name}.pt"


def _keep(model: nn.Module, settings: Settings, quick: bool) -> None:
    file = _file(settings, quick)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), file)
