"""A description of the machine, without its name or any path."""

from __future__ import annotations

import ctypes
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ["describe", "installed", "keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the parameters' numbers in glibc's malloc.h

LIBRARIES = ("torch", "tensorly", "tensorly-torch", "transformers")


def describe() -> dict[str, str]:
    """What the measurements depend on, by name.

    Examples:
        >>> list(describe())[:3]
        ['processor', 'cores', 'threads']
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": f"{_processor()} ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})",
        "cores": str(cores),
        "threads": str(torch.get_num_threads()),
        "system": platform.system(),
        "Python": platform.python_version(),
        **{name: installed(name) or "not installed" for name in LIBRARIES},
    }


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for the next call, as allocators made for servers do (jemalloc, tcmalloc).

    By default it gives the top of the heap back above a threshold that moves with what was freed, and pays for fresh
    pages at the next call: thousands of page faults at 1,024 tokens, in the dense MLP as in the blocks, more or
    fewer by the order of the contenders.

    Returns:
        Whether it was done; other allocators are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.libc_ver()[0] == "glibc" else None
    if mallopt is None:
        return False
    return all(mallopt(name, 2**30) == 1 for name in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))


def installed(name: str) -> str | None:
    """The version of a library, or ``None`` where it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
