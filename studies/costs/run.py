"""The study's command: ``python -m studies costs [--quick] [--counts] [--page]``; minutes, nothing is trained."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe
from factorized_moe._writing import write_files
from studies.costs.counting import at_one_rank, contraction, forms, heads, models
from studies.costs.models import BUDGET, EXPERTS, GRIDS
from studies.costs.page import page
from studies.costs.pictures import against_experts
from studies.costs.timing import SIZES, TINY, built_first, latency

__all__ = ["count", "main", "measure"]

DOCS = Path(__file__).parents[2] / "docs" / "studies"
NAME = "costs"
FORMS_EXPERTS, CONTRACTION = 128, (512, 768, 512)
"""``N`` of the table of formulas; ``N``, features and rank of the table of contraction orders."""


def count(quick: bool) -> dict[str, Any]:
    """All counts, and the sizes of the layers that are timed.

    Args:
        quick: Whether for tests: fewer counts.
    """
    return {
        "forms_experts": FORMS_EXPERTS,
        "forms": forms(FORMS_EXPERTS),
        "models": models(),
        "heads": heads([(n,) for n in EXPERTS], measured=not quick),
        "grids": heads(GRIDS[:2] if quick else GRIDS, measured=False),
        "at_one_rank": at_one_rank(EXPERTS),
        "contraction_experts": CONTRACTION[0],
        "contraction_size": CONTRACTION[1],
        "contraction": contraction(*CONTRACTION),
        "timed": asdict(TINY if quick else SIZES),
    }


def measure(quick: bool) -> dict[str, Any]:
    """All counts and times.

    Args:
        quick: Whether for tests: small layers are timed, and counts are of the paper's sizes all the same.
    """
    begun = time.perf_counter()
    found = count(quick)
    found |= {
        "built": built_first(quick),
        "latency": [row for inputs in (1, 256) for row in latency(quick, inputs)],
        "machine": describe(),
    }
    return {**found, "seconds": round(time.perf_counter() - begun, 1)}


def main(arguments: list[str] | None = None) -> None:
    """Count, measure, and write the page.

    Args:
        arguments: Those of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m studies costs", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="seconds: times without meaning, for tests")
    less = parser.add_mutually_exclusive_group()
    less.add_argument("--page", action="store_true", help="write the page from what is stored, and measure nothing")
    less.add_argument("--counts", action="store_true", help="count anew, and keep the times that are stored")
    parser.add_argument("--out", type=Path, help="the folder to write to; docs/studies, with --quick results/studies")
    given = parser.parse_args(arguments)
    out = given.out or (Path("results/studies") if given.quick else DOCS)
    file = out / f"{NAME}.json"
    torch.set_num_threads(1)
    if given.counts:
        new = json.loads(file.read_text(encoding="utf-8")) | count(given.quick)
    elif not given.page:
        new = measure(given.quick)
    if not given.page:
        write_files(out, {file.name: (json.dumps(new, indent=1) + "\n").encode()})
    found = json.loads(file.read_text(encoding="utf-8"))
    one_mode = [row for row in found["heads"] if len(row["experts"]) == 1]
    picture = against_experts(one_mode, found["at_one_rank"], BUDGET)
    write_files(out, {f"{NAME}.md": page(found).encode(), f"{NAME}.svg": picture})
