"""Every writer, killed at random moments and at each of its renames: old or new, whole, readable, nothing left."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from factorized_moe._writing import READY, STAGED, finish

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills are POSIX signals")]

SCRIPT = """
import os, signal, sys, torch
from pathlib import Path
from factorized_moe import CPMuMoE
from factorized_moe.interpret import record
from factorized_moe.interpret.report import ReportData, write_report
from factorized_moe.interpret.report.run_files import save_run
from factorized_moe.surgery import save, save_pretrained
from factorized_moe.surgery.distillation.training_state import write_state
from studies.common.runs import finish

torch.set_num_threads(1)
kind, folder, fatal, value = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
layer = CPMuMoE(8, 3, [4], rank=2).eval()


def write(value):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(value)
    data = ReportData(title=f"run {value}", layers=[])
    if kind == "pretrained":
        save_pretrained(layer, folder)
    elif kind == "model":
        save(torch.nn.Sequential(layer), folder)
    elif kind == "state":
        write_state(folder / "state.safetensors", {"a": torch.full((999,), float(value))}, {"value": value})
    elif kind == "page":
        write_report(folder / "report.html", data)
    elif kind == "run":
        save_run(data, folder / "report.safetensors")
    elif kind == "study":
        finish(folder / "runs.jsonl", [{"k": k} for k in range(value)], lambda settings: settings)


renames = [0]
def counted(original):
    def call(path, target):
        if fatal >= 0 and (renames[0] == fatal):
            os.kill(os.getpid(), signal.SIGKILL)
        renames[0] += 1
        return original(path, target)
    return call

Path.rename, Path.replace = counted(Path.rename), counted(Path.replace)
print("ready", flush=True)
if value >= 0:
    write(value)
else:
    for number in range(1, 10**6):
        write(number)
"""


def value_of(kind: str, folder: Path) -> int:
    """The one number that everything in a folder was made from; an error if it is of two, or not whole."""
    from torch import nn

    from factorized_moe._writing import place_of
    from factorized_moe.interpret.report import load_run
    from factorized_moe.surgery import from_pretrained, load
    from factorized_moe.surgery.distillation.training_state import read_state
    from studies.common.runs import read

    if kind in ("pretrained", "model"):
        if kind == "pretrained":
            layer: nn.Module = from_pretrained(folder)
        else:
            layer = load(nn.Sequential(nn.Linear(8, 3)), folder)
        (value,) = {float(number) for parameter in layer.parameters() for number in parameter.detach().flatten()}
        return int(value)
    if kind == "state":
        tensors, values = read_state(folder / "state.safetensors")
        assert (tensors["a"] == values["value"]).all()
        return int(values["value"])
    if kind == "page":
        page = place_of(folder, "report.html").read_text()
        assert page.rstrip().endswith("</html>")
        return int(page.partition("<title>run ")[2].partition("<")[0])
    if kind == "run":
        return int(load_run(folder).title.removeprefix("run "))
    runs = read(folder / "runs.jsonl")
    assert [run["settings"]["k"] for run in runs] == list(range(len(runs)))
    return len(runs)


def start(kind: str, folder: Path, fatal: int, value: int) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", SCRIPT, kind, str(folder), str(fatal), str(value)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    assert process.stdout is not None
    process.stdout.readline()
    return process


def end(process: subprocess.Popen[bytes]) -> int:
    process.communicate()
    return process.returncode


@pytest.mark.parametrize("kind", ["pretrained", "model", "state", "page", "run", "study"])
def test_killed(kind: str, tmp_path: Path) -> None:
    assert end(start(kind, tmp_path, -1, 1)) == 0
    files = sorted(path.name for path in tmp_path.iterdir())
    rng = random.Random(kind)
    before = 1
    for _ in range(KILLS):
        process = start(kind, tmp_path, -1, -1)
        time.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        end(process)
        assert value_of(kind, tmp_path) >= 1
    for rename in range(1 + len(files)):
        for _ in range(AT_EACH):
            finish(tmp_path)  # else the first renames are those of what the last kill left
            before = value_of(kind, tmp_path)
            wanted = before + 1 if kind == "study" else 10**4 + before % 2
            assert end(start(kind, tmp_path, rename, wanted)) == -signal.SIGKILL
            assert value_of(kind, tmp_path) == (before if rename == 0 else wanted)
    wanted = value_of(kind, tmp_path) + 1
    assert end(start(kind, tmp_path, -1, wanted)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert not any(path.name.startswith((READY, STAGED)) for path in tmp_path.iterdir())
    assert value_of(kind, tmp_path) == wanted


KILLS, AT_EACH = 25, 10
