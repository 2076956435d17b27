"""The figures with axes; every null is a dashed line in the colour of what it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from factorized_moe._writing import write_files
from studies.specialisation.plan import DEFAULT, LINEAR, MATCHED_CP, MATCHED_TR, SOFTMAX, TWO_MAPS
from studies.specialisation.table import Runs, Values, difference, known, mean

__all__ = ["CLASSES", "COLOURS", "PAPER_WINDOW", "SHORT", "TITLES", "contenders", "draw_all"]

TITLES = {
    "wn252": "glosses, 252 classes",
    "gl": "glyphs, 256 classes",
    "wn50": "glosses, 50 classes",
    "wn10": "glosses, 10 classes",
    "fm": "Fashion-MNIST, 10 classes",
}
SHORT = {
    "wn252": "glosses 252",
    "gl": "glyphs 256",
    "wn50": "glosses 50",
    "wn10": "glosses 10",
    "fm": "Fashion-MNIST 10",
}
CLASSES = {"wn252": 252, "gl": 256, "wn50": 50, "wn10": 10, "fm": 10}
COLOURS = {
    "wn252": "#1f6fb4",
    "gl": "#d1495b",
    "wn50": "#3aa6a0",
    "wn10": "#7a5ea8",
    "fm": "#6b7280",
}
PAPER_WINDOW = (16 / 1000, 512 / 1000)
"""Experts by class of a head for ImageNet's 1,000 classes with 16 to 512 experts."""
GATES = {"entmax": (DEFAULT, "#1f6fb4"), "softmax": (SOFTMAX, "#e0862e")}


def draw_all(runs: Runs, out: Path) -> list[str]:
    """Draw every figure that there are runs for, and give their names.

    Args:
        runs: The runs.
        out: The folder.
    """
    drawn = []
    for name, figure in _FIGURES.items():
        if figure(runs, out / name):
            drawn.append(name)
    return drawn


@contextmanager
def _canvas(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[Any]:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {"svg.hashsalt": "factorized-moe", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        yield axes
        write_files(
            path.parent, {path.name: lambda place: figure.savefig(place, metadata={"Date": None}, format="svg")}
        )
        pyplot.close(figure)


def _line(axis: Any, xs: Sequence[float], values: Sequence[Values], null: Sequence[Values], **style: Any) -> None:
    """Means with a band from the least to the largest seed, and the null."""
    there = [k for k, value in enumerate(values) if known(value)]
    label = style.pop("label")
    places = [xs[k] for k in there]
    axis.plot(places, [mean(values[k]) for k in there], "o-", markersize=3.5, label=label, **style)
    low, high = ([end(known(values[k])) for k in there] for end in (min, max))
    axis.fill_between(places, low, high, alpha=0.18, lw=0, **style)
    axis.plot(places, [mean(null[k]) for k in there], "--", lw=1, alpha=0.8, **style)


def _over(runs: Runs, data: str, like: dict[str, Any], measure: str) -> tuple[list[int], list[Values], list[Values]]:
    sizes = runs.sizes(data, like)
    return sizes, *([runs.values(data, like, size, measure, part) for size in sizes] for part in (0, 1))


def _axis_of_sizes(axis: Any, sizes: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.minorticks_off()
    axis.set_xlabel("experts")
    axis.grid(alpha=0.3, linewidth=0.5)


def _polysemanticity(runs: Runs, path: Path) -> bool:
    names = [name for name in TITLES if runs.sizes(name, DEFAULT)]
    if not names:
        return False
    with _canvas(path, 1, 1, (7.6, 4.2)) as axes:
        axis = axes[0, 0]
        axis.axvspan(*PAPER_WINDOW, color="#9aa5b1", alpha=0.18, lw=0)
        for name in names:
            sizes, values, null = _over(runs, name, DEFAULT, "mean")
            ratios = [size / CLASSES[name] for size in sizes]
            _line(axis, ratios, values, null, label=TITLES[name], color=COLOURS[name])
        axis.plot([], [], "k--", lw=1, label="null: the same losses at random")
        axis.set_xscale("log")
        axis.set_yscale("log")
        ticks = (0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        ratios = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
        axis.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
        axis.text(PAPER_WINDOW[0] * 1.1, axis.get_ylim()[0] * 1.03, "the paper's range", fontsize=8, color="#5a6572")
        axis.set_xlabel("experts / classes")
        axis.set_ylabel("polysemanticity, mean over experts with an effect")
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.legend(frameon=False, fontsize=8)
    return True


MEASURES = {
    "concentration": "concentration",
    "effective_classes": "classes by expert",
    "mutual_information": "bits that an expert tells of the class",
}


def _measures(runs: Runs, path: Path) -> bool:
    names = [name for name in TITLES if runs.sizes(name, DEFAULT)]
    if not names:
        return False
    with _canvas(path, 1, 3, (10.6, 3.9)) as axes:
        for axis, (measure, title) in zip(axes[0], MEASURES.items(), strict=True):
            for name in names:
                sizes, values, null = _over(runs, name, DEFAULT, measure)
                _line(axis, sizes, values, null, label=TITLES[name], color=COLOURS[name])
            _axis_of_sizes(axis, sorted({size for name in names for size in runs.sizes(name, DEFAULT)}))
            axis.set_ylabel(title)
        axes[0, 1].set_yscale("log")
        axes[0, 1].set_yticks((1, 3, 10, 30, 100), ("1", "3", "10", "30", "100"))
        axes[0, 0].figure.legend(
            *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncol=3, frameon=False, fontsize=8
        )
    return True


def _gates(runs: Runs, path: Path) -> bool:
    names = [name for name in TITLES if runs.sizes(name, SOFTMAX)]
    if not names:
        return False
    rules = {
        "mean": "experts without effect left out",
        "mean_dead_one": "... counted 1",
        "mean_dead_zero": "... counted 0",
    }
    with _canvas(path, len(names), 3, (9.6, 2.7 * len(names))) as axes:
        for row, name in zip(axes, names, strict=True):
            for axis, (measure, title) in zip(row, rules.items(), strict=True):
                for gate, (like, colour) in GATES.items():
                    sizes, values, null = _over(runs, name, like, measure)
                    _line(axis, sizes, values, null, label=gate, color=colour)
                _axis_of_sizes(axis, runs.sizes(name, DEFAULT))
                axis.set_title(title, fontsize=9)
            row[0].set_ylabel(f"polysemanticity\n{TITLES[name]}")
        axes[0, 0].legend(frameon=False)
    return True


def contenders(runs: Runs, data: str) -> list[tuple[str, dict[str, Any], int]]:
    """What is held against a linear head: a title, the settings, the number of experts."""
    found: list[tuple[str, dict[str, Any], int]] = []
    for title, like in (("CP, equal parameters", MATCHED_CP), ("TR, equal parameters", MATCHED_TR)):
        found += [(f"{title}, N = {size:,}", like, size) for size in runs.sizes(data, like)]
    found += [(f"CP of rank 128, N = {size:,}", DEFAULT, size) for size in runs.sizes(data, DEFAULT)]
    return found + [("two linear maps", TWO_MAPS, size) for size in runs.sizes(data, TWO_MAPS)]


def _accuracy(runs: Runs, path: Path) -> bool:
    names = [name for name in ("wn252", "wn252 all", "gl") if runs.of(name, LINEAR, 0)]
    if not names:
        return False
    titles = {**TITLES, "wn252 all": "glosses, 252 classes,\nall for training"}
    with _canvas(path, 1, len(names), (3.6 * len(names), 3.8)) as axes:
        for axis, name in zip(axes[0], names, strict=True):
            linear = runs.values(name, LINEAR, 0, "accuracy")
            rows = contenders(runs, name)
            for place, (_, like, size) in enumerate(rows):
                found = difference(runs.values(name, like, size, "accuracy"), linear)
                if found is not None:
                    colour = "#6b7280" if found.is_tie else "#2a9d5c" if found.mean > 0 else "#d1495b"
                    error = 0.0 if found.pairs < 2 else 2 * found.error
                    axis.errorbar(found.mean, place, xerr=error, fmt="o", markersize=4, color=colour)
            axis.axvline(0, color="k", lw=0.8)
            axis.set_yticks(range(len(rows)), [title for title, _, _ in rows], fontsize=8)
            axis.set_ylim(len(rows) - 0.5, -0.5)
            axis.locator_params(axis="x", nbins=3)
            axis.set_title(titles[name], fontsize=9)
            axis.set_xlabel("accuracy less the linear head's", fontsize=8)
            axis.grid(alpha=0.3, linewidth=0.5)
    return True


_FIGURES: dict[str, Callable[[Runs, Path], bool]] = {
    "polysemanticity.svg": _polysemanticity,
    "measures.svg": _measures,
    "gates.svg": _gates,
    "accuracy.svg": _accuracy,
}
