"""Every writer, killed at random moments and at each of its renames: old or new, whole, readable, nothing left."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from factorized_moe._writing import READY, STAGED, finish, place_of
from factorized_moe.demo import load_model
from factorized_moe.interpret import open_recording
from factorized_moe.interpret.report import load_run
from factorized_moe.surgery import from_pretrained, load
from factorized_moe.surgery.distillation.training_state import read_state
from studies.common.runs import read

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the writing process forks")

WRITERS = ("pretrained", "model", "state", "page", "run", "study", "demo")
ANY, EACH = 25, 10
"""Kills at random moments, and at each rename: of the full run, which is marked slow."""


class Process:
    """What `tests/writers_process.py` says it is: one at a time writes, and is waited for."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("writers_process.py"))]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        self.pipes = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
        )

    def write(self, writer: str, folder: Path, fatal: int, value: int, kill_after: float | None = None) -> int:
        """How a run ended: 0, or less than 0, killed."""
        asked, answers, errors = self.pipes.stdin, self.pipes.stdout, self.pipes.stderr
        assert asked is not None
        assert answers is not None
        assert errors is not None
        asked.write(f"{writer}\t{folder}\t{fatal}\t{value}\n")
        asked.flush()
        lines = {answers.readline() for _ in range(2)}  # the child's first and its number, in any order
        assert "begun\n" in lines, errors.read()
        (child,) = lines - {"begun\n"}
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(int(child), signal.SIGKILL)
        return int(answers.readline())

    def end(self) -> None:
        self.pipes.communicate()


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    started = Process()
    yield started
    started.end()


def value_of(writer: str, folder: Path) -> int:
    """The one number that everything in a folder was made from; an error if it is of two, or not whole."""
    if writer == "study":
        runs = read(folder / "runs.jsonl")
        assert [run["settings"]["k"] for run in runs] == list(range(len(runs)))
        return len(runs)
    (value,) = set(values_of(writer, folder))
    return value


def values_of(writer: str, folder: Path) -> Iterator[int]:
    if writer in ("pretrained", "model", "demo"):
        model: nn.Module
        if writer == "pretrained":
            model = from_pretrained(folder)
        elif writer == "model":
            model = load(nn.Sequential(nn.Linear(8, 3)), folder)
        else:
            model = load_model(folder).model
        for tensor in model.parameters():
            yield from map(int, tensor.detach().unique().tolist())
    if writer == "demo":
        yield json.loads(place_of(folder, "metrics.json").read_text())["value"]
        yield int(place_of(folder, "experts.png").read_bytes())
    if writer == "state":
        tensors, values = read_state(folder / "state.safetensors")
        yield from map(int, tensors["a"].unique().tolist())
        yield values["value"]
    if writer in ("page", "demo"):
        page = place_of(folder, "report.html").read_text()
        assert page.rstrip().endswith("</html>")
        yield int(page.partition("<title>run ")[2].partition("<")[0])
    if writer in ("run", "demo"):
        yield int(load_run(folder).title.removeprefix("run "))


def check_kills(process: Process, writer: str, folder: Path, at_any: int, at_each: int) -> None:
    assert process.write(writer, folder, -1, 1) == 0
    files = sorted(path.name for path in folder.iterdir())
    rng = random.Random(writer)
    for _ in range(at_any):
        assert process.write(writer, folder, -1, -1, kill_after=rng.uniform(0.0, 0.3)) == -signal.SIGKILL
        assert value_of(writer, folder) >= 1
    for rename in range(1 + len(files)):
        for _ in range(at_each):
            finish(folder)  # else the first renames are those of what the last kill left
            before = value_of(writer, folder)
            wanted = before + 1 if writer == "study" else 10**4 + before % 2
            assert process.write(writer, folder, rename, wanted) == -signal.SIGKILL
            assert value_of(writer, folder) == (before if rename == 0 else wanted)
    wanted = value_of(writer, folder) + 1
    assert process.write(writer, folder, -1, wanted) == 0
    assert sorted(path.name for path in folder.iterdir()) == files
    assert not any(path.name.startswith((READY, STAGED)) for path in folder.iterdir())
    assert value_of(writer, folder) == wanted


@pytest.mark.parametrize("writer", WRITERS)
def test_killed(process: Process, writer: str, tmp_path: Path) -> None:
    check_kills(process, writer, tmp_path, at_any=2, at_each=1)


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_killed_often(process: Process, writer: str, tmp_path: Path) -> None:
    check_kills(process, writer, tmp_path, ANY, EACH)


def check_recording(process: Process, place: Path, at_any: int, at_each: int) -> None:
    """A recording grows: up to its last whole chunk it is right, and one that is cut off is not called complete."""
    rng = random.Random("recording")
    sizes = []
    for number in range(at_any):
        folder = place / f"any {number}"
        assert process.write("recording", folder, -1, -1, kill_after=rng.uniform(0.0, 0.3)) == -signal.SIGKILL
        if not place_of(folder, "recording.json").exists():
            with pytest.raises(ValueError, match="holds no recording"):
                open_recording(folder)
            continue
        sizes.append(samples_of(folder, complete=False))
    assert max(sizes) > 5
    chunks = [0, 0, 0, 5, 5, 10, 10, 12, 12, 12]  # 12 samples; the header, three chunks, the header: two renames each
    for rename, expected in enumerate(chunks):
        for number in range(at_each):
            folder = place / f"rename {rename} {number}"
            assert process.write("recording", folder, rename, 4) == -signal.SIGKILL
            if rename == 0:
                assert process.write("recording", folder, -1, 4) == 0  # nothing was recorded: the folder is free
                assert not any(path.name.startswith((READY, STAGED)) for path in folder.iterdir())
            else:
                assert samples_of(folder, complete=rename == 9) == expected


def samples_of(folder: Path, complete: bool) -> int:
    recording = open_recording(folder)
    assert recording.complete is complete
    samples = recording.num_samples
    if samples:
        assert torch.equal(recording.ids, torch.arange(samples))
        assert torch.equal(recording.coefficients(), torch.arange(samples)[:, None].expand(samples, 4).float())
    return samples


def test_recording_killed(process: Process, tmp_path: Path) -> None:
    check_recording(process, tmp_path, at_any=3, at_each=1)


@pytest.mark.slow
def test_recording_killed_often(process: Process, tmp_path: Path) -> None:
    check_recording(process, tmp_path, ANY, EACH)


@pytest.mark.parametrize("writer", WRITERS)
def test_full_disk_loses_nothing(writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.writers_process import write

    write(writer, tmp_path, 1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on the disk")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write(writer, tmp_path, 2)
    assert value_of(writer, tmp_path) == 1
    assert not any(path.name.startswith((READY, STAGED)) for path in tmp_path.iterdir())
