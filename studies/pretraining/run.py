"""The study's command: ``python -m studies pretraining [--quick] [--only gpt mixer] [--page]``.

Trains a GPT and a Mixer in a dense form, with CP and with tensor rings, at equal parameters, three seeds each; then
looks at what the experts of the trained models do. Every finished run is a line of a file, so a stopped command goes on
where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from factorized_moe._writing import write_files
from studies.common.command import DOCS, command_of, folder_of
from studies.common.runs import finish, read
from studies.pretraining import training
from studies.pretraining.experts import look
from studies.pretraining.page import page
from studies.pretraining.parity import by_problem
from studies.pretraining.pictures import bits, curves, top_patches
from studies.pretraining.training import FORMS, PROBLEMS, Settings

__all__ = ["SEEDS", "main"]

NAME = "pretraining"
SEEDS = (0, 1, 2)


def main(arguments: list[str] | None = None) -> None:
    """Do what is missing, and write the page.

    Args:
        arguments: Those of the command line.
    """
    parser = command_of("pretraining", __doc__, only=sorted(PROBLEMS))
    given = parser.parse_args(arguments)
    out = folder_of(given)
    torch.set_num_threads(1)
    files = {name: out / f"{NAME}{ending}" for name, ending in (("runs", ".jsonl"), ("looks", "-experts.jsonl"))}
    seeds = SEEDS[:2] if given.quick else SEEDS
    wanted = [
        {"problem": problem, "form": form, "seed": seed}
        for problem in given.only or PROBLEMS
        for seed in seeds
        for form in FORMS
    ]
    if not given.page:
        finish(files["runs"], wanted, lambda settings: training.run(settings, given.quick))
        with_experts = [settings for settings in wanted if settings["form"] != "dense"]
        finish(files["looks"], with_experts, lambda settings: look(settings, given.quick, _is_shown(settings)))
    runs, looks = (sorted(read(file), key=_order) for file in files.values())
    options = {
        problem: training.options_of({"problem": problem, "form": "dense", "seed": 0}, given.quick)
        for problem in dict.fromkeys(entry["settings"]["problem"] for entry in runs)
    }
    text = page(runs, read(DOCS / "recipes.jsonl"), looks, options)
    pictures = {f"{NAME}.svg": curves(by_problem(runs)), f"{NAME}-bits.svg": bits(looks)}
    for entry in looks:
        if entry["settings"]["problem"] == "mixer" and "shown" in entry["result"]:
            pictures[f"{NAME}-patches.png"] = top_patches(entry["result"]["shown"], options["mixer"])
    write_files(out, {f"{NAME}.md": text.encode(), **{name: made for name, made in pictures.items() if made}})


def _is_shown(settings: Settings) -> bool:
    """Whether examples of this model's experts are on the page: chosen before any was seen."""
    return settings["form"] == "cp" and settings["seed"] == 0


def _order(entry: Mapping[str, Any]) -> tuple[int, int, int]:
    settings = entry["settings"]
    return list(PROBLEMS).index(settings["problem"]), FORMS.index(settings["form"]), settings["seed"]
