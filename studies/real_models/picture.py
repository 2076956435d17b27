"""The picture: what is made good against tokens, a panel for each place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from factorized_moe._writing import write_files
from studies.real_models.curves import FAIR, Curve
from studies.real_models.forms import NAMES
from studies.real_models.plan import FRACTION

__all__ = ["draw"]

COLOURS = {
    "cp": "#1f77b4",
    "tr": "#ff7f0e",
    "tucker": "#2ca02c",
    "low-rank": "#7f7f7f",
    "narrow": "#000000",
    "dense": "#d62728",
}

NONE_AT = 2048
"""Where on the axis no tokens are."""


def draw(found: Sequence[Curve], path: Path) -> None:
    """Draw the curves at the share that is distilled for longest, and the dense MLP from random weights.

    Args:
        found: The curves.
        path: The SVG file.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    shown = [c for c in found if c.loss == "layers" and (c.form.fraction == FRACTION or c.form.kind == "dense")]
    places = list(dict.fromkeys(curve.place for curve in shown))
    settings = {"svg.hashsalt": "factorized-moe", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(settings):
        figure, axes = pyplot.subplots(
            1, len(places), figsize=(max(3.4 * len(places), 7.0), 3.8), layout="constrained", squeeze=False
        )
        names: dict[str, object] = {}
        for axis, place in zip(axes[0], places, strict=True):
            axis.axhline(FAIR, color="#999999", linewidth=0.8, linestyle=":")
            for curve in (curve for curve in shown if curve.place == place):
                label = NAMES[curve.form.kind] + (", from the weights alone" if curve.form.start == "weights" else "")
                x = [max(point.tokens, NONE_AT) for point in curve.points]
                style = {"linestyle": "--" if curve.form.start == "weights" else "-", "color": COLOURS[curve.form.kind]}
                style["markerfacecolor"] = "white" if curve.form.start == "weights" else COLOURS[curve.form.kind]
                (line,) = axis.plot(x, [p.mean for p in curve.points], marker="o", markersize=3, **style)
                low, high = ([end(p.made_good.values()) for p in curve.points] for end in (min, max))
                axis.fill_between(x, low, high, color=COLOURS[curve.form.kind], alpha=0.2, linewidth=0)
                names.setdefault(label, line)
            axis.set_xscale("log")
            axis.set_xticks([NONE_AT, 8192, 32768, 131072, 524288], ["0", "8k", "33k", "131k", "524k"])
            axis.minorticks_off()
            axis.set_ylim(0.0, 1.02)
            axis.set_title(place, fontsize=9)
            axis.set_xlabel("tokens of distillation")
        axes[0][0].set_ylabel("made good")
        figure.legend(names.values(), names.keys(), loc="outside lower center", ncols=3, frameon=False)
        write_files(path.parent, {path.name: lambda place: figure.savefig(place, metadata={"Date": None})})
        pyplot.close(figure)
