"""Plots: what is drawn is the data, on the axes that were given, and matplotlib is left as it was."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from factorized_moe.interpret import (
    Coactivation,
    ExpertSpectra,
    Histogram,
    LabelCounts,
    Load,
    Polysemanticity,
    TopSamples,
    measure_label_specialisation,
)
from factorized_moe.interpret.report.plots import (
    plot_clarity,
    plot_coactivation,
    plot_entropy,
    plot_histogram,
    plot_labels,
    plot_load,
    plot_polysemanticity,
    plot_spectra,
    plot_top_images,
    shade_tokens,
)

pytestmark = pytest.mark.thorough

LOAD = Load(torch.tensor([4, 0, 9]), torch.rand(3), torch.rand(3), num_samples=12, threshold=0.5, grid=(3,))
COUNTS = LabelCounts(
    counts=torch.tensor([[1, 3], [2, 0], [0, 0]]),
    means=torch.tensor([[0.1, 0.3], [0.6, math.nan], [0.0, 0.0]], dtype=torch.float64),
    class_sizes=torch.tensor([5, 5]),
    class_names=("cat", "dog"),
    threshold=0.0,
    grid=(3,),
)
TOP = TopSamples(
    torch.tensor([[2, 0], [-1, -1]]),
    torch.tensor([[0.9, 0.5], [0, 0]]),
    torch.tensor([[2, 0], [-1, -1]]),
    torch.tensor([1, 0]),
    (2,),
)


def test_nothing_global_changes() -> None:
    before, figures = dict(plt.rcParams), plt.get_fignums()
    axes = plot_load(LOAD)
    assert isinstance(axes.figure, Figure)
    assert plt.get_fignums() == figures
    assert dict(plt.rcParams) == before


def test_class_names_are_no_formulas() -> None:
    axes = plot_labels(replace(COUNTS, class_names=("$5 to $9", "$^$")))
    axes.figure.canvas.draw()  # would parse a formula
    assert not any(label.get_parse_math() for label in axes.get_yticklabels())


def test_given_axes_are_drawn_on() -> None:
    axes = Figure().add_subplot()
    assert plot_load(LOAD, axes) is axes


def test_load() -> None:
    axes = plot_load(LOAD)
    assert [bar.get_height() for bar in axes.patches] == [9, 4, 0]
    assert axes.get_xlabel() == "experts, busiest first (1 of 3 without samples)"
    assert axes.get_ylabel() == "samples with a coefficient of at least 0.5"


def test_histogram() -> None:
    histogram = Histogram(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([7, 2]), torch.tensor([0, 3]), 5, 0)
    coefficients, largest = plot_histogram(histogram).patches
    assert coefficients.get_data().values.tolist() == [7, 2]
    assert coefficients.get_data().edges.tolist() == [0.0, 0.5, 1.0]
    assert largest.get_data().values.tolist() == [0, 3]


def test_labels() -> None:
    axes = plot_labels(COUNTS)
    drawn = axes.images[0].get_array().filled(np.nan)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "0"]  # cats first, then none, then dogs
    np.testing.assert_allclose(drawn, [[1, np.nan, 0.25], [0, np.nan, 0.75]])


def test_entropy_and_clarity_leave_dead_experts_out() -> None:
    found = measure_label_specialisation(COUNTS)
    for plot, values, baseline in ((plot_entropy, found.entropy, 1.0), (plot_clarity, found.clarity, 0.5)):
        axes = plot(found)
        points = axes.collections[0].get_offsets()
        assert points[:, 0].tolist() == [4, 2]
        assert points[:, 1].tolist() == values[:2].tolist()
        assert axes.lines[0].get_ydata() == [baseline, baseline]
    assert plot_entropy(found).get_xlabel().endswith("(1 dead)")


def test_coactivation() -> None:
    axes = plot_coactivation(Coactivation(torch.tensor([[4, 1, 0], [1, 2, 0], [0, 0, 0]]), 9, 0.0, (3,)))
    drawn = axes.images[0].get_array().filled(np.nan)
    np.testing.assert_allclose(drawn, [[1, 0.25, 0], [0.5, 1, 0], [np.nan] * 3])


def test_spectra_leave_zero_matrices_out() -> None:
    axes = plot_spectra(ExpertSpectra(torch.tensor([[4.0, 1.0], [0.0, 0.0], [2.0, 2.0]]), (3,)))
    assert [line.get_ydata().tolist() for line in axes.lines] == [[1.0, 0.25], [1.0, 1.0]]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[1, 2]] * 2


def test_polysemanticity() -> None:
    drop = torch.tensor([[0.5, 0.0], [0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    axes = plot_polysemanticity(Polysemanticity(drop, torch.tensor([0.52, math.nan, 1.0], dtype=torch.float64)))
    heights = [bar.get_height() for bar in axes.patches]
    assert [place for place, height in enumerate(heights) if height] == [10, 19]
    assert axes.lines[0].get_xdata()[0] == pytest.approx(0.76)
    assert "(1 experts without effect)" in axes.get_xlabel()


def test_polysemanticity_without_any_effect() -> None:
    axes = plot_polysemanticity(Polysemanticity(torch.zeros(2, 3), torch.full((2,), math.nan)))
    assert not axes.lines
    assert sum(bar.get_height() for bar in axes.patches) == 0


@pytest.mark.parametrize("shape", [(3, 4, 8), (3, 4, 8, 3)])
def test_top_images(shape: tuple[int, ...]) -> None:
    images = torch.randint(0, 200, shape, dtype=torch.uint8)
    axes = plot_top_images(TOP, images, expert=0)
    drawn = axes.images[0].get_array()
    assert drawn.shape[:2] == (4, 8 + 1 + 8)
    np.testing.assert_array_equal(drawn[:, :8], images[2])
    np.testing.assert_array_equal(drawn[:, 9:], images[0])
    assert [text.get_text() for text in axes.texts] == ["0.90", "0.50"]
    assert plot_top_images(TOP, images, expert=1).get_title(loc="left") == "expert 1: no image"


def test_top_images_refuses() -> None:
    with pytest.raises(ValueError, match="expert 2 is not one of the 2 experts"):
        plot_top_images(TOP, torch.zeros(3, 4, 4, dtype=torch.uint8), expert=2)
    with pytest.raises(ValueError, match="2 images, but sample 2 is a top one; give all recorded images"):
        plot_top_images(TOP, torch.zeros(2, 4, 4, dtype=torch.uint8), expert=0)


def test_every_plot_can_be_saved(tmp_path) -> None:
    found = measure_label_specialisation(COUNTS)
    drawn = [plot_load(LOAD), plot_labels(COUNTS), plot_entropy(found)]
    for number, axes in enumerate(drawn):
        axes.figure.savefig(tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 1000


def test_shaded_tokens_are_text() -> None:
    tokens = ["<script>", '"&', "\u202e", ""]
    shown = shade_tokens(tokens, torch.tensor([0.25, 1.0, math.nan, -1.0], dtype=torch.bfloat16), largest=0.5)
    assert "<script>" not in shown
    assert "&lt;script&gt;</span>" in shown
    assert "&quot;&amp;</span>" in shown
    assert [shown.count(f"/ {shade})") for shade in ("0.300", "0.600", "0.000")] == [1, 1, 2]


def test_shaded_tokens_refuse() -> None:
    with pytest.raises(ValueError, match=r"coefficients have shape \(1,\), expected \(2,\): one for each token"):
        shade_tokens(["a", "b"], torch.ones(1))
    with pytest.raises(ValueError, match="largest must be positive, got 0"):
        shade_tokens([], torch.ones(0), largest=0)


def test_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"plots need matplotlib: pip install 'factorized-moe\[plots\]'"):
        plot_load(LOAD)
