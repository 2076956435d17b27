"""Which experts of two runs do the same.

Legend: ``N`` experts of the one layer, ``M`` of the other, ``C`` classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from factorized_moe.interpret.report.data import ReportData
from factorized_moe.interpret.report.encoding import pack
from factorized_moe.interpret.report.layer import LayerSummary

__all__ = ["match_experts", "nearest_experts"]


def match_experts(data: ReportData, other: ReportData) -> list[dict[str, Any]]:
    """The pairs of layers of the same name, each with the nearest expert of the other run for every expert.

    Two runs number their experts as chance had it, so experts are matched by what they take: see `nearest_experts`.

    Args:
        data: The run.
        other: The other run.
    """
    places = {layer.name: place for place, layer in enumerate(other.layers)}
    same_classes = list(data.classes) == list(other.classes)
    matches: list[dict[str, Any]] = []
    for place, layer in enumerate(data.layers):
        if layer.name not in places:
            continue
        match: dict[str, Any] = {"layers": [place, places[layer.name]]}
        twin = other.layers[places[layer.name]]
        if same_classes and layer.class_share is not None and twin.class_share is not None and twin.num_experts:
            nearest, similarity = nearest_experts(layer, twin)
            match |= {"nearest": pack(nearest), "similarity": pack(similarity)}
        matches.append(match)
    return matches


def nearest_experts(layer: LayerSummary, other: LayerSummary) -> tuple[np.ndarray, np.ndarray]:
    """For each expert the expert of another layer that takes the most similar classes.

    Args:
        layer: With a ``class_share``, ``(N, C)``.
        other: The other, with ``(M, C)``.

    Returns:
        The number of the nearest expert, ``(N,)``, and the cosine of the two shares, ``(N,)``: 1 for the same
        distribution over classes, 0 for none in common; NaN for an expert without coefficients.

    Raises:
        ValueError: If a layer has no ``class_share``.
    """
    shares = []
    for summary in (layer, other):
        if summary.class_share is None:
            raise ValueError(f"layer {summary.name!r} has no class_share; summarise it with labels")
        share = summary.class_share.astype(np.float32)
        shares.append(share / np.maximum(np.linalg.norm(share, axis=1, keepdims=True), 1e-12))
    cosine = shares[0] @ shares[1].T  # (N, M)
    nearest = cosine.argmax(axis=1)
    similarity = np.where(shares[0].any(axis=1), cosine.max(axis=1).clip(0, 1), np.nan)
    return nearest, similarity.astype(np.float32)
