"""The pictures of the study: curves of loss and accuracy, bits by layer, top patches in their images."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from factorized_moe.interpret import TopSamples
from factorized_moe.interpret.report import Patches
from factorized_moe.interpret.report.plots import plot_top_patches
from recipes.images import read_images
from recipes.mixer.mixing import MixerOptions
from studies.pretraining.parity import NAMES, TITLES, Found

__all__ = ["bits", "curves", "top_patches"]

COLOURS = {"dense": "#777777", "cp": "#1f77b4", "tr": "#d95f02"}
LABEL_COLOURS = ("#1f77b4", "#d95f02", "#2a8f4f")
SHOWN = {"gpt": ("kind", "token", "next token"), "mixer": ("look", "position", "class")}
"""The labels that are drawn."""


def curves(found: Found) -> bytes:
    """Held-out loss and accuracy over steps: the mean of the seeds, and from the least to the largest, as SVG.

    Args:
        found: The runs by problem, form and seed.
    """
    figure = Figure(figsize=(9.0, 3.2 * max(1, len(found))), layout="constrained")
    rows = figure.subplots(max(1, len(found)), 2, squeeze=False)
    kinds = {"losses": "held-out loss", "accuracies": "held-out accuracy"}
    for row, (problem, forms) in zip(rows, found.items(), strict=True):
        for axes, (name, label) in zip(row, kinds.items(), strict=True):
            for form, seeds in forms.items():
                columns = list(zip(*(result[name] for result in seeds.values()), strict=True))
                steps = next(iter(seeds.values()))["steps"]
                axes.plot(steps, [statistics.fmean(c) for c in columns], color=COLOURS[form], label=NAMES[form])
                axes.fill_between(
                    steps, list(map(min, columns)), list(map(max, columns)), color=COLOURS[form], alpha=0.2
                )
            axes.set(title=TITLES[problem], xlabel="step", ylabel=label)
            axes.legend(frameon=False)
    return _saved(figure, "svg")


def bits(looks: Sequence[Mapping[str, Any]]) -> bytes:
    """What experts say about labels, layer by layer, beside gates drawn at random, as SVG; a panel for each form.

    Args:
        looks: The table of experts.
    """
    panels: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in looks:
        key = entry["settings"]["problem"], entry["settings"]["form"]
        panels.setdefault(key, []).append(entry["result"])
    figure = Figure(figsize=(3.3 * max(1, len(panels)), 3.3), layout="constrained")
    row = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    for axes, ((problem, form), results) in zip(row, panels.items(), strict=True):
        numbers = range(1, len(results[0]["layers"]) + 1)
        for label, colour in zip(SHOWN[problem], LABEL_COLOURS, strict=True):
            values = [[layer["labels"][label]["bits"] for layer in result["layers"]] for result in results]
            drawn = [[layer["labels"][label]["random_gate"] for layer in result["layers"]] for result in results]
            columns = list(zip(*values, strict=True))
            axes.plot(numbers, [statistics.fmean(c) for c in columns], color=colour, marker="o", label=label)
            axes.fill_between(numbers, list(map(min, columns)), list(map(max, columns)), color=colour, alpha=0.2)
            axes.plot(numbers, [statistics.fmean(c) for c in zip(*drawn, strict=True)], color=colour, linestyle="--")
        axes.plot([], [], color="#555555", linestyle="--", label="random gate")
        axes.set(title=f"{TITLES[problem]}, {NAMES[form]}", xlabel="layer", ylabel="bits")
        axes.set_ylim(0, 1.35 * axes.get_ylim()[1])  # room for the legend
        axes.set_xticks(list(numbers))
        axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
    return _saved(figure, "svg")


def top_patches(shown: Mapping[str, Any], options: MixerOptions) -> bytes | None:
    """The patches that experts of the first and the last block take most, framed in their images, as PNG.

    None where the images are not installed.

    Args:
        shown: What `studies.pretraining.experts.look` found of the Mixer to be shown.
        options: Those of its run.
    """
    if not options.data.is_dir():
        return None
    _, tested = read_images(options.data)
    across = options.side // options.patch
    wanted = sorted({image for layer in shown["layers"] for e in layer["experts"] for image, _, _ in e["patches"]})
    place_of = {image: place for place, image in enumerate(wanted)}
    pixels = np.stack([np.asarray(tested.open(k * len(tested) // shown["images"])) for k in wanted])
    patches = Patches(pixels, grid=(across, across))
    most = max(len(layer["experts"]) for layer in shown["layers"])
    figure = Figure(figsize=(9.6, 1.35 * most), layout="constrained")
    columns = figure.subfigures(1, len(shown["layers"]), wspace=0.06)
    for column, layer in zip(np.atleast_1d(columns), shown["layers"], strict=True):
        column.suptitle(f"block {int(layer['layer'].split('.')[1]) + 1}", fontsize=11)
        for axes, found in zip(column.subplots(most, 1, squeeze=False)[:, 0], layer["experts"], strict=False):
            samples = [place_of[image] * across**2 + place for image, place, _ in found["patches"]]
            rows = torch.tensor([samples]), torch.tensor([[value for _, _, value in found["patches"]]])
            plot_top_patches(TopSamples(*rows, rows[0], (1,)), patches, 0, axes)
            axes.set_title(
                f"expert {found['expert']}, {found['share']:.0%} of all coefficients", fontsize=9, loc="left"
            )
    return _saved(figure, "png")


def _saved(figure: Figure, kind: str) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return stream.getvalue()
