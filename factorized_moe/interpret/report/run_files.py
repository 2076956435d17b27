"""A report's data in one file, to make pages of later: arrays as safetensors, the rest as JSON in its header."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from factorized_moe._reading import listed, number, parse_json, read_tensor_header, record_of, text, whole
from factorized_moe._validation import check_path
from factorized_moe._writing import place_of
from factorized_moe.interpret.recording.chunks import write_whole
from factorized_moe.interpret.recording.header import HEADER_NAME
from factorized_moe.interpret.recording.opening import open_recording
from factorized_moe.interpret.report.data import ReportData
from factorized_moe.interpret.report.layer import PER_EXPERT, LayerSummary
from factorized_moe.interpret.report.samples import Images, Patches, Texts

__all__ = ["REPORT_FILE", "load_run", "run_bytes", "save_run"]

REPORT_FILE = "report.safetensors"
FORMAT = "factorized-moe report, version 1"
DTYPES = ("F16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64")
NEEDED = ("load", "mean", "largest", "histogram", "top_samples", "top_coefficients")
"""The arrays that every layer has."""


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
    if isinstance(data.inputs, Images | Patches):
        arrays["pixels"] = np.ascontiguousarray(data.inputs.pixels)
    content = {
        "format": FORMAT,
        "title": data.title,
        "facts": [list(map(str, fact)) for fact in data.facts],
        "classes": list(map(str, data.classes)),
        "texts": [list(text) for text in data.inputs.texts] if isinstance(data.inputs, Texts) else None,
        "patches": [*data.inputs.grid, data.inputs.prefix] if isinstance(data.inputs, Patches) else None,
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
    path = check_path("path", path)
    file = place_of(path, REPORT_FILE) if path.is_dir() else place_of(path.parent, path.name)
    if file.is_file():
        return _read(file)
    if place_of(path, HEADER_NAME).is_file():
        return ReportData.from_recording(open_recording(path), title=path.resolve().name)
    raise ValueError(
        f"{path}: no run; expected a folder with a {REPORT_FILE}, as `factorized-moe demo` writes it, or a recording"
    )


def _read(file: Path) -> ReportData:
    try:
        header = read_tensor_header(file)
        content = parse_json(header.metadata.get("report", ""), "its description")
        if isinstance(content, dict) and content.get("format") != FORMAT:
            raise ValueError(f"it is of format {content.get('format')!r}, this library reads {FORMAT!r}")
        needed = ("format", "title", "facts", "classes", "texts", "layers")
        record_of(content, "its description", needed, optional=("patches",))
        layers = listed(content["layers"], "layers", _layer)
        known = {f"layers.{place}.{field}" for place in range(len(layers)) for field in PER_EXPERT}
        if unknown := sorted(header.shapes.keys() - known - {"labels", "pixels"}):
            raise ValueError(f"it holds {unknown[0]!r}, which it does not describe")
        for name, dtype in header.dtypes.items():
            if dtype not in DTYPES:
                raise ValueError(f"{name!r} is of type {dtype}, expected one of {', '.join(DTYPES)}")
        with safe_open(file, "numpy") as stored:
            arrays = {name: stored.get_tensor(name) for name in header.shapes}
        return _rebuilt(content, layers, arrays)
    except (SafetensorError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: not a report's data: {error}") from error


def _layer(value: Any, name: str) -> dict[str, Any]:
    """What a file says of a layer beside its arrays."""
    needed = ("name", "threshold", "num_samples", "description", "histogram_end")
    record_of(value, name, needed)
    for key in ("name", "description"):
        text(value[key], f"{key} of {name}")
    number(value["threshold"], f"threshold of {name}", 0)
    whole(value["num_samples"], f"num_samples of {name}")
    if number(value["histogram_end"], f"histogram_end of {name}", 0) == 0:
        raise ValueError(f"histogram_end of {name} is 0")
    return dict(value)


def _fact(value: Any, name: str) -> tuple[str, str]:
    if len(pair := listed(value, name, text)) != 2:
        raise ValueError(f"{name} has {len(pair)} strings, expected a name and a value")
    return pair[0], pair[1]


def _three(value: Any) -> list[int]:
    if len(found := listed(value, "patches", lambda size, name: whole(size, name))) != 3:
        raise ValueError(f"patches has {len(found)} numbers, expected the grid's rows, its columns and the prefix")
    return found


def _rebuilt(content: dict[str, Any], described: list[dict[str, Any]], arrays: dict[str, Any]) -> ReportData:
    inputs: Images | Patches | Texts | None = None
    if content["texts"] is not None:
        inputs = Texts(listed(content["texts"], "texts", lambda tokens, name: listed(tokens, name, text)))
    if "pixels" in arrays:
        inputs = Images(arrays["pixels"])
        if content.get("patches") is not None:
            rows, columns, prefix = _three(content["patches"])
            inputs = Patches(arrays["pixels"], (rows, columns), prefix)
    layers = []
    for place, layer in enumerate(described):
        found: dict[str, Any] = {field: arrays.get(f"layers.{place}.{field}") for field in PER_EXPERT}
        if missing := [field for field in NEEDED if found[field] is None]:
            raise ValueError(f"it lacks {missing[0]} of layer {layer['name']!r}")
        layers.append(LayerSummary(**layer, **found))
    return ReportData(
        title=text(content["title"], "title"),
        layers=layers,
        facts=listed(content["facts"], "facts", _fact),
        classes=listed(content["classes"], "classes", text),
        labels=arrays.get("labels"),
        inputs=inputs,
    )
