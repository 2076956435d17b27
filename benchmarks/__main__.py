"""The command: ``python -m benchmarks [--only SECTION ...] [--quick] [--out FOLDER]``."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    activation,
    block,
    contraction,
    copies,
    cost_model,
    counterfactuals,
    entmax_profile,
    figure,
    gate_page,
    interpret,
    layer,
    machine,
    measured_plans,
    measures,
    parts,
    processors,
    report,
    scaling,
    single_token,
    training_memory,
)
from benchmarks.gate_page import FIGURE
from benchmarks.measuring import FULL, QUICK, Effort
from benchmarks.rows import Row
from benchmarks.sections import Section, Sections
from factorized_moe._writing import write_files

ROOT = Path(__file__).parents[1]

SECTIONS: dict[str, tuple[str, Callable[[Effort], Iterator[Row]]]] = {
    "block": (block.TITLE, block.rows),
    "parts": (parts.TITLE, parts.rows),
    "layer": (layer.TITLE, layer.rows),
    "single_token": (single_token.TITLE, single_token.rows),
    "activation": (activation.TITLE, activation.rows),
    "entmax": (entmax_profile.TITLE, lambda effort: iter(())),
    "contraction": (contraction.TITLE, contraction.rows),
    "memory": (training_memory.TITLE, training_memory.rows),
    "scaling": (scaling.TITLE, scaling.rows),
    "counterfactuals": (counterfactuals.TITLE, counterfactuals.rows),
    "interpret": (interpret.TITLE, interpret.rows),
    "measures": (measures.TITLE, measures.rows),
    "cost_model": ("The planner's constants", lambda effort: iter(())),
    "copies": (copies.TITLE, lambda effort: iter(())),
    "measured_plans": (measured_plans.TITLE, lambda effort: iter(())),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the sections, and write the page anew after each."""
    options = _parser().parse_args(arguments)
    effort = QUICK if options.quick else FULL
    chosen = options.only or list(SECTIONS)
    # A quick run's figures are no results: they never replace the ones in docs/ unless asked to.
    out = options.out or (ROOT / "results" / "benchmarks" if options.quick else ROOT / "docs")
    flags = ["--only", *options.only] if options.only else []
    command = shlex.join(["python", "-m", "benchmarks", *flags, *(["--quick"] if options.quick else [])])
    torch.manual_seed(0)
    machine.keep_freed_memory()
    start = time.perf_counter()
    for name in chosen:
        begun = time.perf_counter()
        section = measure(name, effort, command)
        write(out, name, section)
        print(f"{name}: {time.perf_counter() - begun:.0f} s")
    print(f"{time.perf_counter() - start:.0f} s in all; {out / report.PAGE}")


def measure(name: str, effort: Effort, command: str) -> Section:
    """Measure one section, printing each row."""
    title, rows = SECTIONS[name]
    measured: list[Row] = []
    for row in rows(effort):
        measured.append(row)
        print(f"  {row.case} | {row.contender} | forward {row.forward} | training {row.training}", flush=True)
    extra: dict[str, Any] = {}
    if name == "scaling":
        extra["points"] = [asdict(point) for point in scaling.points(effort)]
    if name == "entmax":
        extra["table"] = entmax_profile.markdown(entmax_profile.profiles(effort))
    if name == "cost_model":
        extra = cost_model.constants(cost_model.fit(effort))
        print(f"  {extra}")
    if name == "copies":
        extra["table"] = copies.markdown(list(copies.compare(effort)))
    if name == "measured_plans":
        extra["table"] = measured_plans.markdown(list(measured_plans.compare(effort)))
    print(extra.get("table", ""))
    return Section(title, command, machine.describe(), measured, name != "contraction", extra, processors.today())


def write(out: Path, name: str, section: Section) -> None:
    """Put one section into the measurements' file, and make the page and the figure from the file."""
    file = out / "benchmarks.json"
    before = report.load(file)
    others = processors.moved(processors.load(out / processors.FILE), before, name, section)
    stored = {**before, name: section}
    sections = {known: stored[known] for known in SECTIONS if known in stored}
    files = {file.name: report.text(sections), **pages(sections, others)}
    if others or (out / processors.FILE).exists():
        files |= {processors.FILE: processors.text(others), processors.PAGE: processors.markdown(sections, others)}
    write_files(out, {name: text.encode() for name, text in files.items()})
    if name == "scaling":
        points = [scaling.Point(**point) for point in section.extra["points"]]
        if not figure.draw(points, out / FIGURE):
            print("  the figure is not drawn: matplotlib is not installed (pip install 'factorized-moe[bench]')")


def pages(sections: Sections, others: processors.Others) -> dict[str, str]:
    """The pages of what was measured last, by file."""
    gate = {name: section for name, section in sections.items() if name in gate_page.SECTIONS}
    rest = {name: section for name, section in sections.items() if name not in gate}
    found = {report.PAGE: report.markdown(rest, others, gate, gate_page.LINK if gate else "")}
    return found | ({gate_page.PAGE: gate_page.markdown(gate)} if gate else {})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="a few rounds of each case, nothing compiled")
    parser.add_argument("--out", type=Path, help="the folder to write to; docs, with --quick results/benchmarks")
    return parser


if __name__ == "__main__":
    main()
