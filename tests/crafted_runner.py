"""Runs one batch of crafted cases in a process of its own, under a limit of memory, and prints what came of each.

``crafted_runner.py files KIND COUNT SEED FOLDER`` or ``crafted_runner.py arguments COUNT SEED``.
"""

from __future__ import annotations

import json
import linecache
import random
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from tests import crafted_files, malformed_arguments  # noqa: E402

ROOM = 512 * 2**20
DOCUMENTED = (ValueError, TypeError, OSError, ModuleNotFoundError, FloatingPointError)


def judge(call: Callable[[], object]) -> tuple[str, str]:
    """How a call ends: "right", "refused" or "wrong", and what was said.

    A refusal is an error of a documented type with a message, raised on purpose: by a ``raise`` of the library, or by
    the operating system. One that comes up from within an expression is none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except BaseException as error:  # noqa: BLE001  # whatever comes is judged
        last = traceback.extract_tb(error.__traceback__)[-1]
        line = linecache.getline(last.filename, last.lineno or 0).strip()
        ours = "factorized_moe" in Path(last.filename).parts and line.startswith("raise")
        said = f"{type(error).__name__}: {str(error)[:300]} [{Path(last.filename).name}:{last.lineno} {line[:80]}]"
        allowed = type(error) in DOCUMENTED or isinstance(error, OSError | ValueError)
        deliberate = ours or (isinstance(error, OSError) and error.errno is not None)
        return ("refused" if allowed and deliberate and len(str(error)) > 10 else "wrong"), said
    return "right", ""


def limit_memory() -> None:
    """From here on the process may map half a gigabyte more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, resource.RLIM_INFINITY))


def peak() -> int:
    """The most memory that the process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def report(name: str, call: Callable[[], object], **more: Any) -> None:
    start, before = time.perf_counter(), peak()
    print(json.dumps({"starts": name}), flush=True)  # noqa: T201  # what the test reads
    outcome, said = judge(call)
    seconds = round(time.perf_counter() - start, 3)
    found = {"name": name, "outcome": outcome, "said": said, "seconds": seconds, "grown": peak() - before, **more}
    print(json.dumps(found), flush=True)  # noqa: T201  # as above


def run_files(kind: str, count: int, seed: int, folder: Path) -> None:
    valid = crafted_files.written(kind, folder / "valid")
    read = crafted_files.KINDS[kind].read
    read_valid, _ = judge(lambda: read(copied(valid, folder / "first")))
    report(f"{kind} as it was", lambda: read(copied(valid, folder / "second")), first=read_valid)
    limit_memory()
    for number in range(count):
        rng = random.Random(f"{kind} {seed} {number}")
        what, content = crafted_files.crafted(kind, valid, rng)
        place = copied(content, folder / str(number))
        report(f"{kind} {number}: {what}", lambda place=place: read(place))


def copied(content: crafted_files.Content, folder: Path) -> Path:
    crafted_files.put(content, folder)
    return folder


def run_arguments(count: int, seed: int) -> None:
    for name, call in malformed_arguments.valid_calls().items():
        report(f"{name} as it should be called", call)
    limit_memory()
    for name, call in malformed_arguments.malformed_calls(count, seed):
        report(name, call, must_refuse=True)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    if sys.argv[1] == "files":
        run_files(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    else:
        run_arguments(int(sys.argv[2]), int(sys.argv[3]))
