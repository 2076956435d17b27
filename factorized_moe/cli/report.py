"""`factorized-moe report`: make a page of a run, to open in a browser."""

from __future__ import annotations

import argparse
from pathlib import Path

from factorized_moe.cli.command import Command

__all__ = ["COMMAND"]


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_path",
        type=Path,
        metavar="RUN",
        help="the folder of a recording, or of the results of `factorized-moe demo`; "
        "or a file of a report's data, report.safetensors",
    )
    parser.add_argument("--compare", type=Path, metavar="OTHER", help="another run, to show both side by side")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page; default: in the folder of RUN, report.html, or comparison.html with --compare",
    )


def _run(options: argparse.Namespace) -> None:
    from factorized_moe.interpret.report import load_run, write_report

    source: Path = options.run_path
    given = vars(options)
    data = load_run(source)
    other = load_run(given["compare"]) if "compare" in given else None
    folder = source if source.is_dir() else source.parent
    default = folder / ("report.html" if other is None else "comparison.html")
    page = write_report(given.get("out", default), data, compare=other)
    print(f"{page}: open it in a browser")


COMMAND = Command(
    "report",
    "make a page of what a run's experts do, to open in a browser",
    "Write one HTML file with everything in it: the layers, their experts, what each responds to, and with --compare "
    "the same of another run beside it.",
    _add_options,
    _run,
)
