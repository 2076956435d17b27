"""A plot for each measure of experts, drawn with matplotlib on axes that are given or made; and shaded text as HTML.

Legend: ``N`` experts of one mode or of the whole grid, ``n`` samples, ``H`` height, ``W`` width of an image in pixels.

No plot changes matplotlib's state: axes that are made belong to a figure of their own, ``axes.figure``, which shows
itself in a notebook and is saved with ``axes.figure.savefig(...)``.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from factorized_moe.interpret.measures.activity import Load
from factorized_moe.interpret.measures.coactivation import Coactivation
from factorized_moe.interpret.measures.histogram import Histogram
from factorized_moe.interpret.measures.labelling import LabelCounts, LabelSpecialisation
from factorized_moe.interpret.measures.polysemanticity import Polysemanticity
from factorized_moe.interpret.measures.ranking import TopSamples
from factorized_moe.interpret.measures.spectra import ExpertSpectra
from factorized_moe.interpret.report.samples import Patches

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "plot_clarity",
    "plot_coactivation",
    "plot_entropy",
    "plot_histogram",
    "plot_labels",
    "plot_load",
    "plot_polysemanticity",
    "plot_spectra",
    "plot_top_images",
    "plot_top_patches",
    "shade_tokens",
]

COLOUR = "#1c5d8c"
SECOND_COLOUR = "#b4581a"
FRAME = "#ffd400"


def plot_load(load: Load, axes: Axes | None = None) -> Axes:
    """The samples of each expert, the busiest expert first.

    Args:
        load: From `measure_load`.
        axes: Where to draw; new axes by default.

    Returns:
        The axes.

    Examples:
        >>> load = Load(torch.tensor([3, 0, 5]), torch.rand(3), torch.rand(3), num_samples=8, threshold=0.5, grid=(3,))
        >>> axes = plot_load(load)
        >>> [int(bar.get_height()) for bar in axes.patches]
        [5, 3, 0]
    """
    axes = _axes(axes)
    counts = load.counts.sort(descending=True).values.tolist()
    axes.bar(range(len(counts)), counts, width=1.0, color=COLOUR)
    dead = len(load.dead())
    axes.set(
        xlabel=f"experts, busiest first ({dead} of {len(counts)} without samples)",
        ylabel="samples" + (f" with a coefficient of at least {load.threshold:g}" if load.threshold else ""),
    )
    return axes


def plot_histogram(histogram: Histogram, axes: Axes | None = None) -> Axes:
    """The coefficients by size, and the samples by their largest one, on a logarithmic scale.

    Args:
        histogram: From `measure_histogram`.
        axes: Where to draw; new axes by default.

    Returns:
        The axes.
    """
    axes = _axes(axes)
    edges = histogram.edges.numpy()
    axes.stairs(histogram.counts.numpy(), edges, fill=True, color=COLOUR, alpha=0.6, label="coefficients above 0")
    axes.stairs(histogram.largest_counts.numpy(), edges, color=SECOND_COLOUR, label="largest coefficient of a sample")
    axes.set_yscale("symlog", linthresh=1)  # a count of 0 has a place on it
    axes.set(xlabel="coefficient", ylabel="count", ylim=(0, None))
    axes.legend(frameon=False)
    return axes


def plot_labels(counts: LabelCounts, axes: Axes | None = None) -> Axes:
    """How the coefficients of each expert divide among the classes: experts across, ordered by their commonest class.

    Args:
        counts: From `count_labels`.
        axes: Where to draw; new axes by default.

    Returns:
        The axes. A column without coefficients is left blank.
    """
    axes = _axes(axes)
    sums = (counts.means.nan_to_num() * counts.class_sizes).T  # (C, N)
    shares = (sums / sums.sum(dim=0)).numpy()
    best = np.nan_to_num(shares, nan=-1.0)
    order = np.lexsort((-best.max(axis=0), best.argmax(axis=0)))
    _matrix(axes, shares[:, order], "share of the expert's coefficients")
    axes.set_yticks(range(len(counts.class_names)), counts.class_names, parse_math=False)  # "$5" is a name
    if len(order) <= 40:
        axes.set_xticks(range(len(order)), [str(expert) for expert in order])
    axes.set(xlabel="expert")
    return axes


def plot_entropy(found: LabelSpecialisation, axes: Axes | None = None) -> Axes:
    """The entropy of the classes of each expert's samples against their number; dead experts are left out.

    Args:
        found: From `measure_label_specialisation`.
        axes: Where to draw; new axes by default.

    Returns:
        The axes. The line is the whole data set's entropy.
    """
    return _against_count(found, found.entropy, found.baseline_entropy, "entropy of the classes, bits", axes)


def plot_clarity(found: LabelSpecialisation, axes: Axes | None = None) -> Axes:
    """The share of the commonest class among each expert's samples against their number; dead experts are left out.

    Args:
        found: From `measure_label_specialisation`.
        axes: Where to draw; new axes by default.

    Returns:
        The axes. The line is the share of the commonest class in the whole data set.
    """
    return _against_count(found, found.clarity, found.baseline_clarity, "share of the commonest class", axes)


def plot_coactivation(coactivation: Coactivation, axes: Axes | None = None) -> Axes:
    """Of the samples of each expert, down, the share on which each other one is active too, across.

    Args:
        coactivation: From `measure_coactivation`.
        axes: Where to draw; new axes by default.

    Returns:
        The axes. A row of an expert without samples is left blank.
    """
    axes = _axes(axes)
    _matrix(axes, coactivation.conditional.numpy(), "share of the row's samples")
    axes.set(xlabel="also active: expert", ylabel="expert")
    return axes


def plot_spectra(spectra: ExpertSpectra, axes: Axes | None = None) -> Axes:
    """The singular values of the experts' matrices, each over its expert's largest: a line for each expert.

    Args:
        spectra: From `measure_spectra`.
        axes: Where to draw; new axes by default.

    Returns:
        The axes. An expert whose matrix is 0 has no line.
    """
    axes = _axes(axes)
    values = spectra.singular_values[spectra.norms > 0]  # (N, r)
    relative = (values / values[:, :1]).numpy()
    alpha = float(np.clip(4 / max(1, len(relative)), 0.03, 1.0))
    axes.plot(np.arange(1, values.shape[1] + 1), relative.T, color=COLOUR, alpha=alpha, linewidth=1)
    axes.set(xlabel="singular value", ylabel="size, relative to the largest", ylim=(0, 1.02))
    return axes


def plot_polysemanticity(found: Polysemanticity, axes: Axes | None = None) -> Axes:
    """How many experts have each class-level polysemanticity, with the mean; experts without effect have none.

    Args:
        found: From `class_level_polysemanticity`, or of `counterfactuals`.
        axes: Where to draw; new axes by default.

    Returns:
        The axes.
    """
    axes = _axes(axes)
    scores = found.scores[found.has_effect].numpy()
    end = max(1.0, float(scores.max(initial=0.0)))
    axes.hist(scores, bins=np.linspace(0, end, 21).tolist(), color=COLOUR)
    if len(scores):
        axes.axvline(found.mean, color=SECOND_COLOUR, label=f"mean {found.mean:.3f}")
        axes.legend(frameon=False)
    axes.set(xlabel=f"polysemanticity ({found.num_without_effect} experts without effect)", ylabel="experts")
    return axes


def plot_top_images(top: TopSamples, images: Tensor, expert: int, axes: Axes | None = None) -> Axes:
    """An expert's top images side by side, with their coefficients.

    Args:
        top: From `find_top_samples`.
        images: The recorded images, grey ``(n, H, W)`` or colour ``(n, H, W, 3)``, uint8.
        expert: The expert.
        axes: Where to draw; new axes by default.

    Returns:
        The axes, with all images as one.

    Raises:
        ValueError: If there is no such expert, or fewer images than samples.
    """
    chosen = _chosen(top, expert)
    if len(chosen) and int(chosen.max()) >= len(images):
        raise ValueError(f"{len(images)} images, but sample {int(chosen.max())} is a top one; give all recorded images")
    return _gallery(images[chosen].numpy(force=True), top, expert, _axes(axes))[0]


def plot_top_patches(top: TopSamples, patches: Patches, expert: int, axes: Axes | None = None) -> Axes:
    """An expert's top patches, each as its whole image with a frame about the patch, with their coefficients.

    Args:
        top: From `find_top_samples`. Several of its patches may be of one image; a report page shows different ones.
        patches: The recorded images and how they are cut, from `factorized_moe.interpret.report.Patches`.
        expert: The expert.
        axes: Where to draw; new axes by default.

    Returns:
        The axes, with all images as one. A token before the patches has no frame.

    Raises:
        ValueError: If there is no such expert, or fewer patches than samples.

    Examples:
        >>> patches = Patches(np.zeros((2, 8, 8), dtype=np.uint8), grid=(2, 2))
        >>> samples, values = torch.tensor([[5, 2]]), torch.tensor([[0.9, 0.5]])
        >>> top = TopSamples(samples, values, samples, torch.tensor([1]), (1,))
        >>> axes = plot_top_patches(top, patches, 0)
        >>> [frame.get_xy() for frame in axes.patches]  # the second image's second patch, the first one's third
        [(3.5, -0.5), (8.5, 3.5)]
    """
    from matplotlib.patches import Rectangle

    chosen = _chosen(top, expert).tolist()
    if chosen and max(chosen) >= len(patches):
        raise ValueError(
            f"{len(patches)} patches, but sample {max(chosen)} is a top one; give all recorded images, "
            "the grid that they are cut into and the tokens before it"
        )
    places = [patches.place(sample) for sample in chosen]
    axes, step = _gallery(patches.pixels[[image for image, _, _ in places]], top, expert, _axes(axes))
    size = [side / parts for side, parts in zip(patches.pixels.shape[1:3], patches.grid, strict=True)]
    for place, (_, row, column) in enumerate(places):
        if row >= 0:
            corner = (place * step + column * size[1] - 0.5, row * size[0] - 0.5)
            axes.add_patch(Rectangle(corner, size[1], size[0], fill=False, edgecolor=FRAME, linewidth=1.5))
    return axes


def shade_tokens(tokens: Sequence[str], coefficients: Tensor, largest: float = 1.0) -> str:
    """Text as HTML, each token shaded by an expert's coefficient: for a notebook, ``IPython.display.HTML(...)``.

    Args:
        tokens: The tokens, spaces included.
        coefficients: The coefficient of each, of any type, ``(n,)``.
        largest: The coefficient of the full shade.

    Returns:
        One ``<p>`` element; whatever is in the tokens is shown as text.

    Raises:
        ValueError: If there is not one coefficient for each token, or ``largest`` is not positive.

    Examples:
        >>> print(shade_tokens(["a", "<b>"], torch.tensor([0.0, 0.5])))
        <p dir="auto" style="white-space: pre-wrap"><span title="0.000" style="background: \
rgb(28 93 140 / 0.000)">a</span><span title="0.500" style="background: rgb(28 93 140 / 0.300)">&lt;b&gt;</span></p>
    """
    if coefficients.shape != (len(tokens),):
        raise ValueError(
            f"coefficients have shape {tuple(coefficients.shape)}, expected ({len(tokens)},): one for each token"
        )
    if not largest > 0:
        raise ValueError(f"largest must be positive, got {largest}")
    spans = []
    for token, value in zip(tokens, coefficients.tolist(), strict=True):
        shade = 0.6 * min(1.0, max(0.0, value / largest)) if value == value else 0.0  # NaN is not equal to itself
        style = f"background: rgb(28 93 140 / {shade:.3f})"
        spans.append(f'<span title="{value:.3f}" style="{style}">{html.escape(token)}</span>')
    return f'<p dir="auto" style="white-space: pre-wrap">{"".join(spans)}</p>'


def _axes(axes: Axes | None) -> Axes:
    """The axes that were given, or those of a new figure that matplotlib does not keep."""
    if axes is not None:
        return axes
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'factorized-moe[plots]'") from error
    return Figure(figsize=(6.0, 3.6), layout="constrained").add_subplot()


def _chosen(top: TopSamples, expert: int) -> Tensor:
    """The top samples of an expert."""
    if not 0 <= expert < len(top.samples):
        raise ValueError(f"expert {expert} is not one of the {len(top.samples)} experts, counted from 0")
    return top.samples[expert][top.samples[expert] >= 0]


def _gallery(images: NDArray[Any], top: TopSamples, expert: int, axes: Axes) -> tuple[Axes, int]:
    """Images side by side with their coefficients, and how far one is from the next."""
    height, width = images.shape[1:3]
    step = width + max(1, width // 8)
    sheet = np.full((height, max(1, len(images)) * step - step + width, *images.shape[3:]), 255, dtype=np.uint8)
    for place, image in enumerate(images):
        left = place * step
        sheet[:, left : left + width] = image
        value = float(top.values[expert, place])
        axes.text(left + width / 2, height + 0.5, f"{value:.2f}", ha="center", va="top", fontsize=8)
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(f"expert {expert}" if len(images) else f"expert {expert}: no image", fontsize=9, loc="left")
    axes.set_axis_off()
    return axes, step


def _matrix(axes: Axes, values: NDArray[Any], label: str) -> None:
    """A matrix of shares from 0 to 1 with its scale."""
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label=label)


def _against_count(found: LabelSpecialisation, values: Tensor, baseline: float, label: str, axes: Axes | None) -> Axes:
    """A point for each expert that is not dead, and a line for the data set."""
    axes = _axes(axes)
    alive = torch.ones(len(found.counts), dtype=torch.bool)
    alive[found.dead] = False
    axes.scatter(found.counts[alive].numpy(), values[alive].numpy(), color=COLOUR, alpha=0.7, s=14)
    axes.axhline(baseline, color=SECOND_COLOUR, linewidth=1, label="whole data set")
    axes.set(xlabel=f"samples on which an expert is active ({len(found.dead)} dead)", ylabel=label)
    axes.legend(frameon=False)
    return axes
