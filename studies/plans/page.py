"""The page of the study: its sentences and tables are made from the runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from studies.plans.searches import NAMES

__all__ = ["GROUPS", "page"]

GROUPS = ((3, 7), (8, 14), (15, 25), (26, 40))
"""Numbers of operands, the smallest and the largest of each row of the table."""

EQUAL = 1e-9

Run = Mapping[str, Any]


def page(runs: Sequence[Run]) -> str:
    """The page in Markdown.

    Args:
        runs: What `studies.common.runs.read` gives.
    """
    counts = [entry["settings"]["operands"] for entry in runs]
    lines = [
        "# Orders of contraction beside other libraries",
        "",
        "In which order a network of tensors is contracted decides what a layer costs. The orders of this library's",
        "planner are counted here beside those that opt_einsum and cotengra find for the same random networks.",
        "",
        *_results(runs),
        "",
        *_table(runs),
        "",
        *_planning(runs),
        "",
        *_losses(runs),
        "",
        "## Rules",
        "",
        f"- {len(runs)} random networks of {min(counts)} to {max(counts)} operands, nodes and vectors together, at 64",
        "  samples. All orders are lowered to plans and counted alike.",
        "- Each ratio is ours to theirs, below 1 in our favour: the median and, in brackets, the smallest and the",
        "  largest. *Ended* is in how many networks their search ended in time, of how many it was tried in. Allowed",
        f"  is, of processor time, {_limits(runs)}.",
        "- *Cost* is the planner's, FLOPs and elements moved, which ours are planned for; theirs are for FLOPs. *The",
        "  layer's* plan is near the best at all batch sizes and prefers small intermediates.",
        "- cotengra's exhaustive search, with outer products, is tried up to ten operands.",
        "",
        f"Command: `python -m studies plans`; {sum(entry['seconds'] for entry in runs) / 60:.0f} minutes in all.",
    ]
    return "\n".join(lines) + "\n"


def _ratios(runs: Sequence[Run], other: str, name: str, low: int = 0, high: int = 1000) -> list[float]:
    found = [e["result"]["others"].get(other) for e in runs if low <= e["settings"]["operands"] <= high]
    return [each[name] for each in found if each is not None]


def _results(runs: Sequence[Run]) -> list[str]:
    lines = []
    for other in NAMES:
        costs = _ratios(runs, other, "cost")
        if costs:
            dearer = sum(cost > 1 + EQUAL for cost in costs)
            cheaper = sum(cost < 1 - EQUAL for cost in costs)
            lines.append(
                f"- {other}: of {len(costs)} networks in which it ended our order costs less in {cheaper}, the same in "
                f"{len(costs) - cheaper - dearer} and more in {dearer}; median {statistics.median(costs):.2f}, at most "
                f"{max(costs):.3f} times its cost."
            )
    return lines


def _table(runs: Sequence[Run]) -> list[str]:
    header = ["operands", "search", "ended", "FLOPs", "cost", "largest intermediate", "the layer's"]
    header += ["seconds, theirs"]
    lines = ["| " + " | ".join(header) + " |", "|---|---|" + "---:|" * (len(header) - 2)]
    for low, high in GROUPS:
        for other in NAMES:
            tried = [e for e in runs if low <= e["settings"]["operands"] <= high and other in e["result"]["others"]]
            seconds = _ratios(tried, other, "seconds")
            if seconds:
                names = ("flops", "cost", "largest", "layer_largest")
                cells = [_spread(_ratios(tried, other, name)) for name in names]
                took = f"{statistics.median(seconds):.3f} (up to {max(seconds):.2f})"
                row = (f"{low} to {high}", other, f"{len(seconds)} of {len(tried)}", *cells, took)
                lines.append("| " + " | ".join(row) + " |")
    return lines


def _planning(runs: Sequence[Run]) -> list[str]:
    """How long a layer's plans take, which is once, when it is built."""
    lines = ["Seconds of processor time that all plans of a layer take, once, when it is built:", ""]
    lines += ["| operands | networks | median | longest |", "|---|---:|---:|---:|"]
    for low, high in GROUPS:
        mine = [e["result"]["seconds"] for e in runs if low <= e["settings"]["operands"] <= high]
        if mine:
            lines.append(f"| {low} to {high} | {len(mine)} | {statistics.median(mine):.3f} | {max(mine):.2f} |")
    return lines


def _losses(runs: Sequence[Run]) -> list[str]:
    lost = [
        f"- {entry['settings']['operands']} operands (seed {entry['settings']['seed']}), {name}: {each['cost']:.3f} of "
        f"its cost, {each['flops']:.3f} of its FLOPs"
        for entry in runs
        for name, each in entry["result"]["others"].items()
        if each is not None and each["cost"] > 1 + EQUAL
    ]
    if not lost:
        return ["No other order costs less by the planner's account."]
    return ["## Where another order costs less", "", *lost]


def _limits(runs: Sequence[Run]) -> str:
    most: dict[float, int] = {}
    for entry in runs:
        settings = entry["settings"]
        most[settings["seconds"]] = max(settings["operands"], most.get(settings["seconds"], 0))
    return ", ".join(f"{limit:.0f} s up to {count} operands" for limit, count in most.items())


def _spread(ratios: Sequence[float]) -> str:
    ordered = sorted(ratios)
    return f"{statistics.median(ordered):.2f} ({ordered[0]:.2f} to {ordered[-1]:.2f})"
