"""The scaling figure: time and memory against experts, rank and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import installed
from benchmarks.scaling import SIZES, Point
from factorized_moe._writing import write_files

__all__ = ["draw"]

PANELS = {"experts": "experts", "rank": "rank (CP), largest bond (TR)", "tokens": "tokens in a call"}
COLOURS = ("#1f4e79", "#2a9d8f", "#e9a23b", "#c0392b")
MIB = 2**20


def draw(points: Sequence[Point], path: Path) -> bool:
    """Draw all points into an SVG file, the same file for the same points.

    Args:
        points: The points, in order along each line.
        path: The file.

    Returns:
        Whether it was drawn: not without matplotlib.
    """
    if installed("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    with pyplot.rc_context({"svg.hashsalt": "factorized-moe", "font.size": 9, "axes.spines.top": False}):
        figure, axes = pyplot.subplots(2, len(PANELS), figsize=(11, 6.2), sharex="col", layout="constrained")
        for column, (panel, label) in enumerate(PANELS.items()):
            above, below = axes[0][column], axes[1][column]
            series = dict.fromkeys(point.series for point in points if point.panel == panel)
            for name in series:
                mine = [point for point in points if (point.panel, point.series) == (panel, name)]
                style = _style(name)
                x = [point.x for point in mine]
                above.loglog(x, [1e6 * point.seconds for point in mine], label=name, **style)
                below.loglog(x, [point.forward_bytes / MIB for point in mine], label=name, **style)
            if panel == "experts":
                below.set_ylim(*below.get_ylim())
                experts = sorted({point.x for point in points if point.panel == panel})
                below.loglog(
                    experts,
                    [4 * SIZES.features * (SIZES.features + 1) * x / MIB for x in experts],
                    ":",
                    color="grey",
                    label="dense weight",
                )
            below.set_xlabel(label)
            above.legend(fontsize=7, frameon=False)
            for axis in (above, below):
                axis.spines["right"].set_visible(False)
                axis.yaxis.set_minor_formatter(NullFormatter())
                axis.grid(alpha=0.3, linewidth=0.5)
        axes[0][0].set_ylabel("µs for one token, forward")
        axes[1][0].set_ylabel("MiB: parameters and tensors\nof one forward pass")
        axes[1][0].legend(*([part[-1]] for part in axes[1][0].get_legend_handles_labels()), fontsize=7, frameon=False)
        write_files(path.parent, {path.name: lambda place: figure.savefig(place, metadata={"Date": None})})
        pyplot.close(figure)
    return True


def _style(series: str) -> dict[str, object]:
    """A colour for the number of modes, a line for the decomposition."""
    if not series.startswith(("CP", "TR")):
        return {"color": "black", "linestyle": ":", "marker": "", "linewidth": 1.2}
    modes = int(series.split(", ")[1][0]) if ", " in series else (1 if series == "CP" else 4)
    dashed = series.startswith("TR")
    return {
        "color": COLOURS[modes - 1],
        "linestyle": "--" if dashed else "-",
        "marker": "s" if dashed else "o",
        "markersize": 3,
        "linewidth": 1.2,
    }
