"""The page and the picture of the study; every sentence that judges follows from the runs.

Legend: ``N`` experts.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from factorized_moe._writing import write_files
from studies.common.paired import paired
from studies.fine_tuned.backbone import Sizes

__all__ = ["FIGURE", "page", "write"]

FIGURE = "fine-tuned.svg"
BACKBONES = ("frozen", "trained")
EXPERTS_AND_LINEAR = (16, 64, 256, 0)
"""The heads; 0 experts is a linear head."""
PLANNED_SEEDS = 3
COLOURS = {"frozen": "#1f77b4", "trained": "#d62728"}

MEASURES = {
    "mean": "polysemanticity",
    "concentration": "concentration",
    "information: mutual_information": "mutual information, bits",
}
"""Measures, by what the page calls them; the first two over the experts with an effect."""

Entries = Sequence[Mapping[str, Any]]


class Runs:
    """Finished runs by backbone, number of experts and seed."""

    def __init__(self, entries: Entries) -> None:
        self.found = {
            (e["settings"]["backbone"], e["settings"]["experts"], e["settings"]["seed"]): e["result"] for e in entries
        }
        self.experts = sorted({experts for _, experts, _ in self.found if experts})

    def seeds(self, backbone: str, experts: int) -> list[int]:
        """Those of one cell, in order."""
        return sorted(s for b, n, s in self.found if (b, n) == (backbone, experts))

    def values(self, backbone: str, experts: int, measure: str, which: int = 0) -> list[float]:
        """A measure's value (0) or its null's mean (1) for each seed; of a name that is no measure, the figure."""
        results = [self.found[backbone, experts, seed] for seed in self.seeds(backbone, experts)]
        if measure in MEASURES or measure == "weighted_mean" or measure.startswith("mean_"):
            return [result["measures"][measure][which] for result in results]
        return [result[measure] for result in results]

    def common(self, *cells: tuple[str, int]) -> list[int]:
        """The seeds that all cells have."""
        return sorted(set.intersection(*(set(self.seeds(*cell)) for cell in cells)))

    def of(self, backbone: str, experts: int, seed: int, measure: str) -> float:
        """One figure of one run."""
        result = self.found[backbone, experts, seed]
        found: float = result["measures"][measure][0] if measure in MEASURES else result[measure]
        return found


def write(entries: Entries, out: Path, command: str, sizes: Sizes, facts: Mapping[str, str]) -> None:
    """Write the page and the picture.

    Args:
        entries: The finished runs.
        out: The folder to write to.
        command: What made them.
        sizes: How much was trained on what.
        facts: Of the training, by name.
    """
    write_files(out, {"fine-tuned.md": page(entries, command, sizes, facts).encode()})
    draw(Runs(entries), out / FIGURE)


def page(entries: Entries, command: str, sizes: Sizes, facts: Mapping[str, str]) -> str:
    """The page."""
    found = Runs(entries)
    lines = [
        "# Experts on a backbone that is trained with them",
        "",
        "The study of specialisation puts heads of experts on frozen features. Here the last layers of a "
        "pretrained sentence",
        "encoder are trained together with the head: do the experts come to do the same?",
        "",
        *[f"- {sentence}" for sentence in _verdicts(found, sizes)],
        "",
        f"![Three measures against the number of experts, frozen and trained]({FIGURE})",
        "",
        "| backbone | experts | seeds | test accuracy | training accuracy | polysemanticity | null | all experts, "
        "dead as 1 | "
        "concentration | null | information | null | with an effect | used by a text |",
        "|---|---:|---:|" + "---:|" * 11,
        *(_row(found, b, n) for n in (*found.experts, 0) for b in BACKBONES if found.seeds(b, n)),
        "",
        "Means over seeds and, in brackets, the smallest and the largest. Information is that between expert and "
        "class, in "
        "bits.",
        "",
        *_how(entries, command, sizes, facts),
    ]
    return "\n".join(lines) + "\n"


def _row(found: Runs, backbone: str, experts: int) -> str:
    def cell(measure: str, which: int = 0, digits: int = 3) -> str:
        return _spread(found.values(backbone, experts, measure, which), digits)

    name = f"{experts:,}" if experts else "linear head"
    accuracies = f"{cell('test accuracy')} | {cell('train accuracy')}"
    head = f"| {backbone} | {name} | {len(found.seeds(backbone, experts))} | {accuracies} | "
    if not experts:
        return head + " | " * 8 + " |"
    parts = []
    for measure in MEASURES:
        parts += [cell(measure), f"{statistics.fmean(found.values(backbone, experts, measure, 1)):.3f}"]
        if measure == "mean":
            parts.append(cell("mean_dead_one"))
    return head + " | ".join([*parts, cell("with effect", digits=0), cell("used", digits=1)]) + " |"


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def _verdicts(found: Runs, sizes: Sizes) -> list[str]:
    sentences = []
    first, last = found.experts[0], found.experts[-1]
    for measure, name in MEASURES.items():
        seeds = found.common(*((b, n) for b in BACKBONES for n in (first, last)))
        if not seeds:
            continue
        ways = []
        agree = 0
        for backbone in BACKBONES:
            ends = [statistics.fmean(found.of(backbone, n, s, measure) for s in seeds) for n in (first, last)]
            ways.append(f"from {ends[0]:.3f} to {ends[1]:.3f} ({backbone})")
        for seed in seeds:
            rises = {found.of(b, last, seed, measure) > found.of(b, first, seed, measure) for b in BACKBONES}
            agree += len(rises) == 1
        verdict = "same direction" if agree == len(seeds) else "not the same direction in every seed"
        sentences.append(
            f"*{name[0].upper()}{name[1:]}, {first} to {last:,} experts*: {verdict} on both backbones ({agree} of "
            f"{len(seeds)} seeds), {' and '.join(ways)}."
        )
    for measure, name in MEASURES.items():
        parts = []
        for experts in found.experts:
            seeds = found.common(*((b, experts) for b in BACKBONES))
            if seeds:
                pairs = [[found.of(b, experts, s, measure) for s in seeds] for b in ("trained", "frozen")]
                parts.append(f"{experts:,}: {_difference(*pairs)}")
        sentences.append(f"*{name[0].upper()}{name[1:]}*, trained less frozen: {'; '.join(parts)}.")
    sentences += _beyond(found)
    parts = []
    for experts in found.experts:
        seeds = found.common(("trained", experts), ("trained", 0))
        if seeds:
            pairs = [[found.of("trained", n, s, "test accuracy") for s in seeds] for n in (experts, 0)]
            parts.append(f"{experts:,} experts {_difference(*pairs)}")
    sentences.append(
        f"*Accuracy*, experts less a linear head, both on a trained backbone: {'; '.join(parts) or 'not run'}."
    )
    missing = len(EXPERTS_AND_LINEAR) * 2 * PLANNED_SEEDS - len(found.found)
    if missing > 0:
        sentences.append(
            f"**Not all was run**: {missing} of {missing + len(found.found)} planned runs are missing; the command "
            "goes on with them. What rests on one seed, or on none, is no finding."
        )
    moved = [found.of("trained", n, s, "moved") for n in (*found.experts, 0) for s in found.seeds("trained", n)]
    if not moved:
        return sentences
    sentences.append(
        f"Training moved the test texts' features by {min(moved):.2f} to {max(moved):.2f} of their distance from "
        "their mean: what is found holds for that much."
    )
    return sentences


def _difference(one: Sequence[float], other: Sequence[float]) -> str:
    """A mean of pairs with its standard error and what it amounts to; one pair alone amounts to nothing."""
    found = paired(one, other)
    if found.pairs == 1:
        return f"{found.mean:+.3f} (one seed)"
    return f"{found}{', a tie' if found.is_tie else ''} (n = {found.pairs})"


def _beyond(found: Runs) -> list[str]:
    """Whether each measure lies on the side of its null that specialisation would put it on."""
    sentences = []
    for measure, name in MEASURES.items():
        parts = []
        for backbone in BACKBONES:
            better = total = 0
            for experts in found.experts:
                values, nulls = (found.values(backbone, experts, measure, which) for which in (0, 1))
                total += len(values)
                better += sum((v < n) == (measure == "mean") and v != n for v, n in zip(values, nulls, strict=True))
            parts.append(f"{better} of {total} runs ({backbone})")
        side = "below" if measure == "mean" else "above"
        sentences.append(f"*{name[0].upper()}{name[1:]}* is {side} what chance gives in {' and '.join(parts)}.")
    return sentences


def _how(entries: Entries, command: str, sizes: Sizes, facts: Mapping[str, str]) -> list[str]:
    minutes = sum(entry["seconds"] for entry in entries) / 60
    machines = {", ".join(f"{k} {v}" for k, v in entry["result"]["machine"].items()) for entry in entries}
    return [
        "## How it was measured",
        "",
        f"Written by `{command}` from [fine-tuned.jsonl](fine-tuned.jsonl): do not edit. {len(entries)} runs, "
        f"{minutes:.0f} "
        "minutes of one thread on a machine that did other work beside; a stopped command goes on where it was.",
        "",
        f"- Texts: noun glosses of WordNet (WordNet 3.0 licence), to be sorted by the concept above them: the "
        f"{sizes.classes} "
        f"concepts with the most glosses, {sizes.train} to train on and {sizes.test} to measure on for each, the first "
        f"{sizes.tokens} tokens.",
        f"- Backbone: all-MiniLM-L6-v2 (Apache-2.0), the mean over tokens, standardised. *Trained*: its last "
        f"{sizes.layers} of six "
        f"layers are trained with the head, the others are not. *Frozen*: the head alone. {sizes.epochs} epochs of "
        "batches "
        f"of {sizes.batch_size} both, the same ones for every run of a seed. {facts['training']}",
        f"- Heads: {facts['heads']}",
        "- Polysemanticity, concentration and their null: `factorized_moe.interpret.Polysemanticity`, over the "
        "experts with an "
        "effect; the null draws the texts that an expert's removal loses at random. *Dead as 1* counts experts without "
        "effect as 1. Information: `LabelInformation`, its null with labels shuffled.",
        "- The images of the DINOv2-shaped ViT were not trained on; nothing is claimed of images here.",
        f"- Machine: {'; '.join(sorted(machines))}.",
    ]


def draw(found: Runs, path: Path) -> None:
    """Draw the measures against the number of experts: means, bands over seeds, nulls dotted."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    settings = {"svg.hashsalt": "factorized-moe", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(settings):
        figure, axes = pyplot.subplots(1, len(MEASURES), figsize=(9.0, 3.0), layout="constrained")
        for axis, (measure, name) in zip(axes, MEASURES.items(), strict=True):
            for backbone in BACKBONES:
                sizes = [n for n in found.experts if found.seeds(backbone, n)]
                values, nulls = ([found.values(backbone, n, measure, w) for n in sizes] for w in (0, 1))
                colour = COLOURS[backbone]
                axis.plot(sizes, [statistics.fmean(v) for v in values], "o-", ms=3, color=colour, label=backbone)
                axis.plot(sizes, [statistics.fmean(v) for v in nulls], ":", color=colour, label=f"{backbone}, null")
                axis.fill_between(
                    sizes, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.2, lw=0
                )
            axis.set_xscale("log", base=2)
            axis.set_xticks(found.experts, [str(n) for n in found.experts])
            axis.minorticks_off()
            axis.set_xlabel("experts")
            axis.set_title(name, fontsize=9)
        axes[0].legend(frameon=False, fontsize=8)
        write_files(path.parent, {path.name: lambda place: figure.savefig(place, metadata={"Date": None})})
        pyplot.close(figure)
