"""The picture: what is made good against tokens, and how far forms with experts are from low rank, by place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factorized_moe._writing import write_files
from studies.real_models.curves import FAIR, Curve
from studies.real_models.plan import FULL, LENGTHS
from studies.real_models.verdicts import COMPARED, LOW_RANK, between, half, name_of

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

LEAST = 60.0
"""The least of the upper axis, in percent."""


def draw(found: Sequence[Curve], path: Path) -> None:
    """Draw the curves at the share that is distilled for longest.

    Args:
        found: The curves.
        path: The SVG file.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    places = list(dict.fromkeys(curve.place for curve in half(found)))
    settings = {"svg.hashsalt": "factorized-moe", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(settings):
        figure, axes = pyplot.subplots(
            2,
            len(places),
            figsize=(max(3.4 * len(places), 7.0), 6.0),
            layout="constrained",
            squeeze=False,
            sharex=True,
            sharey="row",
            height_ratios=(3, 2),
        )
        names: dict[str, Any] = {}
        for place, above, below in zip(places, *axes, strict=True):
            names[f"fair: {FAIR:.0%}"] = above.axhline(100 * FAIR, color="#999999", linewidth=0.8, linestyle=":")
            for curve in half(found, place):
                names.setdefault(name_of(curve.form.kind, curve.form.start, curve.loss), _curve(above, curve))
            below.axhline(0.0, color=COLOURS["low-rank"], linewidth=1.5)
            for one, other in COMPARED:
                if other == LOW_RANK:
                    _beyond(below, found, place, one)
            above.set_xscale("log")
            ticks = {max(steps * FULL.batch_size, NONE_AT): f"{steps * FULL.batch_size:,}" for steps in LENGTHS}
            above.set_xticks(list(ticks), list(ticks.values()))
            above.minorticks_off()
            above.set_ylim(LEAST, 100.0)
            above.set_title(place, fontsize=9)
            below.tick_params(axis="x", labelsize=7)
            below.set_xlabel("tokens of distillation")
        axes[0][0].set_ylabel("made good, %")
        axes[1][0].set_ylabel("minus low rank, points")
        figure.legend(names.values(), names.keys(), loc="outside lower center", ncols=3, frameon=False)
        write_files(path.parent, {path.name: lambda place: figure.savefig(place, metadata={"Date": None})})
        pyplot.close(figure)


def _curve(axis: Any, curve: Curve) -> Any:
    """The mean of the seeds, with bars from the least to the largest."""
    colour, hollow = COLOURS[curve.form.kind], curve.form.start == "weights" or curve.loss == "model"
    means = [100 * point.mean for point in curve.points]
    ends = [[100 * end(point.made_good.values()) for point in curve.points] for end in (min, max)]
    spread = [[abs(end - mean) for end, mean in zip(side, means, strict=True)] for side in ends]
    return axis.errorbar(
        [max(point.tokens, NONE_AT) for point in curve.points],
        means,
        spread,
        color=colour,
        linestyle="--" if curve.form.start == "weights" else "-",
        marker="D" if curve.loss == "model" else "o",
        markersize=4 if hollow else 3,
        markerfacecolor="white" if hollow else colour,
        capsize=2,
        linewidth=1.2,
    )


def _beyond(axis: Any, found: Sequence[Curve], place: str, which: tuple[str, str]) -> None:
    """A form less the control of low rank, paired by seed, with one standard error where it is known."""
    differences = between(found, place, which, LOW_RANK)
    axis.errorbar(
        [max(steps * FULL.batch_size, NONE_AT) for steps in differences],
        [100 * one.mean for one in differences.values()],
        [100 * one.error if one.pairs > 1 else 0.0 for one in differences.values()],
        color=COLOURS[which[0]],
        marker="o",
        markersize=3,
        capsize=2,
        linewidth=1.2,
    )
