"""More experts, more special ones? ``python -m studies specialisation [--only DATA ...] [--quick] [--page]``.

Two to three hours on one core, and 250 MB of downloads the first time. Every finished run is a line of a file, so a
stopped command goes on where it was; one command at a time writes to a folder. What the heads did is kept beside the
downloads, so measures can be changed without training again. The page is written anew at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from studies.common.command import command_of, folder_of
from studies.common.runs import finish
from studies.specialisation.data import DATA, Data, made_up
from studies.specialisation.heads import Outcome, outcome, outcome_file
from studies.specialisation.measuring import measures
from studies.specialisation.plan import RATE_SEED, contender, quick, rate_runs, runs

__all__ = ["main", "run"]

NAME = "specialisation"
CACHE = Path("results/studies")


def run(settings: Mapping[str, Any], data: Data, cache: Path) -> dict[str, Any]:
    """Train one head, or take what is kept of it, and measure it.

    Args:
        settings: As a line of the file holds them.
        data: Its data.
        cache: Where outcomes are kept.
    """
    if settings["seed"] == RATE_SEED:
        return {"accuracy": outcome(settings, data.validation()).accuracy}
    file = outcome_file(settings, cache)
    if not file.exists():
        outcome(settings, data).save(file)
    return measures(Outcome.load(file), data.test_labels)


def do(wanted: list[dict[str, Any]], folder: Path, data_of: Callable[[str], Data], cache: Path) -> None:
    """Do the runs that are missing, and before them those that choose their learning rates.

    Args:
        wanted: Settings without learning rates.
        folder: Where the tables are, one for each data.
        data_of: From a name to data.
        cache: Where outcomes are kept.
    """

    def one(settings: Mapping[str, Any]) -> dict[str, Any]:
        return run(settings, data_of(settings["data"]), cache)

    best: dict[str, float] = {}
    for settings in wanted:
        shared = contender(settings)
        key = json.dumps(shared)
        if key not in best:
            tried = finish(table(folder, shared["data"]), rate_runs(settings), one)
            best[key] = max(tried, key=lambda entry: entry["result"]["accuracy"])["settings"]["learning_rate"]
        finish(table(folder, settings["data"]), [{**settings, "learning_rate": best[key]}], one)


def table(folder: Path, name: str) -> Path:
    """The file of the runs of some data."""
    return folder / f"{name.replace(' ', '-')}.jsonl"


def _data(cache: Path, small: bool, name: str) -> Data:
    return made_up() if small else DATA[name](cache)


def main(arguments: list[str] | None = None) -> None:
    """Do what is missing, and write the page.

    Args:
        arguments: Those of the command line.
    """
    parser = command_of(
        "specialisation", __doc__, quick="seconds, on made-up data: figures without meaning", only=sorted(DATA)
    )
    parser.add_argument("--runs", action="store_true", help="run, and write no page")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where downloads and outcomes are kept")
    options = parser.parse_args(arguments)
    out = folder_of(options)
    torch.set_num_threads(1)
    for name in [] if options.page else options.only or DATA:
        wanted = [settings for settings in (quick() if options.quick else runs()) if settings["data"] == name]
        do(wanted, out / NAME, partial(_data, options.cache, options.quick), options.cache)
    if not options.runs:
        from studies.specialisation.page import write

        write(out, options.cache)
