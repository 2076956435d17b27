"""The picture of the study: the largest rank of an expert against the number of experts, and parameters against it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from studies.costs.models import REFERENCE

__all__ = ["against_experts"]

COLOURS = {"cp": "#1f77b4", "tr": "#d95f02"}
NAMES = {"cp": "CP", "tr": "tensor ring"}


def against_experts(heads: Sequence[Mapping[str, Any]], fixed: Sequence[Mapping[str, Any]], budget: int) -> bytes:
    """Three panels: ranks at equal parameters, how many experts can differ, parameters at ranks that do not change.

    Args:
        heads: From `studies.costs.counting.heads`, grids of one mode.
        fixed: From `studies.costs.counting.at_one_rank`.
        budget: The parameters of the linear head.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.8, 3.5), layout="constrained")
    ranks, different, growth = figure.subplots(1, 3)
    for form, colour in COLOURS.items():
        rows = [row for row in heads if row["form"] == form and row["rounding"] == "up"]
        experts = [row["experts"][0] for row in rows]
        style = {"color": colour, "marker": "o", "markersize": 4, "label": NAMES[form]}
        ranks.plot(experts, [row["max_rank"] for row in rows], **style)
        different.plot(experts, [row["independent"] for row in rows], **style)
        growth.plot([row["experts"] for row in fixed], [row[form] for row in fixed], **style)
    growth.plot(
        [row["experts"] for row in fixed],
        [row["dense"] for row in fixed],
        color="#555555",
        marker="s",
        markersize=4,
        label="dense MoE",
    )
    growth.axhline(budget, color="#999999", linewidth=1, linestyle="--", label="linear head")
    ranks.set(title="at equal parameters", ylabel="largest rank of an expert", ylim=(0, None))
    different.set(title="at equal parameters", ylabel="linearly independent experts, at most")
    growth.set(title=f"at the ranks of {REFERENCE} experts", ylabel="parameters", yscale="log")
    different.set_yscale("log", base=2)
    numbers = sorted({row["experts"][0] for row in heads})
    for axes in (ranks, different, growth):
        axes.set_xscale("log", base=2)
        axes.set_xticks(numbers, [str(number) for number in numbers])
        axes.set_xlabel("experts")
        axes.legend(frameon=False, fontsize=8)
    different.set_yticks(numbers, [str(number) for number in numbers])
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
