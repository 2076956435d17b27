"""A process that writes until it is killed, for `test_writers`: it imports all once and forks a child for each run.

Each line of its input asks for one run: which writer, the folder, the rename before which the run kills itself (-1: at
none) and the value to write (-1: write 1, 2, 3 and so on without end). It answers with the number of the child, which
writes a line when it begins; then with how the child ended.
"""

import os
import signal
import sys
from contextlib import redirect_stdout
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from factorized_moe import CPMuMoE
from factorized_moe.demo import results
from factorized_moe.demo.classifier import HeadConfig, ImageClassifier, Trunk
from factorized_moe.interpret import record
from factorized_moe.interpret.recording import given
from factorized_moe.interpret.report import ReportData, write_report
from factorized_moe.interpret.report.run_files import save_run
from factorized_moe.surgery import save, save_pretrained
from factorized_moe.surgery.distillation.training_state import write_state
from studies.common.runs import finish as finish_runs


def fill(module: nn.Module, value: int) -> nn.Module:
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(value)
    return module


def write(writer: str, folder: Path, value: int) -> None:
    data = ReportData(title=f"run {value}", layers=[])
    if writer == "pretrained":
        save_pretrained(fill(CPMuMoE(8, 3, [4], rank=2), value), folder)
    elif writer == "model":
        save(nn.Sequential(fill(CPMuMoE(8, 3, [4], rank=2), value)), folder)
    elif writer == "state":
        write_state(folder / "state.safetensors", {"a": torch.full((999,), float(value))}, {"value": value})
    elif writer == "page":
        write_report(folder / "report.html", data)
    elif writer == "run":
        save_run(data, folder / "report.safetensors")
    elif writer == "study":
        finish_runs(folder / "runs.jsonl", [{"k": k} for k in range(value)], lambda settings: settings)
    elif writer == "demo":
        head = HeadConfig(num_classes=2, expert_dims=(4,), decomposition="cp", rank=2)
        model = fill(ImageClassifier(Trunk(), head.build()), value)
        described = {"classes": ("a", "b"), "image_size": (8, 8)}
        results.write_results(folder, True, model, head, described, {"value": value}, b"%d" % value, data)
    elif writer == "recording":
        keep_recording(folder, value)


def keep_recording(folder: Path, batches: int) -> None:
    """Batches of three samples, of which each expert's coefficient is the sample's number; -1: without end."""
    layer = CPMuMoE(1, 1, [4], rank=1, gate=Numbers())
    with record(layer, folder=folder) as log:
        for batch in range(batches) if batches >= 0 else count():
            numbers = torch.arange(3 * batch, 3 * batch + 3)
            layer(numbers[:, None].float())
            log.annotate(ids=numbers)


class Numbers(nn.Module):
    """A gate whose coefficients are its input."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (x.expand(*x.shape[:-1], 4),)


def run(writer: str, folder: Path, fatal: int, value: int) -> None:
    renames = count()

    def fatal_before(original: Any) -> Any:
        def call(path: Path, target: Path) -> Path:
            if next(renames) == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(path, target)

        return call

    Path.rename, Path.replace = fatal_before(Path.rename), fatal_before(Path.replace)  # type: ignore[method-assign]
    os.write(1, b"begun\n")
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # what writers print is no answer
        if value >= 0 or writer == "recording":
            write(writer, folder, value)
        else:
            for number in count(1):
                write(writer, folder, number)


def main() -> None:
    torch.set_num_threads(1)
    given.CHUNK_ELEMENTS = 4 * 5  # five samples of four experts
    for line in sys.stdin:
        writer, folder, fatal, value = line.rstrip("\n").split("\t")
        if (child := os.fork()) == 0:
            status = 1
            try:
                run(writer, Path(folder), int(fatal), int(value))
                status = 0
            finally:
                os._exit(status)
        os.write(1, f"{child}\n".encode())
        os.write(1, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())


if __name__ == "__main__":
    main()
