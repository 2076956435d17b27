"""A report's data as JSON in a form that is written down here, for other programs and pages.

Legend: ``C`` classes, ``B`` bins, ``S`` singular values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from factorized_moe.interpret.report.comparison import match_experts, nearest_experts
from factorized_moe.interpret.report.data import ReportData
from factorized_moe.interpret.report.layer import LayerSummary
from factorized_moe.interpret.report.samples import Images, Patches, Texts

__all__ = ["report_json"]

NUMBERS = ("mean", "largest", "polysemanticity")
ROWS = ("histogram", "class_share", "accuracy_drop", "spectrum")
KINDS = {Images: "images", Patches: "patches", Texts: "texts"}


def report_json(data: ReportData, compare: ReportData | None = None) -> str:
    """All that a report page shows as JSON, for a dashboard of your own; the page's download is the same.

    The text is an object with ``format`` (``"factorized-moe-report"``), ``version`` (1), ``runs``, and for two runs
    ``matches``: for each layer of both the experts of the other run that are nearest, and their similarity.

    A run has a ``title``, ``facts`` (each a ``name`` and a ``value``), ``classes`` (their names, ``C``), the kind of
    its ``inputs`` (``"images"``, ``"patches"``, ``"texts"`` or null) and ``layers``. A layer has a ``name``, a
    ``description``, a ``threshold``, ``num_samples``, ``histogram_end`` and ``experts``, in order of their numbers.

    An expert has its number ``expert``, ``load``, ``mean``, ``largest``, ``histogram`` (``B`` counts) and ``top``, and
    as far as the run holds them ``class_share`` and ``accuracy_drop`` (``C`` each, in the order of ``classes``),
    ``polysemanticity``, ``spectrum`` (``S``) and ``top_equal``; `LayerSummary` says what they are. An entry of ``top``
    has a ``sample``, a ``coefficient``, with labels a ``label`` (a class's name or null), of texts ``tokens`` (each a
    ``text`` and a ``coefficient``), of patches an ``image``, a ``row`` and a ``column`` (-1 before the patches).

    Numbers have the seven digits that 32 bits hold; what is not finite is null. Pixels are not included.

    Args:
        data: The run.
        compare: Another run, whose data follow.

    Examples:
        >>> json.loads(report_json(ReportData(title="A run", layers=[])))["runs"][0]["title"]
        'A run'
    """
    runs = [data] if compare is None else [data, compare]
    content: dict[str, Any] = {"format": "factorized-moe-report", "version": 1, "runs": [_run(run) for run in runs]}
    if compare is not None:
        content["matches"] = _matches(data, compare)
    return json.dumps(content, allow_nan=False)


def _run(data: ReportData) -> dict[str, Any]:
    tokens = [token for text in data.inputs.texts for token in text] if isinstance(data.inputs, Texts) else []
    return {
        "title": data.title,
        "facts": [{"name": str(name), "value": str(value)} for name, value in data.facts],
        "classes": list(map(str, data.classes)),
        "inputs": None if data.inputs is None else KINDS[type(data.inputs)],
        "layers": [
            {
                "name": layer.name,
                "description": layer.description,
                "threshold": layer.threshold,
                "num_samples": layer.num_samples,
                "histogram_end": layer.histogram_end,
                "experts": [_expert(layer, expert, data, tokens) for expert in range(layer.num_experts)],
            }
            for layer in data.layers
        ],
    }


def _expert(layer: LayerSummary, expert: int, data: ReportData, tokens: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"expert": expert, "load": int(layer.load[expert])}
    for name in NUMBERS:
        if (array := getattr(layer, name)) is not None:
            found[name] = _seven_digits(array[expert])
    if layer.top_equal is not None:
        found["top_equal"] = int(layer.top_equal[expert])
    for name in ROWS:
        if (array := getattr(layer, name)) is not None:
            found[name] = _rounded(array[expert])
    ranks = np.flatnonzero(layer.top_samples[expert] >= 0).tolist()
    found["top"] = [_input(layer, expert, rank, data, tokens) for rank in ranks]
    return found


def _input(layer: LayerSummary, expert: int, rank: int, data: ReportData, tokens: list[str]) -> dict[str, Any]:
    sample, value = int(layer.top_samples[expert, rank]), _seven_digits(layer.top_coefficients[expert, rank])
    found: dict[str, Any] = {"sample": sample, "coefficient": value}
    if data.labels is not None and len(data.labels):
        label = int(data.labels[sample])
        found["label"] = str(data.classes[label]) if label >= 0 else None
    if isinstance(data.inputs, Texts):
        found["tokens"] = [{"text": tokens[sample], "coefficient": value}]
        if layer.context is not None:
            around = layer.context[expert, rank]
            first = sample - len(around) // 2
            found["tokens"] = [
                {"text": tokens[first + place], "coefficient": _seven_digits(around[place])}
                for place in np.flatnonzero(~np.isnan(around)).tolist()
            ]
    if isinstance(data.inputs, Patches):
        found |= dict(zip(("image", "row", "column"), data.inputs.place(sample), strict=True))
    return found


def _matches(data: ReportData, other: ReportData) -> list[dict[str, Any]]:
    matches = []
    for match in match_experts(data, other):
        first, second = (run.layers[place] for run, place in zip((data, other), match["layers"], strict=True))
        found: dict[str, Any] = {"layer": first.name}
        if "nearest" in match:
            nearest, similarity = nearest_experts(first, second)
            found |= {"nearest": nearest.tolist(), "similarity": _rounded(similarity)}
        matches.append(found)
    return matches


def _rounded(values: Iterable[Any]) -> list[float | int | None]:
    return [_seven_digits(value) for value in values]


def _seven_digits(value: Any) -> float | int | None:
    """A number as a page holds it: whole, or in 32 bits."""
    number = float(np.float32(value))
    if isinstance(value, np.integer) or number.is_integer():
        return int(value)
    return float(f"{number:.7g}") if math.isfinite(number) else None
