"""A run as the JSON that the page's scripts read: only what is shown, each image and each token once.

Legend: ``N`` experts of one mode, ``K`` top samples kept of each expert, ``W`` tokens around a top token or the width
of an image, ``H`` its height.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factorized_moe.interpret.report.data import ReportData
from factorized_moe.interpret.report.encoding import data_uri, pack
from factorized_moe.interpret.report.layer import PER_EXPERT, LayerSummary
from factorized_moe.interpret.report.samples import Images, Patches, Texts

__all__ = ["run_payload"]

LARGEST_SIDE = 128
"""Pixels of an image in the page, where it is shown at 80 or so: pages of photographs stay of a size to be sent."""

COARSE_SIDE = 64
"""Images up to this many pixels a side are shown with their pixels as squares."""


def run_payload(data: ReportData) -> dict[str, Any]:
    """What the page's scripts need of a run.

    Args:
        data: The run.
    """
    layers = [
        {"slug": slug, **_layer_payload(layer, data)} for slug, layer in zip(data.slugs(), data.layers, strict=True)
    ]
    return {
        "title": data.title,
        "facts": [list(map(str, fact)) for fact in data.facts],
        "classes": list(map(str, data.classes)),
        "inputs": _inputs_payload(data),
        "layers": layers,
    }


def _layer_payload(layer: LayerSummary, data: ReportData) -> dict[str, Any]:
    arrays = {field: getattr(layer, field) for field in PER_EXPERT}
    payload: dict[str, Any] = {field: pack(array) for field, array in arrays.items() if array is not None}
    if data.labels is not None and len(data.labels):
        top_labels = np.where(layer.top_samples >= 0, data.labels[layer.top_samples], -1)
        payload["top_labels"] = pack(top_labels)
    return payload | {
        "name": layer.name,
        "description": layer.description,
        "threshold": layer.threshold,
        "histogram_end": layer.histogram_end,
        "num_samples": layer.num_samples,
        "num_experts": layer.num_experts,
    }


def _inputs_payload(data: ReportData) -> dict[str, Any] | None:
    """The inputs that some expert shows, with their numbers: ``numbers`` is sorted and finds them."""
    if data.inputs is None:
        return None
    shown = [_shown(layer, data.inputs) for layer in data.layers]
    numbers = np.unique(np.concatenate([np.zeros(0, np.int64), *shown]))
    if isinstance(data.inputs, Patches):
        numbers = np.unique(numbers // data.inputs.per_image)
        patches = {"kind": "patches", "grid": list(data.inputs.grid), "prefix": data.inputs.prefix}
        return _images_payload(numbers, data.inputs.pixels) | patches
    if isinstance(data.inputs, Images):
        return _images_payload(numbers, data.inputs.pixels) | {"kind": "images"}
    tokens = list(chain.from_iterable(data.inputs.texts))
    words: dict[str, int] = {}
    word_of_token = [words.setdefault(tokens[number], len(words)) for number in numbers.tolist()]
    return {"kind": "texts", "numbers": pack(numbers), "tokens": pack(np.array(word_of_token, int)), "words": [*words]}


def _images_payload(numbers: NDArray[Any], pixels: NDArray[Any]) -> dict[str, Any]:
    images = [data_uri(_reduced(pixels[number])) for number in numbers.tolist()]
    return {"numbers": pack(numbers), "images": images, "coarse": max(pixels.shape[1:3]) <= COARSE_SIDE}


def _reduced(image: NDArray[Any]) -> NDArray[Any]:
    """An image ``(H, W, ...)`` of at most `LARGEST_SIDE` pixels a side: squares of pixels become their mean."""
    step = -(-max(image.shape[:2]) // LARGEST_SIDE)
    height, width = (max(1, side // step) for side in image.shape[:2])
    if step == 1 or min(image.shape[:2]) < step:
        return image
    squares = image[: height * step, : width * step].reshape(height, step, width, step, *image.shape[2:])
    means: NDArray[Any] = squares.mean(axis=(1, 3)).round().astype(np.uint8)
    return means


def _shown(layer: LayerSummary, inputs: Images | Patches | Texts) -> NDArray[Any]:
    """The numbers of the inputs that the page shows of a layer."""
    top = layer.top_samples.astype(np.int64)
    if not isinstance(inputs, Texts) or layer.context is None:
        return top[top >= 0]
    return layer.context_numbers
