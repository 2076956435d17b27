"""The study's command: ``python -m studies pretraining [--quick] [--only gpt mixer] [--page]``.

Trains a GPT and a Mixer in a dense form, with CP and with tensor rings, at equal parameters, three seeds each; then
looks at what the experts of the trained models do. Every finished run is a line of a file, so a stopped command goes on
where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from studies.common.runs import finish
from studies.pretraining import training
from studies.pretraining.training import FORMS, PROBLEMS

__all__ = ["SEEDS", "main"]

DOCS = Path(__file__).parents[2] / "docs" / "studies"
NAME = "pretraining"
SEEDS = (0, 1, 2)


def main(arguments: list[str] | None = None) -> None:
    """Do what is missing, and write the page.

    Args:
        arguments: Those of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m studies pretraining", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="seconds: figures without meaning, for tests")
    parser.add_argument("--only", choices=sorted(PROBLEMS), nargs="+", help="one of the models only")
    parser.add_argument("--page", action="store_true", help="write the page from the runs that are there, and run none")
    parser.add_argument("--out", type=Path, help="the folder to write to; docs/studies, with --quick results/studies")
    given = parser.parse_args(arguments)
    out = given.out or (training.CACHE if given.quick else DOCS)
    torch.set_num_threads(1)
    problems = given.only or list(PROBLEMS)
    seeds = SEEDS[:2] if given.quick else SEEDS
    wanted = [{"problem": p, "form": form, "seed": seed} for p in problems for seed in seeds for form in FORMS]
    finish(out / f"{NAME}.jsonl", wanted, lambda settings: training.run(settings, given.quick))
