"""The folder of results: written whole or not at all, and read back as a model.

No file holds anything to be unpickled: the parameters are in safetensors, all else in JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from factorized_moe._reading import check_modes, listed, number, read_json, record_of, text, whole
from factorized_moe._writing import place_of, write_files
from factorized_moe.demo.classifier import HeadConfig, ImageClassifier, Trunk
from factorized_moe.demo.images import LARGEST_SIDE
from factorized_moe.interpret.report import ReportData, report_page
from factorized_moe.interpret.report.run_files import REPORT_FILE, run_bytes

__all__ = ["FILES", "LoadedModel", "check_results_folder", "load_model", "write_results"]

MODEL, CONFIG, METRICS = "model.safetensors", "config.json", "metrics.json"
PICTURE, PAGE = "experts.png", "report.html"

FILES = (MODEL, CONFIG, METRICS, PICTURE, PAGE, REPORT_FILE)
"""The files of a results folder."""

FORMAT = "factorized-moe demo, version 1"
"""Marks a ``config.json`` as written here."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A trained classifier and what its inputs and outputs are.

    Attributes:
        model: Images ``(B, H, W)``, grey levels from 0 to 255, to logits ``(B, C)``; in evaluation mode.
        classes: The classes' names.
        image_size: ``(H, W)`` of the images it was trained on.
    """

    model: ImageClassifier
    classes: tuple[str, ...]
    image_size: tuple[int, int]


def check_results_folder(folder: Path, force: bool) -> None:
    """Make sure, before any work, that results may be written to a folder.

    Args:
        folder: The folder; it need not exist.
        force: Whether earlier results in it may be replaced. Other files in it are left alone either way.

    Raises:
        ValueError: If it is a file, cannot be written to, or is not empty and ``force`` is not given; or if a file
            that would be replaced was not written here.
    """
    place = folder.absolute()
    place = next(path for path in (place, *place.parents) if path.exists())
    if not place.is_dir():
        raise ValueError(f"{folder}: {place} is a file, expected a folder for the results")
    if not os.access(place, os.W_OK):
        raise ValueError(f"{folder}: no permission to write in {place}")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not force:
        raise ValueError(f"{folder}: exists and is not empty; give another --out, or --force to replace its results")
    present = [name for name in FILES if (folder / name).exists()]
    if present and not _is_ours(folder / CONFIG):
        raise ValueError(
            f"{folder}: has a {present[0]} but no {CONFIG} of an earlier demonstration beside it; "
            "not replaced, give another --out"
        )


def write_results(
    folder: Path,
    force: bool,
    model: ImageClassifier,
    head: HeadConfig,
    data: Mapping[str, Any],
    metrics: Mapping[str, Any],
    picture: bytes,
    run: ReportData,
) -> None:
    """Write a folder of results. An interruption leaves what was there before, or the new whole (`write_files`).

    Args:
        folder: The folder, made if need be.
        force: As for `check_results_folder`.
        model: The classifier.
        head: What its head is built from.
        data: What the images were: ``classes`` and ``image_size``.
        metrics: What was measured.
        picture: The content of a PNG file.
        run: What the report page shows; written as the page and as data that `load_run` reads.

    Raises:
        OSError: If the files cannot be written.
        ValueError: As `check_results_folder`, if the folder has changed since.
    """
    check_results_folder(folder, force)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    content = save(tensors)
    config = {"format": FORMAT, "model_sha256": _digest(content), **data, "head": asdict(head)}
    files = {
        MODEL: content,
        CONFIG: _json(config).encode(),
        METRICS: _json(metrics).encode(),
        PICTURE: picture,
        PAGE: report_page(run).encode("ascii"),
        REPORT_FILE: run_bytes(run),
    }
    write_files(folder.absolute(), files)


def load_model(folder: Path | str) -> LoadedModel:
    """Rebuild the classifier of a results folder. Nothing is unpickled.

    Args:
        folder: A folder that ``factorized-moe demo`` wrote.

    Raises:
        ValueError: If a file is missing, damaged, or not written by the demonstration.
    """
    folder = Path(folder)
    config_file, model_file = place_of(folder, CONFIG), place_of(folder, MODEL)
    for file in (config_file, model_file):
        if not file.is_file():
            raise ValueError(f"{file}: no such file; expected the results of `factorized-moe demo` in {folder}")
    config = _read_config(config_file)
    content = model_file.read_bytes()
    if _digest(content) != config["model_sha256"]:
        raise ValueError(
            f"{model_file}: not the file that {CONFIG} describes; it is truncated, damaged or of another run"
        )
    try:
        head = _read_head(config)
        classes = tuple(listed(config["classes"], "classes", text))
        if len(classes) != head.num_classes:
            raise ValueError(f"classes are {len(classes)}, but the head has {head.num_classes}")
        sides = listed(config["image_size"], "image_size", lambda side, name: whole(side, name, 1, LARGEST_SIDE))
        if len(sides) != 2:
            raise ValueError(f"image_size is {sides}, expected a height and a width")
        state = load(content)
        with torch.device("meta"):  # the file's tensors take its place: nothing is allocated for a size that it names
            model = ImageClassifier(Trunk(), head.build("meta"))
        for name, tensor in model.state_dict().items():
            if name in state and state[name].dtype != tensor.dtype:
                raise ValueError(f"{name!r} is {state[name].dtype}, expected {tensor.dtype}")
        model.load_state_dict(state, assign=True)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{config_file}: does not describe the model beside it: {' '.join(str(error).split())}"
        ) from error
    return LoadedModel(model.eval(), classes, (sides[0], sides[1]))


def _read_head(config: Mapping[str, Any]) -> HeadConfig:
    """What the head is built from, of the types that `asdict` writes."""
    keys = ("num_classes", "expert_dims", "decomposition", "rank", "gate", "gate_norm")
    head = {"gate_temperature": 1.0, **record_of(config["head"], "head", keys, ["gate_temperature"])}
    number(head["gate_temperature"], "gate_temperature")
    whole(head["num_classes"], "num_classes", 1, 2**24)
    for name in ("decomposition", "gate"):
        text(head[name], name)
    rank = head["rank"]
    head["rank"] = tuple(listed(rank, "rank", whole)) if isinstance(rank, list) else whole(rank, "rank", 1)
    return HeadConfig(**head | {"expert_dims": check_modes(head["expert_dims"])})


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = read_json(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT or "model_sha256" not in config:
        raise ValueError(f"{file}: not written by `factorized-moe demo`, or by another version of it")
    return config


def _is_ours(file: Path) -> bool:
    try:
        _read_config(file)
    except ValueError:
        return False
    return True


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
