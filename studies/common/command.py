"""The options that the studies' commands share."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from pathlib import Path

__all__ = ["DOCS", "command_of", "folder_of"]

DOCS = Path(__file__).parents[2] / "docs" / "studies"
SCRATCH = Path("results/studies")
"""Where a quick form writes, whose figures are no results."""


def command_of(
    name: str,
    description: str | None,
    *,
    quick: str = "seconds: figures without meaning, for tests",
    only: Iterable[str] = (),
) -> ArgumentParser:
    """A study's command with ``--quick``, ``--page``, ``--out`` and, if there are parts to choose from, ``--only``.

    Args:
        name: The study's folder.
        description: What the command does.
        quick: What its quick form is.
        only: The names of the parts.
    """
    parser = ArgumentParser(prog=f"python -m studies {name}", description=description)
    parser.add_argument("--quick", action="store_true", help=quick)
    if parts := list(only):
        parser.add_argument("--only", choices=parts, nargs="+", help="some parts only")
    parser.add_argument("--page", action="store_true", help="write the page from the runs that are there, and run none")
    parser.add_argument("--out", type=Path, help="the folder to write to; docs/studies, with --quick results/studies")
    return parser


def folder_of(options: Namespace) -> Path:
    """The folder that a command writes to.

    Args:
        options: What the command was given.
    """
    return options.out or (SCRATCH if options.quick else DOCS)
