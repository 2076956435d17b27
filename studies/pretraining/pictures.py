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
    kinds = {"losses": "held-out loss, nats", "accuracies": "held-out accuracy, percent"}
    for row, (problem, forms) in zip(rows, found.items(), strict=True):
        for axes, (name, label) in zip(row, kinds.items(), strict=True):
            for form, seeds in forms.items():
                scale = 100.0 if name == "accuracies" else 1.0
                columns = list(zip(*([scale * value for value in r[name]] for r in seeds.values()), strict=True))
                steps = next(iter(seeds.values()))["steps"]
                axes.plot(steps, [statistics.fmean(c) for c in columns], color=COLOURS[form], label=NAMES[form])
                axes.fill_between(
                    steps, list(map(min, columns)), list(map(max, columns)), color=COLOURS[form], alpha=0.2
                )
            axes.set(title=TITLES[problem], xlabel="step", ylabel=label)
            axes.legend(frameon=False)
    return _saved(figure, "svg")


def bits(looks: Sequence[Mapping[str, Any]]) -> bytes:
    """What experts say about labels, layer by layer, beside gates drawn at random, as SVG.

    A row for each problem, a panel for each form.

    Args:
        looks: The table of experts.
    """
    panels: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for entry in looks:
        problem, form = entry["settings"]["problem"], entry["settings"]["form"]
        panels.setdefault(problem, {}).setdefault(form, []).append(entry["result"])
    across = max(map(len, panels.values()), default=1)
    figure = Figure(figsize=(4.5 * across, 3.3 * max(1, len(panels))), layout="constrained")
    rows = figure.subplots(max(1, len(panels)), across, squeeze=False, sharey="row")
    for row, (problem, forms) in zip(rows, panels.items(), strict=False):
        for axes, (form, results) in zip(row, forms.items(), strict=False):
            numbers = range(1, len(results[0]["layers"]) + 1)
            for label, colour in zip(SHOWN[problem], LABEL_COLOURS, strict=True):
                values, drawn = (
                    list(zip(*([layer["labels"][label][gate] for layer in r["layers"]] for r in results), strict=True))
                    for gate in ("bits", "random_gate")
                )
                axes.plot(numbers, [statistics.fmean(c) for c in values], color=colour, marker="o", label=label)
                axes.fill_between(numbers, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.2)
                axes.plot(numbers, [statistics.fmean(c) for c in drawn], color=colour, linestyle="--")
            axes.plot([], [], color="#555555", linestyle="--", label="dashed: random gate")
            axes.set(title=f"{TITLES[problem]}, {NAMES[form]}", xlabel="layer", ylabel="bits")
            axes.set_xticks(list(numbers))
            axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
        row[0].set_ylim(0, 1.35 * row[0].get_ylim()[1])  # room for the legends
    return _saved(figure, "svg")


def top_patches(shown: Mapping[str, Any], options: MixerOptions) -> bytes | None:
    """The patches that experts of the first and the last layer take most, framed in their images, as PNG.

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
        column.suptitle(f"layer {int(layer['layer'].split('.')[1]) + 1}", fontsize=11)
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
