"""A description of the machine, without its name or any path."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ["describe", "installed"]

LIBRARIES = ("torch", "tensorly", "tensorly-torch", "transformers")


def describe() -> dict[str, str]:
    """What the measurements depend on, by name.

    Example:
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
