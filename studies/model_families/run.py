"""The command: ``python -m studies model_families [--out FOLDER]``, from the repository's folder; a minute."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import transformers

from factorized_moe._writing import write_files
from studies.model_families.families import DENSE, SPARSE, Family
from studies.model_families.report import page
from studies.model_families.trial import Trial, attempt

ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str] | None = None) -> None:
    """Try every family and write the page."""
    parser = argparse.ArgumentParser(prog="python -m studies model_families", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "studies", help="the folder of the page")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dense, sparse = try_all(DENSE, sparse=False), try_all(SPARSE, sparse=True)
    versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in ("torch", "transformers"))
    stored = {"dense": [asdict(one) for one in dense], "sparse": [asdict(one) for one in sparse], "versions": versions}
    text = json.dumps(stored, indent=1) + "\n"
    files = {"model-families.json": text.encode(), "model-families.md": page(dense, sparse, versions).encode()}
    write_files(options.out, files)
    print(options.out / "model-families.md")


def try_all(families: Sequence[Family], *, sparse: bool) -> list[Trial]:
    """Try families one after the other, and print what came of each."""
    trials = []
    for family in families:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers' own, of tiny settings
            trial = attempt(family, sparse)
        print(f"{trial.name}: {trial.failed or trial.refused or f'works, {trial.difference:.0e}'}", flush=True)
        trials.append(trial)
    return trials
