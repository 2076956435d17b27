"""Memory: what torch's allocator hands out during a call, exactly, and what a whole process takes at its peak."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.measuring import Call

__all__ = ["kept_bytes", "num_bytes", "peak_bytes", "process_bytes", "process_peak", "saved_bytes"]


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes of some tensors, a shared storage counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def peak_bytes(call: Call) -> int:
    """The most bytes of tensors alive at any moment of a call, beyond what was alive before it.

    Deterministic: a sum over the allocator's own records. Scratch memory inside the matrix library is not in it.

    Examples:
        >>> x = torch.ones(256)
        >>> peak_bytes(lambda: x.exp().sum())
        1028
    """
    return max(_running_total(call)[0], default=0)


def kept_bytes(call: Call) -> int:
    """The bytes still alive after a call while its result is, beyond what was alive before.

    For a forward pass these are the tensors kept for the backward pass, the output included.

    Examples:
        >>> x = torch.ones(256, requires_grad=True)
        >>> kept_bytes(lambda: x.exp().sin())  # exp's value, and the result
        2048
    """
    totals, _ = _running_total(call)
    return totals[-1] if totals else 0


def saved_bytes(call: Call, excluded: Iterable[Tensor]) -> int:
    """The bytes that autograd saves during a call, unique storages, without those of some tensors.

    What a checkpointed function holds is not among them: `kept_bytes` has it.
    """
    known = {t.untyped_storage().data_ptr() for t in excluded}
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)  # also keeps the storage alive, so that no address is seen twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    total = num_bytes(t for t in saved if t.untyped_storage().data_ptr() not in known)
    del result
    return total


def process_bytes(module: str, *arguments: str) -> int:
    """What a process of its own says of its memory: it runs ``python -m module arguments`` and prints bytes last.

    In that process large tensors are mapped one by one, so that one which is freed leaves the process at once.

    Raises:
        RuntimeError: If the process fails.
    """
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16)}  # read by glibc
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"python -m {module} {' '.join(arguments)} failed:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def process_peak() -> int:
    """The most memory that this process has taken so far, in bytes; not to be had on Windows.

    Linux counts in ``ru_maxrss`` what the process took that started this one, so there it is read from ``/proc``.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:")]
        return 1024 * int(line.split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of macOS, in bytes


def _running_total(call: Call) -> tuple[list[int], object]:
    """Bytes beyond those at the start, after each allocation and release; the result, which must outlive the trace."""
    collecting = gc.isenabled()
    gc.disable()  # a collection in between would count as memory released by the call
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            result = call()
    finally:
        if collecting:
            gc.enable()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    totals, total = [], 0
    records = [event for event in events if event.get("name") == "[memory]"]
    for record in sorted(records, key=lambda record: record["args"]["Ev Idx"]):
        total += record["args"]["Bytes"]
        totals.append(total)
    return totals, result
