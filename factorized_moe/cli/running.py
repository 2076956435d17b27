"""Running the command: the table of sub-commands, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from factorized_moe.cli import demo, descriptions, report

__all__ = ["COMMANDS", "main"]

COMMANDS = (demo.COMMAND, *descriptions.COMMANDS, report.COMMAND)
"""The sub-commands."""

OK, FAILED, INTERRUPTED = 0, 2, 130


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(FAILED, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The exit code: 0, 2 after an error, 130 after an interruption.
    """
    parser = _make_parser()
    try:
        options = parser.parse_args(argv)
    except SystemExit as done:  # argparse leaves this way after --help, --version and errors
        return OK if done.code is None else int(done.code)
    if options.command is None:
        parser.print_help()
        return OK
    prog = f"{parser.prog} {options.command.name}"
    try:
        options.command.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has read enough, as in `factorized-moe list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    return OK


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="factorized-moe",
        description="Multilinear mixtures of experts: many linear experts in one factorised weight tensor.",
    )
    parser.add_argument("--version", action="version", version=f"factorized-moe {version('factorized-moe')}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        added = commands.add_parser(
            command.name,
            help=command.summary,
            description=command.description,
            argument_default=argparse.SUPPRESS,  # defaults are the library's
        )
        command.add_options(added)
        added.set_defaults(command=command)
    return parser
