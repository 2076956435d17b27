"""A folder of two files: ``config.json`` and ``model.safetensors``. Written whole or not at all; nothing unpickles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from factorized_moe._reading import read_json
from factorized_moe._writing import place_of, write_files

__all__ = ["CONFIG", "WEIGHTS", "digest", "read_folder", "write_folder"]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FORMAT = "factorized-moe, version 1"


def write_folder(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write a config and tensors, both or none: an interruption leaves what was there, or the new ones (`write_files`).

    A tensor that has several names is written once; its other names go into the config.

    Args:
        folder: The folder; it is made if need be. Other files in it are left alone.
        config: What JSON can hold.
        state: The tensors by name.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If a tensor is on the meta device, or the folder has a ``config.json`` of something else.
    """
    _check_free(folder)
    kept, aliases = _without_aliases(state)
    try:
        library = version("factorized-moe")
    except PackageNotFoundError:  # a source tree that is not installed
        library = "unknown"
    config = {"format": FORMAT, "library_version": library, **config, "aliases": aliases}
    text = json.dumps(config, indent=2) + "\n"
    header = {"format": "pt", "config": digest(config)}
    write_files(folder, {WEIGHTS: lambda path: save_file(kept, path, header), CONFIG: text.encode()})


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors, on the CPU, under all their names.

    Args:
        folder: A folder that `write_folder` wrote.

    Raises:
        FileNotFoundError: If one of the files is missing.
        ValueError: If one is damaged, or they do not belong together.
    """
    config_file, weights_file = (place_of(folder, name) for name in (CONFIG, WEIGHTS))
    for name, file in ((CONFIG, config_file), (WEIGHTS, weights_file)):
        if not file.is_file():
            raise FileNotFoundError(f"{folder} has no {name}; give the folder that save wrote")
    try:
        config = read_json(config_file)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is damaged: {error}") from error
    if isinstance(config, dict) and "model_type" in config and "format" not in config:
        raise ValueError(
            f"{config_file} is not of the format {FORMAT!r} but the config of a Hugging Face model; import "
            "factorized_moe.surgery.hugging_face and read it with the model's from_pretrained"
        )
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{folder / CONFIG} is not of the format {FORMAT!r}")
    try:
        with safe_open(weights_file, framework="pt") as opened:
            header = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged or no safetensors file: {error}") from error
    if header.get("config") != digest(config):
        raise ValueError(f"{folder / CONFIG} and {WEIGHTS} are not of one save; save again, or fetch both anew")
    aliases = config.get("aliases")
    if not isinstance(aliases, dict) or not all(isinstance(name, str) and name in state for name in aliases.values()):
        raise ValueError(f"{folder / CONFIG} is damaged: its aliases name tensors that {WEIGHTS} lacks: {aliases!r}")
    return config, {**state, **{name: state[same] for name, same in aliases.items()}}


def _check_free(folder: Path) -> None:
    """Refuse a folder of a Hugging Face model: without its config AutoModel would no longer know it."""
    file = place_of(folder, CONFIG)
    if not file.is_file():
        return
    try:
        present = read_json(file)
    except ValueError:  # damaged: nothing is lost
        return
    if isinstance(present, dict) and "model_type" in present and present.get("format") != FORMAT:
        raise ValueError(
            f"{folder} holds the {CONFIG} of a Hugging Face model; give a folder of its own, or call the model's "
            "save_pretrained, which keeps layers of experts"
        )


def digest(value: Any) -> str:
    """A fingerprint of what JSON can hold, whatever its spaces and the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _without_aliases(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, in memory of its own, and for every further name the first."""
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        if tensor.is_meta:
            raise ValueError(f"{name!r} is on the meta device and has no values to save")
        storage = tensor.untyped_storage().data_ptr()
        key = (storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        whole = tensor.detach().contiguous()
        kept[name] = whole.clone(memory_format=torch.contiguous_format) if storage in storages else whole
        storages.add(storage)
    return kept, aliases
