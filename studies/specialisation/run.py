"""More experts, more special ones? ``python -m studies specialisation [--only DATA ...] [--quick] [--page]``.

Two to three hours on one core, and 250 MB of downloads the first time. Every finished run is a line of a file, so a
stopped command goes on where it was; two commands with different data may run at the same time. What the heads did is
kept beside the downloads, so measures can be changed without training again. The page is written anew at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from studies.common.runs import finish
from studies.specialisation.data import DATA, Data, made_up
from studies.specialisation.heads import Outcome, outcome
from studies.specialisation.measuring import measures
from studies.specialisation.plan import RATE_SEED, contender, quick, rate_runs, runs

__all__ = ["main", "run"]

DOCS = Path(__file__).parents[2] / "docs" / "studies"
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


def outcome_file(settings: Mapping[str, Any], cache: Path) -> Path:
    """Where the outcome of a run is kept."""
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return cache / NAME / f"{key}.npz"


def do(wanted: list[dict[str, Any]], file: Path, data: Callable[[], Data], cache: Path) -> None:
    """Do the runs of one file that it lacks, those first that choose a learning rate.

    Args:
        wanted: Settings without learning rates.
        file: The table.
        data: Gives the data.
        cache: Where outcomes are kept.
    """
    one = partial(_run, data=data, cache=cache)
    best: dict[str, float] = {}
    for settings in wanted:
        key = json.dumps(contender(settings))
        if key not in best:
            tried = finish(file, rate_runs(settings), one)
            best[key] = max(tried, key=lambda entry: entry["result"]["accuracy"])["settings"]["learning_rate"]
        finish(file, [{**settings, "learning_rate": best[key]}], one)


def _run(settings: Mapping[str, Any], data: Callable[[], Data], cache: Path) -> dict[str, Any]:
    return run(settings, data(), cache)


def main(arguments: list[str] | None = None) -> None:
    """Do what is missing, and write the page.

    Args:
        arguments: Those of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m studies specialisation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="seconds, on made-up data: figures without meaning")
    parser.add_argument("--only", choices=sorted(DATA), nargs="+", help="some data only")
    parser.add_argument("--page", action="store_true", help="write the page from the runs that are there, and run none")
    parser.add_argument("--runs", action="store_true", help="run, and write no page")
    parser.add_argument("--out", type=Path, help="the folder to write to; docs/studies, with --quick results/studies")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where downloads and outcomes are kept")
    options = parser.parse_args(arguments)
    out = options.out or (CACHE if options.quick else DOCS)
    torch.set_num_threads(1)
    for name in [] if options.page else options.only or DATA:
        wanted = [settings for settings in (quick() if options.quick else runs()) if settings["data"] == name]
        data = made_up if options.quick else partial(DATA[name], options.cache)
        do(wanted, out / NAME / f"{name.replace(' ', '-')}.jsonl", data, options.cache)
    if not options.runs:
        from studies.specialisation.page import write

        write(out, options.cache)
