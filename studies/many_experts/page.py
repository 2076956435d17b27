"""The page of the study: every sentence of result is made from the runs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from studies.common.paired import Difference, paired
from studies.many_experts.contenders import CONTENDERS, DENSE, EXPERT_DIMS, FULL, PROBLEM_SIZES, PRODUCT_KEYS, cells

__all__ = ["page"]

TITLES = {"gpt": "GPT, held-out loss", "mixer": "Mixer, test loss"}
RATE_SEED = 100

LARGEST = max(arranged[2] for arranged in EXPERT_DIMS.values() if 2 in arranged)
"""The expert modes of the full gate that more experts are compared with than it was given."""

Cells = Mapping[tuple[str, tuple[int, ...], str], Mapping[int, Mapping[str, Any]]]
"""By problem, expert modes and contender: what each seed gave."""


def page(runs: Sequence[Mapping[str, Any]]) -> str:
    """The page in Markdown.

    Args:
        runs: What `studies.common.runs.read` gives.
    """
    found: dict[tuple[str, tuple[int, ...], str], dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for entry in runs:
        settings = entry["settings"]
        if settings["seed"] != RATE_SEED:
            key = settings["problem"], tuple(settings["expert_dims"]), settings["contender"]
            found[key][settings["seed"]] = {**entry["result"], "learning_rate": settings["learning_rate"]}
    seconds = sum(entry.get("seconds", 0.0) for entry in runs)
    lines = [
        "# A gate for many experts",
        "",
        "The gate of `N` experts in one mode multiplies each input by `N` rows. Two things make it cheaper: a rank",
        "(`gate_rank=`), with which all experts look at the same few directions of the input, and more expert modes,",
        "as the gate has a row for each index of each mode, not for each expert. What they cost in accuracy was",
        "measured in small models with experts in every MLP, each with as many parameters as the dense MLP, the gate",
        "counted: what a cheaper gate saves goes into the rank of the experts. A full gate has two modes where nothing",
        f"is said; {max(EXPERT_DIMS):,} experts, for which it would be larger than the dense MLP, are compared with",
        f"one of {prod(LARGEST):,}. Lower loss is better; `±` is the standard error of differences paired by seed.",
        "Better and worse are so by the 95% interval of Student's t; the others are not told apart.",
        "",
        *_results(found),
        "",
        *(line for problem in TITLES for line in _table(found, problem)),
        "## Rules",
        "",
        "- CP, the default initialisation and batch norm. *Product keys* is PEER (He 2024): experts of one hidden",
        "  unit, of which four heads choose eight each; as many experts as the parameters allow (196).",
        *(_size_of(problem) for problem in TITLES),
        "- The GPT reads the bytes of Python's standard library, the Mixer Fashion-MNIST.",
        "- AdamW, 5% warm-up, half a cosine; the best of three learning rates for each contender, chosen with seed",
        f"  {RATE_SEED} and the smaller number of experts, on the half of the held-out samples that is not reported.",
        *_edges(runs),
        "- An expert is *in use* if the standard deviation of its coefficient over inputs is above 0.01, a large part",
        "  of a uniform 1/64: a softmax that stays near uniform counts as unused.",
        "- What the gates cost in time: [What the gate and many experts cost](../gate-benchmarks.md).",
        "",
        "## What this cannot show",
        "",
        "Larger models and longer training. A rank of 16 is a quarter of these models' features; of 768 features it",
        "would be a much smaller share. The number of modes and of the experts in each change together: whether more",
        "modes are worse, or fewer logits, is not told apart.",
        "",
        f"Command: `python -m studies many_experts`; the {len(runs)} runs of this page took {seconds / 60:.0f}",
        "minutes, one thread each. A stopped command goes on where it was.",
        "Runs: [many-experts.jsonl](many-experts.jsonl).",
        "",
    ]
    return "\n".join(lines)


def _edges(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of each problem whose learning rates end where a contender was best: that a higher or lower one may be better."""
    lines = []
    for problem in TITLES:
        tried = {e["settings"]["learning_rate"] for e in runs if e["settings"]["problem"] == problem}
        taken = [
            (e["settings"]["contender"], e["settings"]["learning_rate"])
            for e in runs
            if e["settings"]["problem"] == problem and e["settings"]["seed"] != RATE_SEED
        ]
        at_edge = {name for name, rate in taken if len(tried) > 1 and rate in (min(tried), max(tried))}
        if at_edge:
            everyone = len({name for name, _ in taken})
            model = TITLES[problem].split(",")[0]
            lines.append(
                f"  Of the {model}, {len(at_edge)} of {everyone} contenders took a rate at an edge of those tried."
            )
    return lines


def _size_of(problem: str) -> str:
    size, what = PROBLEM_SIZES[problem], {"gpt": "sequences of 64 bytes", "mixer": "images"}[problem]
    return (
        f"- {TITLES[problem].split(',')[0]}: {size.layers} blocks of {size.features} features, {size.steps} steps of "
        f"{size.batch} {what}."
    )


def _difference(
    found: Cells, problem: str, one: tuple[str, tuple[int, ...]], other: tuple[str, tuple[int, ...]]
) -> Difference | None:
    """The loss of one contender less that of another, over the seeds that both have."""
    mine, theirs = (found.get((problem, dims, name), {}) for name, dims in (one, other))
    seeds = sorted(mine.keys() & theirs.keys())
    return paired([mine[s]["loss"] for s in seeds], [theirs[s]["loss"] for s in seeds]) if seeds else None


def _results(found: Cells) -> list[str]:
    """For each cheaper gate, its difference from the full one, and the full one's from the dense model and PEER."""
    lines = []
    for name in CONTENDERS:
        for other in (DENSE, PRODUCT_KEYS) if name == FULL else (FULL,):
            parts = []
            for problem, title in TITLES.items():
                for experts, arranged in EXPERT_DIMS.items():
                    mine, theirs = (
                        arranged.get(CONTENDERS[name].modes),
                        () if other != FULL else arranged.get(2, LARGEST),
                    )
                    if mine is None:
                        continue
                    if (d := _difference(found, problem, (name, mine), (other, theirs))) is not None:
                        verdict = "not told apart" if d.is_unclear else "better" if d.mean < 0 else "worse"
                        parts.append(f"{title.split(',')[0]} {experts:,} experts {d} ({verdict})")
            if parts:
                lines.append(f"- **{name}**, loss less that of **{other}**: {'; '.join(parts)}.")
    return lines


def _table(found: Cells, problem: str) -> list[str]:
    lines = [
        f"## {TITLES[problem]}",
        "",
        "| contender | experts | loss | less dense | less PEER | accuracy | in use | parameters of an MLP | rate |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, dims in cells():
        by_seed = found.get((problem, dims, name))
        if not by_seed:
            continue
        results = list(by_seed.values())
        losses = [result["loss"] for result in results]
        spread = statistics.stdev(losses) if len(losses) > 1 else float("nan")
        used = [one for result in results for one in result["in_use"]]
        share = f"{sum(u for u, _ in used) / sum(n for _, n in used):.0%}" if used else ""
        less_dense, less_keys = (
            "" if name == other else _difference(found, problem, (name, dims), (other, ())) or ""
            for other in (DENSE, PRODUCT_KEYS)
        )
        lines.append(
            f"| {name} | {' x '.join(map(str, dims))}"
            f" | {statistics.fmean(losses):.3f} (sd {spread:.3f}, n {len(losses)})"
            f" | {less_dense} | {less_keys} | {statistics.fmean(r['accuracy'] for r in results):.3f} | {share}"
            f" | {results[0]['mlp_parameters']:,} | {results[0]['learning_rate']:g} |"
        )
    return [*lines, ""]
