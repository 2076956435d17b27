"""A report's data in one file, to make pages of later: arrays as safetensors, the rest as JSON in its header."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from factorized_moe.interpret.recording.chunks import write_whole
from factorized_moe.interpret.recording.recording import HEADER_NAME, open_recording
from factorized_moe.interpret.report.data import ReportData
from factorized_moe.interpret.report.layer import PER_EXPERT, LayerSummary
from factorized_moe.interpret.report.samples import Images, Texts

__all__ = ["REPORT_FILE", "load_run", "run_bytes", "save_run"]

REPORT_FILE = "report.safetensors"
FORMAT = "factorized-moe report, version 1"


def save_run(data: ReportData, path: Path | str) -> None:
    """Write a report's data to a file that `load_run` reads.

    Args:
        data: The run.
        path: The file, such as ``results/report.safetensors``; missing folders are made.

    Raises:
        OSError: If the file cannot be written.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save_run(ReportData(title="A run", layers=[]), Path(folder) / "report.safetensors")
        ...     load_run(folder).title
        'A run'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, run_bytes(data))


def run_bytes(data: ReportData) -> bytes:
    """The content of the file that `save_run` writes.

    Args:
        data: The run.
    """
    arrays = {
        f"layers.{place}.{field}": np.ascontiguousarray(array)
        for place, layer in enumerate(data.layers)
        for field in PER_EXPERT
        if (array := getattr(layer, field)) is not None
    }
    if data.labels is not None:
        arrays["labels"] = np.ascontiguousarray(data.labels)
    if isinstance(data.inputs, Images):
        arrays["pixels"] = np.ascontiguousarray(data.inputs.pixels)
    content = {
        "format": FORMAT,
        "title": data.title,
        "facts": [list(fact) for fact in data.facts],
        "classes": list(data.classes),
        "texts": [list(text) for text in data.inputs.texts] if isinstance(data.inputs, Texts) else None,
        "layers": [
            {field.name: getattr(layer, field.name) for field in fields(layer) if field.name not in PER_EXPERT}
            for layer in data.layers
        ],
    }
    return save(arrays, metadata={"report": json.dumps(content)})


def load_run(path: Path | str) -> ReportData:
    """Read a run: a report's file, the folder it is in, or the folder of a recording.

    Args:
        path: The file or the folder, such as the results of ``factorized-moe demo``.

    Raises:
        ValueError: If there is no run, or it cannot be read.
    """
    path = Path(path)
    file = path / REPORT_FILE if path.is_dir() else path
    if file.is_file():
        return _read(file)
    if (path / HEADER_NAME).is_file():
        return ReportData.from_recording(open_recording(path), title=path.resolve().name)
    raise ValueError(
        f"{path}: no run; expected a folder with a {REPORT_FILE}, as `factorized-moe demo` writes it, or a recording"
    )


def _read(file: Path) -> ReportData:
    try:
        with safe_open(file, "numpy") as stored:
            content: dict[str, Any] = json.loads((stored.metadata() or {})["report"])
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # no mapping
        if content["format"] != FORMAT:
            raise ValueError(f"it is of format {content['format']!r}, this library reads {FORMAT!r}")
        return _rebuilt(content, arrays)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: not a report's data: {error}") from error


def _rebuilt(content: dict[str, Any], arrays: dict[str, Any]) -> ReportData:
    inputs: Images | Texts | None = None
    if "pixels" in arrays:
        inputs = Images(arrays["pixels"])
    elif content["texts"] is not None:
        inputs = Texts(content["texts"])
    layers = []
    for place, described in enumerate(content["layers"]):
        found: dict[str, Any] = {field: arrays.get(f"layers.{place}.{field}") for field in PER_EXPERT}
        layers.append(LayerSummary(**described, **found))
    return ReportData(
        title=content["title"],
        layers=layers,
        facts=[(name, value) for name, value in content["facts"]],
        classes=content["classes"],
        labels=arrays.get("labels"),
        inputs=inputs,
    )
