"""One file for the state of a run: tensors in safetensors, everything else as JSON in its header. Nothing unpickles."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = ["read_state", "write_state"]

FORMAT = "factorized-moe training state, version 1"


def write_state(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write a file whole or not at all: an interruption leaves the one that was there.

    Args:
        path: The file; its folder is made if need be.
        tensors: The tensors by name.
        values: What JSON can hold.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    copies = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    content = save(copies, {"format": FORMAT, "values": json.dumps(values)})
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the values of a file.

    Args:
        path: A file that `write_state` wrote.

    Raises:
        ValueError: If it is not one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(f"{path}: not the state of a run of this version; delete it or give another file")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(header["values"])  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not readable as the state of a run: {error}") from error
