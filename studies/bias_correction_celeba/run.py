"""The study's command: ``python -m studies bias_correction_celeba [--quick] [--page]``; some minutes on one core.

Every finished run is a line of a file, so a stopped command goes on where it was. The page is written anew at the end.
The table of attributes, 38 MB with its package, is downloaded at the first time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from factorized_moe._writing import write_files
from studies.bias_correction.correcting import TRAININGS, Parts, Settings, correct
from studies.bias_correction_celeba.cases import CASES, MODELS
from studies.bias_correction_celeba.faces import download, read
from studies.bias_correction_celeba.page import page
from studies.common import runs

__all__ = ["main", "run"]

ROOT = Path(__file__).parents[2]
NAME = "bias-correction-celeba"
SEEDS = range(5)
QUICK = Settings(experts=8, rank=4, width=8, epochs=1, steps=5)


def main(arguments: list[str] | None = None) -> None:
    """Do what is missing, and write the page.

    Args:
        arguments: Those of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m studies bias_correction_celeba", description=__doc__)
    parser.add_argument("--cache", type=Path, default=ROOT / "results" / "celeba", help="where the table is kept")
    parser.add_argument("--quick", action="store_true", help="two seeds of small classifiers: figures without meaning")
    parser.add_argument("--page", action="store_true", help="write the page from the runs that are there, and run none")
    parser.add_argument("--out", type=Path, help="the folder to write to; docs/studies, with --quick results/studies")
    options = parser.parse_args(arguments)
    out = options.out or (ROOT / "results" / "studies" if options.quick else ROOT / "docs" / "studies")
    if not options.page:
        file = download(options.cache)
        seeds, how = (range(2), QUICK) if options.quick else (SEEDS, Settings())
        run(lambda attribute: read(file, attribute), seeds, how, out)
    write_files(out, {f"{NAME}.md": page(runs.read(out / f"{NAME}.jsonl")).encode()})
    print(out / f"{NAME}.md")


def run(people: Callable[[str], Parts], seeds: range, how: Settings, out: Path) -> None:
    """Do the runs that the file of runs lacks.

    Args:
        people: From an attribute to the people, it being their label.
        seeds: The seeds.
        how: The sizes.
        out: The folder of the file.
    """
    torch.set_num_threads(1)
    for attribute in dict.fromkeys(case.attribute for case in CASES):
        parts = people(attribute)
        wanted = [
            {"attribute": attribute, "model": model, "training": training, "seed": seed}
            for seed in seeds
            for model in MODELS
            for training in TRAININGS
        ]
        runs.finish(out / f"{NAME}.jsonl", wanted, lambda settings, parts=parts: correct(settings, parts, CASES, how))
