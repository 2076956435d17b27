"""All three recipes at their smallest, in two processes, one after the other: what ``make recipes`` does.

Some minutes on 2 cores. The figures say that everything runs, not what can be reached.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["RUNS", "main"]

RUNS = {
    "gpt": ("--depth", "1", "--steps", "300", "--tokens", "64", "--held-out", "128"),
    "mixer": ("--depth", "1", "--steps", "200", "--held-out", "1000"),
    "head": ("--depth", "1", "--steps", "200", "--held-out", "1000", "--backbone-rate", "3e-3"),
}
"""The recipes with their options."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them, and say how long each took.

    Args:
        arguments: Those of the command line; the process's own by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/recipes"), help="the folder of the runs")
    parser.add_argument("--processes", type=int, default=2, help="how many processes train together")
    given = parser.parse_args(arguments)
    for name, options in RUNS.items():
        out, begun = given.out / name, time.perf_counter()
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", given.processes]
        command = [*launch, "-m", f"recipes.{name}", "--cpu", "--out", out, *options]
        if status := subprocess.run(list(map(str, command)), check=False).returncode:
            print(f"error: recipes.{name} ended with status {status}", file=sys.stderr)
            return status
        found = json.loads((out / "results.json").read_text(encoding="utf-8"))["held_out"]
        seconds = time.perf_counter() - begun
        print(f"{name}: loss {found['loss']:.3f}, accuracy {found['accuracy']:.3f}, {seconds:.0f} s; {out}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
