"""The study's command: ``python -m studies recipes [--quick] [--only gpt mixer head]``.

Each recipe trains in its dense form, with CP and with tensor rings, by its own loop; forms of one
seed see the same batches. Every finished run is a line of a file, so a stopped command goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from factorized_moe._writing import write_files
from recipes.gpt.language import GPTOptions, gpt
from recipes.head.backbones import HeadOptions
from recipes.head.fine_tuning import head
from recipes.mixer.mixing import MixerOptions, mixer
from recipes.options import Options
from recipes.recipe import Recipe, cross_entropy
from recipes.train import train
from studies.common.command import command_of, folder_of
from studies.common.glosses import WORDNET, group
from studies.common.runs import finish, read
from studies.common.text import token_shards
from studies.real_models.sources import SENTENCE_MODEL, unpack
from studies.recipes.page import curves, page

__all__ = ["FORMS", "SEEDS", "main"]

NAME = "recipes"
CACHE = Path("results/studies")
MODELS = Path("results/models")
FORMS = ("dense", "cp", "tr")
SEEDS = (0, 1, 2)
TRIED: dict[str, dict[str, dict[str, Any]]] = {
    "gpt": {"layer gate": {"gate_norm": "layer"}, "twice the learning rate": {"learning_rate": 7.2e-3}},
    "head": {
        "16 experts": {"experts": (16,)},
        "layer gate": {"gate_norm": "layer"},
        "a third of the learning rate": {"learning_rate": 3.3e-3},
        "half of the vector dropped": {"dropout": 0.5},
    },
}
"""What was tried with CP where it was worse than the dense form."""
LAYERS = 2
TIMED_STEPS = 15
STEPS_IN_PROCESSES = 60
SHARED = {"cpu": True, "quiet": True, "log_every": 10, "evaluate_every": 40, "checkpoint_every": 10_000}


def options_of(problem: str, form: str, seed: int, out: Path, quick: bool) -> Options:
    """The options of one run.

    Args:
        problem: The recipe.
        form: ``"dense"`` or a decomposition.
        seed: The seed.
        out: The folder of the run.
        quick: Whether the run is for tests.
    """
    given: dict[str, Any] = {**SHARED, "form": form, "seed": seed, "out": out}
    small: dict[str, Any] = (
        {"steps": 4, "evaluate_every": 2, "log_every": 2, "batch": 4, "held_out": 8} if quick else {}
    )
    match problem:
        case "gpt" | "gpt_narrow":
            spread = 0.02 if problem == "gpt_narrow" else 0.0
            size = {"depth": 2, "tokens": 64, "steps": 400, "batch": 16, "held_out": 512, "experts": (16,)}
            return GPTOptions(**{**given, **size, **small}, data=token_shards(CACHE), spread=spread)
        case "mixer":
            size = {"depth": 2, "steps": 400, "batch": 64, "held_out": 2000, "experts": (16,)}
            return MixerOptions(**{**given, **size, **small})
        case _:
            size = {"steps": 160, "batch": 32, "tokens": 16, "held_out": 478, "experts": (64,), "learning_rate": 1e-2}
            frozen = {"backbone": str(_encoder()), "backbone_rate": 0.0, "data": _lines()}
            return HeadOptions(**{**given, **size, **small, **frozen})


PROBLEMS: dict[str, Callable[[Any], Recipe]] = {"gpt": gpt, "mixer": mixer, "head": head, "gpt_narrow": gpt}
"""From options to a recipe; the last is the GPT with first weights of 0.02, GPT-2's own at six times the width."""


def run(settings: Mapping[str, Any], quick: bool) -> dict[str, Any]:
    """Train one form of one recipe; what its log says.

    Args:
        settings: The problem, the form and the seed.
        quick: Whether the run is for tests.
    """
    with tempfile.TemporaryDirectory() as place:
        options = options_of(settings["problem"], settings["form"], settings["seed"], Path(place) / "run", quick)
        if "tried" in settings:
            options = dataclasses.replace(options, **TRIED[settings["problem"]][settings["tried"]])
        loss = train(PROBLEMS[settings["problem"]](options), options)
        lines = [json.loads(line) for line in (options.out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        result = json.loads((options.out / "results.json").read_text(encoding="utf-8"))
    held_out = [line for line in lines if "held_out_loss" in line]
    last = next(line for line in reversed(lines) if "loss" in line)
    return {
        "loss": loss,
        "accuracy": result["held_out"]["accuracy"],
        "parameters": result["parameters"],
        "steps": [line["step"] for line in held_out],
        "curve": [round(line["held_out_loss"], 5) for line in held_out],
        "experts": [[mode["in_use"], mode["experts"]] for mode in last.get("experts", [])],
    }


def throughput(problem: str, quick: bool) -> dict[str, Any]:
    """Seconds of a step of each form, taken in turns in this process on the same batches.

    Args:
        problem: The recipe.
        quick: Whether for tests.
    """
    made: dict[str, tuple[nn.Module, Any]] = {}
    for form in FORMS:
        options = options_of(problem, form, 0, Path("unused"), quick)
        recipe = PROBLEMS[problem](options)
        model = recipe.build()
        made[form] = model, torch.optim.AdamW(recipe.groups(model, 0.1), lr=1e-4)
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    steps = 2 if quick else TIMED_STEPS
    for step in range(steps + 1):
        drawn = [recipe.training(step * options.batch + k) for k in range(options.batch)]
        x, labels = torch.utils.data.default_collate(drawn)
        for form, (model, optimizer) in made.items():
            begun = time.perf_counter()
            cross_entropy(model(x), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step:  # the first call plans
                seconds[form].append(time.perf_counter() - begun)
    size = options.batch * recipe.units
    return {
        "unit": recipe.unit,
        "per_second": {form: size / statistics.median(values) for form, values in seconds.items()},
        "ratios": {
            form: sorted(dense / own for dense, own in zip(seconds["dense"], seconds[form], strict=True))
            for form in FORMS[1:]
        },
    }


def processes(form: str, number: int, quick: bool) -> float:
    """Tokens per second of the GPT in so many processes of one thread, by its own log.

    Args:
        form: The form.
        number: How many processes.
        quick: Whether for tests.
    """
    with tempfile.TemporaryDirectory() as place:
        options, data = options_of("gpt", form, 0, Path(place) / "run", quick), token_shards(CACHE)
        steps = 4 if quick else STEPS_IN_PROCESSES
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", number]
        command = [*launch, "-m", "recipes.gpt", "--cpu", "--quiet", "--out", options.out, "--data", data]
        command += ["--form", form, "--depth", 2, "--tokens", 64, "--steps", steps, "--log-every", 2, "--held-out", 16]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        lines = [json.loads(line) for line in (options.out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    return statistics.median(speeds[1:])


def _encoder() -> Path:
    """The first two layers of the sentence encoder, made once: all of it takes five times as long."""
    folder = CACHE / "encoder"
    if not (folder / "config.json").exists():
        from transformers import AutoModel, AutoTokenizer

        source = unpack(SENTENCE_MODEL, MODELS)
        model = AutoModel.from_pretrained(source, dtype=torch.float32)
        model.encoder.layer = model.encoder.layer[:LAYERS]
        model.config.num_hidden_layers = LAYERS
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def _lines() -> Path:
    """WordNet's noun glosses with the concept above them, made once."""
    file = CACHE / "glosses.tsv"
    if not file.exists():
        with WORDNET.open(encoding="latin-1") as stream:
            classes = group(stream)
        text = "".join(f"{label}\t{gloss}\n" for label, glosses in enumerate(classes) for gloss in glosses)
        write_files(CACHE, {file.name: text.encode()})
    return file


def main(arguments: list[str] | None = None) -> None:
    """Do what is missing, and write the page.

    Args:
        arguments: Those of the command line.
    """
    parser = command_of("recipes", __doc__, only=sorted(PROBLEMS))
    given = parser.parse_args(arguments)
    out = folder_of(given)
    file, speeds = out / f"{NAME}.jsonl", out / f"{NAME}-throughput.jsonl"
    torch.set_num_threads(1)
    for problem in [] if given.page else given.only or list(PROBLEMS):
        seeds = SEEDS[:2] if given.quick else SEEDS
        wanted = [{"problem": problem, "form": form, "seed": seed} for seed in seeds for form in FORMS]
        wanted += [
            {"problem": problem, "form": "cp", "seed": seed, "tried": change}
            for change in TRIED.get(problem, {})
            for seed in seeds
        ]
        finish(file, wanted, lambda settings: run(settings, given.quick))
        if problem != "gpt_narrow":  # as fast as the other
            finish(speeds, [{"problem": problem}], lambda settings: throughput(settings["problem"], given.quick))
    if not given.page and (not given.only or "gpt" in given.only):
        pairs = [{"form": form, "processes": number} for form in FORMS[:2] for number in (1, 2)]
        finish(speeds, pairs, lambda s: {"tokens_per_second": processes(s["form"], s["processes"], given.quick)})
    runs = read(file)
    sizes = {
        problem: dataclasses.asdict(options_of(problem, "dense", 0, Path("unused"), given.quick))
        for problem in dict.fromkeys(entry["settings"]["problem"] for entry in runs)
    }
    write_files(out, {f"{NAME}.md": page(runs, read(speeds), sizes).encode(), f"{NAME}.svg": curves(runs)})
