"""One file for the state of a run: tensors in safetensors, everything else as JSON in its header. Nothing unpickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from factorized_moe._reading import parse_json, read_tensor_header
from factorized_moe._writing import place_of, write_files

__all__ = ["read_state", "state_bytes", "write_state"]

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
    write_files(path.parent, {path.name: state_bytes(tensors, values)})


def state_bytes(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> bytes:
    """The content of such a file.

    Args:
        tensors: The tensors by name.
        values: What JSON can hold.
    """
    copies = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    return save(copies, {"format": FORMAT, "values": json.dumps(values)})


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the values of a file.

    Args:
        path: A file that `write_state` wrote.

    Raises:
        ValueError: If it is not one.
    """
    file = place_of(path.parent, path.name)
    try:
        header = read_tensor_header(file)
        if header.metadata.get("format") != FORMAT:
            raise ValueError("not the state of a run of this version; delete it or give another file")
        values = parse_json(header.metadata.get("values", ""), "its values")
        if not isinstance(values, dict):
            raise ValueError("its values are no object")
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in header.shapes}, values
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as the state of a run: {error}") from error
