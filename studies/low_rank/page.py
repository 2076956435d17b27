"""The page of the study, and its picture: every sentence of result is made from the runs."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from studies.low_rank.verdicts import (
    BARELY,
    HALF,
    METHODS,
    TITLES,
    WORSE,
    Found,
    blunt,
    bracket,
    by_method,
    change,
    claim,
    others,
    saturated,
    word,
    words,
)

__all__ = ["page", "picture"]

COLOURS = {"singular": "#1f77b4", "activations": "#d95f02", "random": "#777777"}


def _at_half(found: Found, present: Sequence[str]) -> list[str]:
    """The verdicts at half of the rank."""
    lines = [
        f"| | measure | unchanged | uniform guess | {' | '.join(METHODS.values())} |",
        "|---|---|--:|--:|" + "---|" * len(METHODS),
    ]
    for name in present:
        title, measure = TITLES[name], TITLES[name].measure
        exact = statistics.fmean(result["exact"][measure] for result in found[name, "singular"])
        cells = [
            f"{lost}: {word(lost, measure)}"
            if (results := found.get((name, method))) and (lost := change(results, HALF, measure))
            else ""
            for method in METHODS
        ]
        lines.append(
            f"| {title.name} | {title.measures[measure]} | {exact:.3f} | {title.guess:.2f} | {' | '.join(cells)} |"
        )
    return lines


def _brackets(found: Found, present: Sequence[str]) -> list[str]:
    """Down to which share a cut barely hurts, and from which on it hurts."""
    methods = [method for method in METHODS if method != "random"]
    heads = [f"{METHODS[m]}: barely hurts down to | hurts from" for m in methods]
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "--:|--:|" * len(methods)]
    for name in present:
        both = [
            bracket(words(found[name, m], TITLES[name].measure)) if (name, m) in found else ("", "") for m in methods
        ]
        lines.append(f"| {TITLES[name].name} | {' | '.join(cell for cells in both for cell in cells)} |")
    return lines


def _upcycling(found: Found, present: Sequence[str]) -> list[str]:
    """What ranks cost, and how much of the weights they hold."""
    rows, held, null = [], [], []
    for name in present:
        results = found[name, "singular"]
        at = {share: statistics.fmean(r["shares"][share]["parameters"] for r in results) for share in (HALF, "0.25")}
        held.append(statistics.fmean(r["shares"][HALF]["weights_kept"] for r in results))
        null.append(statistics.fmean(r["gaussian_kept"][HALF] for r in results))
        rows.append(f"| {TITLES[name].name} | {at[HALF]:.0%} | {at['0.25']:.0%} | {held[-1]:.1%} | {null[-1]:.1%} |")
    if not rows:
        return []
    return [
        "| | parameters at half | at a quarter | squared norm held by half | by half of a random matrix |",
        "|---|--:|--:|--:|--:|",
        *rows,
        "",
        "*Parameters*: of both factors, as a share of the weights'. *Squared norm*: the mean over layers. Half of the",
        f"singular vectors hold {min(held):.0%} to {max(held):.0%} of it; in matrices of these shapes drawn at random",
        f"it is {min(null):.0%} to {max(null):.0%}, so most of that share is what any matrix has, and no promise.",
        "",
    ]


def page(runs: Sequence[Mapping[str, Any]]) -> str:
    """The page in Markdown.

    Args:
        runs: What `studies.common.runs.read` gives, of all models.
    """
    found = by_method(runs)
    seconds = sum(entry["seconds"] for entry in runs)
    present = [name for name in TITLES if (name, "singular") in found]
    files = ", ".join(f"[low-rank-{name}.jsonl](low-rank-{name}.jsonl)" for name in present)
    return "\n".join(
        [
            *QUESTION,
            f"{claim(found)} {others(found)}",
            "A Mixer S-16 on ImageNet is not testable here: there is neither the data nor the machine.",
            "",
            *_at_half(found, present),
            "",
            *saturated(found),
            *blunt(found),
            "",
            *_brackets(found, present),
            "",
            "Between the two the runs cannot say, or do not agree from share to share.",
            "",
            "![Quality against the share of the rank that is kept, for three ways to choose it](low-rank.svg)",
            "",
            *UPCYCLING,
            *_upcycling(found, present),
            *(line for name in present for line in _table(found, name)),
            *LIMITS,
            f"Command: `python -m studies low_rank`; its {len(runs)} runs took {seconds / 60:.0f} minutes in sum, one",
            "thread each, on a machine that did other work too, the training of the Mixers not counted. It downloads",
            f"270 MB once. A stopped command goes on where it was. Runs: {files}.",
            "",
        ]
    )


QUESTION = (
    "# How much rank trained models need",
    "",
    "Oldfield et al. 2024 (the uMoE paper, arXiv 2402.12550) report that keeping half of the singular vectors of",
    "every linear layer of a trained Mixer S-16 barely hurts its accuracy: their reason for experts of low rank. Here",
    "almost every linear layer of four trained models (what is left out stands with each) is replaced by one of lower",
    "rank, with nothing trained afterwards. A share of the full rank, the smaller side of a weight, is chosen by:",
    "",
    "- *Singular vectors*: the largest of each weight, as the paper does.",
    "- *What inputs need*: the rank that changes the layer's outputs least on inputs that are not measured on (the",
    "  library's `input_covariance=`). A control: the same rank, chosen by more than the weight.",
    "- *Random subspace*: of the smaller side, orthonormal. The null: a rank that is not chosen.",
    "",
    "`±` is a standard error: over seeds (Mixer, three), over draws (random subspaces, where there are three), else",
    "over held-out samples of one model. A cut *hurts* if the change's 95% interval (Student's t: 4.3 errors on each",
    f"side for three, about 2 for many) lies beyond {BARELY['accuracy']:g} of accuracy or {BARELY['loss']:g} nats of",
    "cross-entropy (5% of the perplexity), *barely hurts* if it lies within; else the runs *cannot say*. The margins",
    "are ours. Accuracy decides where there is one.",
    "",
)

UPCYCLING = (
    "## What it says about experts and upcycling",
    "",
    "The matrix of an expert in CP form has at most the layer's rank, in a tensor ring at most the bond between input",
    "and output times the smaller of those beside it. [Upcycling](../how-to/pretrained-models.md), which makes experts",
    "of a trained layer, starts all of them from these cuts (a test holds the two equal), so a rank that hurts here",
    "has to be made good by [distillation](../how-to/distil.md), as in [real models](real-models.md). Low rank saves",
    "little by itself: two factors of half the rank of a square matrix have as many parameters as the matrix.",
    "",
)

LIMITS = (
    "## What this cannot show",
    "",
    "Whether training after the cut would give back what is lost; the paper's Mixer, wider and trained on more images;",
    "other models of these kinds, for three of the four are one model each; SmolLM2 before its weights were rounded",
    "to 4 bits.",
    "",
)


def _table(found: Found, name: str) -> list[str]:
    title = TITLES[name]
    methods = [method for method in METHODS if (name, method) in found]
    heads = [f"{METHODS[method]}, {title.measures[m]}" for method in methods for m in title.measures]
    first = found[name, "singular"]
    exact = ", ".join(
        f"{text} {statistics.fmean(r['exact'][m] for r in first):.3f}" for m, text in title.measures.items()
    )
    lines = [
        f"## {title.name}",
        "",
        f"{title.described} {first[0]['layers']} layers, {first[0]['samples']:,} held-out samples. Unchanged: {exact}; "
        "changes from it:",
        "",
        f"| share | {' | '.join(heads)} |",
        "|--:|" + "---|" * len(heads),
    ]
    for share in sorted(first[0]["shares"], key=float, reverse=True):
        cells = [
            str(change(found[name, method], share, m)) if share in found[name, method][0]["shares"] else ""
            for method in methods
            for m in title.measures
        ]
        lines.append(f"| {float(share):.0%} | {' | '.join(cells)} |")
    return [*lines, ""]


def picture(runs: Sequence[Mapping[str, Any]]) -> bytes:
    """A panel for each model: the measure of its verdict against the share, a line for each method."""
    from matplotlib.figure import Figure

    found = by_method(runs)
    present = [name for name in TITLES if (name, "singular") in found]
    rows = max(1, math.ceil(len(present) / 2))
    figure = Figure(figsize=(9.6, 3.0 * rows + 0.5), layout="constrained")
    for number, name in enumerate(present, 1):
        axes = figure.add_subplot(rows, 2, number)
        title, measure = TITLES[name], TITLES[name].measure
        exact = statistics.fmean(r["exact"][measure] for r in found[name, "singular"])
        for method, label in METHODS.items():
            results = found.get((name, method), [])
            shares = sorted(results[0]["shares"], key=float) if results else []
            changes = [change(results, share, measure) for share in shares]
            x, y = [float(share) for share in shares], [exact + c.mean for c in changes]
            low, high = ([exact + c.mean + sign * c.half_width for c in changes] for sign in (-1, 1))
            axes.plot(x, y, marker="o", ms=3, color=COLOURS[method], label=label)
            axes.fill_between(x, low, high, color=COLOURS[method], alpha=0.2, lw=0)
        axes.axhline(exact, color="black", lw=0.8, label="unchanged")
        axes.axhline(title.guess, color="black", lw=0.8, ls="--", label="uniform guess")
        axes.axvline(0.5, color="#cccccc", lw=0.8, zorder=0)
        worse = ", higher is worse" if WORSE[measure] > 0 else ""
        axes.set(title=title.name, xlabel="share of the rank kept", ylabel=title.measures[measure] + worse)
        axes.set_ylim(bottom=0.0)
    if present:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        look = {"ncols": 5, "frameon": False, "fontsize": 8, "title": "bands: 95% intervals", "title_fontsize": 8}
        figure.legend(handles, labels, loc="outside lower center", **look)
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
