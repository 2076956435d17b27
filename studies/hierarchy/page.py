"""The page of the study, and its picture: every sentence of result is made from the runs."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from studies.hierarchy.contenders import (
    DENSE,
    LARGEST,
    MILLION,
    PROBLEM_SIZES,
    TWO_MAPS,
    Contender,
    matrix_rank,
)
from studies.hierarchy.verdicts import (
    DENSE_NAMES,
    FORMS,
    MARGIN,
    TITLES,
    Found,
    against_fewest,
    claims,
    comparisons,
    four_less_one,
    grids,
    idle_losses,
    less,
    name,
    outcome,
    rate,
    rate_search,
    sort,
)

__all__ = ["page", "picture"]

COLOURS = {"cp": "#1f77b4", "tr": "#d95f02"}
LINES = (({64}, "64", "-", "o"), ({4096}, "4,096", "--", "^"), ({MILLION, 32**4}, "a million", ":", "s"))
"""Numbers of experts that the picture joins, and how."""
Runs = Sequence[Mapping[str, Any]]


def page(runs: Runs) -> str:
    """The page in Markdown.

    Args:
        runs: What `studies.common.runs.read` gives, of both problems.
    """
    found = sort(runs)
    seconds = sum(entry.get("seconds", 0.0) for entry in runs)
    files = ", ".join(f"[hierarchy-{problem}.jsonl](hierarchy-{problem}.jsonl)" for problem in found)
    return "\n".join(
        [
            *QUESTION,
            *claims(found, rate_search(runs)),
            "- The paper's own tables, of a Mixer S-16 on ImageNet and of CLIP: **not testable here**.",
            "",
            *_compared(found),
            *_rates(runs),
            "![Accuracy, and the accuracy lost without each mode, against the number of modes](hierarchy.svg)",
            "",
            *_million(found),
            *(line for problem in found for line in _table(found, problem)),
            *MEASURED,
            f"- A check: idle, a frozen mode costs {_check(found)}.",
            *_sizes(),
            "",
            "## What this cannot show",
            "",
            "Longer training, larger models, other rates of the Mixer. Held-out samples are the same for all seeds,",
            f"and `±` does not have their error: {_sampling(found)}.",
            "",
            f"Command: `python -m studies hierarchy`; its {len(runs)} runs took {seconds / 60:.0f} minutes in sum,",
            "one thread each, on a machine that did other work, after minutes for the glosses' embeddings. A stopped",
            f"command goes on where it was. Runs: {files}.",
            "",
        ]
    )


QUESTION = (
    "# One to four expert modes",
    "",
    "A layer whose experts stand in a grid of several [modes](../concepts/layer.md#several-expert-modes) has the",
    "product of the modes' sizes in experts, and a gate only as large as their sum. Oldfield et al. 2024 (the uMoE",
    "paper, arXiv 2402.12550) say that such layers are as accurate as flat ones, of one mode, and as what they",
    "replace, at equal parameters. Here CP and [tensor rings](../concepts/decompositions.md) of one to four modes",
    "replace a linear head and the MLPs of a small Mixer, each with as many parameters as that, gate and biases",
    "counted. Larger grids, of a million experts, stand in a table of their own.",
    "",
    "`±` is the standard error of differences of accuracy paired by seed, of three. A comparison is *no worse* if",
    f"its 95% interval (Student's t: 4.3 errors on each side) lies above -{MARGIN:g}, our margin; *worse* if it lies",
    "below; else *undecided*. A claim is reproduced if all comparisons are no worse, in part if some are; if none is,",
    "it is not reproduced where some are worse, and else the runs cannot tell. In brackets is what two errors on each",
    "side would give, the rule of other pages, which is too lax for three seeds.",
    "",
)

MEASURED = (
    "## How it was measured",
    "",
    "- *Idle*: all inputs get the mean of a mode's coefficients over inputs, in all layers. The accuracy lost is what",
    "  the trained model needs that mode's choice of experts for. *All idle*: all modes at once.",
    "- *Frozen*: the last mode's gate stays uniform throughout training, its weights still counted.",
    "- *Equal parameters*: at most as many as the dense form, by [`Budget`](../how-to/budgets.md); of the Mixer's MLPs",
    "  at least 94%, for a step of a ring's rank is large. A smaller gate leaves more to the rank, so grids of more",
    "  modes have a higher rank. Where a form is missing (4,096 experts in one mode, a million in two, of the head in",
    "  three) its gate alone is larger than the dense form.",
    "- *Rank*: the highest of an expert's matrix. A ring's bonds (indices summed over) beside expert modes are 4, as",
    "  in the paper, and the rank is 4 times the bond between input and output.",
    "- The default gate (batch norm, then entmax, a softmax that can give 0) and initialisation; AdamW, 5% warm-up,",
    "  half a cosine. The Mixer's rate is 0.01 for all, which all contenders of",
    "  [a gate for many experts](many-experts.md) took.",
)


def _check(found: Found) -> str:
    losses = [
        abs(result["accuracy"] - result["modes"][-1]["without"])
        for problem in found
        for contender, results in found[problem].items()
        if contender.frozen
        for result in results.values()
    ]
    return f"at most {max(losses):.4f}" if losses else "(not run)"


def _sampling(found: Found) -> str:
    """The standard error of one accuracy over held-out samples."""
    parts = []
    for problem in found:
        results = next(iter(found[problem].values()))
        first = next(iter(results.values()))
        accuracy = statistics.fmean(result["accuracy"] for result in results.values())
        error = (accuracy * (1.0 - accuracy) / first["samples"]) ** 0.5
        parts.append(f"{error:.3f} of the {DENSE_NAMES[problem]}")
    return "of one accuracy " + ", ".join(parts)


def _sizes() -> list[str]:
    head, mixer = PROBLEM_SIZES["head"], PROBLEM_SIZES["mixer"]
    return [
        "- Head: embeddings of WordNet's noun glosses by all-MiniLM-L6-v2, to be sorted by the concept directly",
        f"  above the noun (239 classes, about 60 glosses of each to train on); {head.steps} steps of {head.batch}.",
        "  *Two maps*: a linear head of two matrices, with as many parameters as the largest head of experts. It can",
        "  be no other function than the linear head can, so what it gains is training.",
        f"- Mixer: {mixer.layers} blocks of {mixer.features} features, experts in each channel MLP; {mixer.steps}",
        f"  steps of {mixer.batch} images, {mixer.steps * mixer.batch:,} in all.",
    ]


def _compared(found: Found) -> list[str]:
    """The comparisons of modes, one a line."""
    rows = []
    for problem in found:
        for one, other, difference in against_fewest(found, problem):
            both = [rate(found, problem, c) for c in (one, other)]
            rates = f"{both[0]:g}" if both[0] == both[1] else f"**{both[0]:g}**, {both[1]:g}"
            ranks = ", ".join(str(matrix_rank(problem, c)) for c in (one, other))
            other_name = " x ".join(map(str, other.expert_dims))
            rows.append(
                f"| {TITLES[problem].split()[0]} | {name(one)} | {other_name} | {ranks} | {rates} | {difference} "
                f"| {difference.interval} | {outcome(difference)} |"
            )
    if not rows:
        return []
    return [
        "## More modes, as many experts, as many parameters",
        "",
        "Accuracy of a grid less that of the one of its form with the fewest modes (*beside*); ranks and learning",
        "rates of both.",
        "",
        "| | grid | beside | ranks | rate | difference | 95% interval | |",
        "|---|---|---|---|---|--:|---|---|",
        *rows,
        "",
        comparisons(found),
        "",
    ]


def _rates(runs: Runs) -> list[str]:
    """What the search for learning rates found: whether the rate does what modes seem to do."""
    found = rate_search(runs)
    falls = four_less_one(found)
    if not falls:
        return []
    rates = sorted(next(iter(found.values())))
    chosen = {c: min(rates, key=lambda rate, c=c: found[c][rate]["loss"]) for c in found}  # type: ignore[misc]
    other = [c for c in found if c.expert_dims and max(rates, key=lambda rate: found[c][rate]["accuracy"]) != chosen[c]]
    experts = [c for c in found if c.expert_dims]
    said = "; ".join(
        f"{FORMS[form]} {', '.join(f'{fall:+.3f}' for fall in by_rate.values())}" for form, by_rate in falls.items()
    )
    rows = []
    for contender in sorted(found, key=lambda c: (c.form, len(c.expert_dims))):
        cells = [
            f"**{found[contender][rate]['accuracy']:.3f}**"
            if rate == chosen[contender]
            else f"{found[contender][rate]['accuracy']:.3f}"
            for rate in rates
        ]
        rows.append(
            f"| {_label('head', contender)} | {' x '.join(map(str, contender.expert_dims))} | {' | '.join(cells)} |"
        )
    heads = " | ".join(f"rate {rate:g}" for rate in rates)
    return [
        "## Learning rates of the head",
        "",
        "Chosen (bold) by held-out loss, with one other seed on the half of the held-out glosses that is not reported,",
        "for each form and number of modes with 64 experts. The accuracies of that search:",
        "",
        f"| | experts | {heads} |",
        f"|---|---|{'--:|' * len(rates)}",
        *rows,
        "",
        f"By accuracy {len(other)} of {len(experts)} grids would have taken another rate. Four modes less one mode,",
        f"rate by rate: {said}.",
        "",
    ]


def _million(found: Found) -> list[str]:
    rows, said = [], []
    for problem in found:
        if DENSE not in found[problem]:
            continue
        dense = next(iter(found[problem][DENSE].values()))["parameters"]
        large = [grid for grid in grids(found, problem) if prod(grid.expert_dims) >= MILLION]
        for contender in [*large, *([TWO_MAPS] if large and TWO_MAPS in found[problem] else [])]:
            results = found[problem][contender]
            size = next(iter(results.values()))["parameters"]
            difference = less(found, problem, contender, DENSE)
            end = f"{difference} | {difference.interval} | {outcome(difference)}" if difference else " | | "
            grid = name(contender) if contender.expert_dims else "linear, two maps"
            rank = matrix_rank(problem, contender) if contender.expert_dims else ""
            used = ", ".join(f"{_share(results, k):.0%}" for k in range(len(contender.expert_dims)))
            start = f"| {TITLES[problem].split()[0]} | {grid} | {rank} | {size:,} ({size / dense:.1f})"
            rows.append(f"{start} | {end} | {used} |")
        largest = Contender("cp", LARGEST[0], budget=False)
        if (difference := less(found, problem, largest, TWO_MAPS)) is not None:
            said = [
                f"{name(largest)} less two maps, a linear head as large: {difference} {difference.interval}, "
                f"{outcome(difference)}.",
                "",
            ]
    if not rows:
        return []
    return [
        "## A million experts",
        "",
        "Accuracy less that of the linear head or the dense MLPs; in brackets, how many times their parameters a grid",
        "has. *In use*: the share of a mode's experts whose coefficient varies with the input, mode by mode; how many",
        "of the million combinations inputs meet is not counted.",
        "",
        "| | grid | rank | parameters | difference | 95% interval | | in use |",
        "|---|---|--:|---|--:|---|---|---|",
        *rows,
        "",
        *said,
    ]


def _share(results: Mapping[int, Mapping[str, Any]], mode: int) -> float:
    """The share of a mode's experts that are in use, over seeds."""
    modes = [result["modes"][mode] for result in results.values()]
    return sum(m["in_use"] for m in modes) / sum(m["experts"] for m in modes)


def _table(found: Found, problem: str) -> list[str]:
    any_result = next(iter(next(iter(found[problem].values())).values()))
    lines = [
        f"## {TITLES[problem]}",
        "",
        f"Accuracy on {any_result['samples']:,} held-out samples, mean (sd over seeds).",
        "",
        f"| form | experts | rank | parameters | accuracy | less {DENSE_NAMES[problem]} | lost if idle, by mode "
        "| all idle | rate |",
        "|---|---|--:|--:|---|---|---|--:|--:|",
    ]
    for contender, results in found[problem].items():
        seeds = [results[seed] for seed in sorted(results)]
        values = [result["accuracy"] for result in seeds]
        spread = f" ({statistics.stdev(values):.3f})" if len(values) > 1 else ""
        rank = lost = idle = ""
        if contender.expert_dims:
            rank = str(matrix_rank(problem, contender))
            lost = ", ".join(f"{loss.mean:.3f} ± {loss.error:.3f}" for loss in idle_losses(results))
            idle = f"{statistics.fmean(r['accuracy'] - r['constant'] for r in seeds):.3f}"
        lines.append(
            f"| {_label(problem, contender)} | {' x '.join(map(str, contender.expert_dims))} | {rank} "
            f"| {seeds[0]['parameters']:,} | {statistics.fmean(values):.3f}{spread} "
            f"| {'' if contender == DENSE else less(found, problem, contender, DENSE) or ''} | {lost} | {idle} "
            f"| {seeds[0]['learning_rate']:g} |"
        )
    return [*lines, ""]


def _label(problem: str, contender: Contender) -> str:
    if contender == DENSE:
        return DENSE_NAMES[problem]
    if contender == TWO_MAPS:
        return "linear, two maps"
    return FORMS[contender.form] + ("" if contender.budget else ", larger") + (", frozen" if contender.frozen else "")


def picture(runs: Runs) -> bytes:
    """For each problem a panel of accuracies and one of what idle modes cost, against the number of modes."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    found = sort(runs)
    figure = Figure(figsize=(9.6, 3.4 * max(1, len(found)) + 0.6), layout="constrained")
    for row, problem in enumerate(found):
        left, right = (figure.add_subplot(len(found), 2, 2 * row + column) for column in (1, 2))
        equal = [grid for grid in grids(found, problem) if grid.budget]
        for place, (form, colour) in enumerate(COLOURS.items()):
            for number, (sizes, _, style, marker) in enumerate(LINES):
                line = [grid for grid in equal if grid.form == form and prod(grid.expert_dims) in sizes]
                x = [len(grid.expert_dims) + 0.06 * (2 * number + place - 2.5) for grid in line]
                values = [[r["accuracy"] for r in found[problem][grid].values()] for grid in line]
                if line:
                    means = [statistics.fmean(v) for v in values]
                    ends = [[abs(end(v) - m) for v, m in zip(values, means, strict=True)] for end in (min, max)]
                    look = {"color": colour, "ls": style, "marker": marker, "ms": 5, "capsize": 2, "elinewidth": 0.8}
                    left.errorbar(x, means, ends, **look)
        for grid in equal:
            losses = [loss.mean for loss in idle_losses(found[problem][grid])]
            shift = -0.08 if grid.form == "cp" else 0.08
            places = [len(grid.expert_dims) + shift] * len(losses)
            right.plot(places, losses, "o", ms=4, alpha=0.6, color=COLOURS[grid.form])
        if DENSE in found[problem]:
            values = [r["accuracy"] for r in found[problem][DENSE].values()]
            left.axhline(statistics.fmean(values), color="black", lw=0.8)
            left.axhspan(min(values), max(values), color="black", alpha=0.08, lw=0)
        right.axhline(0.0, color="black", lw=0.8)
        left.set(title=f"{TITLES[problem]}, equal parameters", xlabel="expert modes", ylabel="accuracy")
        right.set(
            title="each mode of the same grids", xlabel="expert modes of the grid", ylabel="accuracy lost if idle"
        )
        for axes in (left, right):
            axes.set_xticks([1, 2, 3, 4])
    handles = [
        Line2D([], [], color=colour, ls=style, marker=marker, ms=5, label=f"{FORMS[form]}, {words} experts")
        for form, colour in COLOURS.items()
        for _, words, style, marker in LINES
    ]
    dense = Line2D([], [], color="black", lw=0.8, label="linear head, dense MLPs: mean")
    band = Patch(color="black", alpha=0.08, lw=0, label="bars and band: least and greatest of three seeds")
    figure.legend(
        handles=[*handles, dense, band], loc="outside lower center", ncols=3, frameon=False, fontsize=8, handlelength=4
    )
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
