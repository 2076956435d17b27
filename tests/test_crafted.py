"""400 crafted files and 300 malformed arguments by a seed: each gives what is right, or an error that says what is not.

Each batch runs in a process of its own that may map 512 MB more than it had: what asks for more fails within it, and a
hang is ended. What is refused is refused on purpose, by a ``raise`` of the library: see `crafted_runner.judge`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
HANG = 300
"""Seconds for a whole batch, far beyond what it takes."""

FILES = {
    "recording": 50,
    "sparse recording": 50,
    "run": 40,
    "config": 40,
    "layer": 40,
    "block": 20,
    "model": 30,
    "experts": 20,
    "demo": 30,
    "state": 30,
    "idx": 20,
    "plain idx": 10,
    "images": 20,
}
"""How many crafted files of each kind: 400."""

ARGUMENTS = 300

# The limit of memory is Linux's, and so is the unit in which the most memory is told.
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory as Linux does")


def run(*arguments: object) -> list[dict[str, Any]]:
    """What came of the cases of a batch; the first is a valid one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "tests" / "crafted_runner.py", *map(str, arguments)]
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG, check=False)
    except subprocess.TimeoutExpired as error:
        begun = (error.stdout or b"").decode().splitlines()[-1:]
        raise AssertionError(f"hangs: {begun}") from error
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.returncode == 0, (lines[-1:], ended.stderr[-2000:])
    return [line for line in lines if "outcome" in line]


def check(found: list[dict[str, Any]]) -> None:
    """Every case ended as it should, and none took much memory; what took most is shown by ``pytest -rP``."""
    slowest, largest = (max(found, key=lambda case, key=key: case[key]) for key in ("seconds", "grown"))
    sys.stdout.write(
        f"{len(found)} cases, {sum(case['outcome'] == 'refused' for case in found)} refused; "
        f"slowest: {slowest['seconds']} s, {slowest['name']}; most memory: {largest['grown']:,} B, {largest['name']}\n"
    )
    wrong = [case for case in found if case["outcome"] == "wrong"]
    wrong += [case for case in found if case.get("must_refuse") and case["outcome"] == "right"]
    assert not wrong, "\n".join(f"{case['name']}: {case['outcome']}: {case['said']}" for case in wrong)
    assert sum(case["grown"] for case in found) < 512 * 2**20


def check_files(kind: str, count: int, seed: int, folder: Path) -> None:
    valid, *crafted = run("files", kind, count, seed, folder)
    assert valid["first"] == valid["outcome"] == "right", valid
    assert len(crafted) == count
    assert any(case["outcome"] == "refused" for case in crafted)
    check(crafted)


def check_arguments(count: int, seed: int) -> None:
    found = run("arguments", count, seed)
    right = [case for case in found if not case.get("must_refuse")]
    assert right
    assert [case for case in right if case["outcome"] != "right"] == []
    malformed = [case for case in found if case.get("must_refuse")]
    assert len(malformed) == count
    check(malformed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_crafted_files(kind: str, tmp_path: Path) -> None:
    assert sum(FILES.values()) == 400
    check_files(kind, FILES[kind], 1, tmp_path / "files")


@pytest.mark.slow
def test_malformed_arguments() -> None:
    check_arguments(ARGUMENTS, 1)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["recording", "layer", "state"])
def test_some_crafted_files(kind: str, tmp_path: Path) -> None:
    check_files(kind, 12, 0, tmp_path / "files")


@pytest.mark.thorough
def test_some_malformed_arguments() -> None:
    check_arguments(60, 0)
