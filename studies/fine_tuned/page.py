"""The page and the picture of the study; every sentence that judges follows from the runs.

Legend: ``N`` experts, ``C`` classes.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factorized_moe._writing import write_files
from studies.common.paired import paired
from studies.fine_tuned.backbone import Sizes

__all__ = ["FIGURE", "Part", "page", "write"]

FIGURE = "fine-tuned.svg"
BACKBONES = ("frozen", "trained")
EXPERTS_AND_LINEAR = (16, 64, 256, 0)
"""The heads; 0 experts is a linear head."""
PLANNED_SEEDS = 3
COLOURS = {"frozen": "#1f77b4", "trained": "#d62728"}

MEASURES = {
    "mean": "polysemanticity",
    "concentration": "concentration",
    "information: mutual_information": "mutual information",
}
"""Measures, by what the page calls them; the first two over the experts with an effect."""

Entries = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Part:
    """One problem of the study.

    Attributes:
        title: Of its section.
        file: Of its runs.
        entries: The finished runs.
        sizes: How much was trained on what.
        samples: What is sorted into classes: ``"texts"`` or ``"pictures"``.
        facts: Of its data and its backbone, sentences.
    """

    title: str
    file: str
    entries: Entries
    sizes: Sizes
    samples: str
    facts: Sequence[str]


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
        return [self.of(backbone, experts, seed, measure, which) for seed in self.seeds(backbone, experts)]

    def common(self, *cells: tuple[str, int]) -> list[int]:
        """The seeds that all cells have."""
        return sorted(set.intersection(*(set(self.seeds(*cell)) for cell in cells)))

    def of(self, backbone: str, experts: int, seed: int, measure: str, which: int = 0) -> float:
        """One figure of one run."""
        result = self.found[backbone, experts, seed]
        measures: Mapping[str, Sequence[float]] = result.get("measures", {})
        found: float = measures[measure][which] if measure in measures else result[measure]
        return found

    def excess(self, backbone: str, experts: int, seed: int, measure: str) -> float:
        """A measure less its null, in the direction of specialisation: above zero is beyond chance."""
        value, null = (self.of(backbone, experts, seed, measure, which) for which in (0, 1))
        return null - value if measure == "mean" else value - null


def write(parts: Sequence[Part], out: Path, command: str, training: Sequence[str]) -> None:
    """Write the page and the picture.

    Args:
        parts: The problems.
        out: The folder to write to.
        command: What made the runs.
        training: How all of them were trained, sentences.
    """
    write_files(out, {"fine-tuned.md": page(parts, command, training).encode()})
    draw([part for part in parts if part.entries], out / FIGURE)


def page(parts: Sequence[Part], command: str, training: Sequence[str]) -> str:
    """The page."""
    shown = [part for part in parts if part.entries]
    lines = [
        "# Experts on a backbone that is trained with them",
        "",
        "[The study of specialisation](specialisation.md) puts heads of experts (uMoE layers, Oldfield et al. 2024, "
        "arXiv",
        "2402.12550) on frozen features; the paper fine-tunes the backbone too. Here the last layers of two pretrained",
        "backbones are trained together with the head, beside the same backbones *frozen*: do the experts come to do",
        "the same? Nothing here compares with the paper's own models or data.",
        "",
    ]
    for part in shown:
        lines += [f"**{part.title}**", "", *[f"- {sentence}" for sentence in _verdicts(part)], ""]
    lines += [
        "`±` is the standard error of differences that are paired by seed, *n* their number. A difference is called",
        "one from two standard errors on, else *not told apart* (of three seeds, a test at 5% would ask for 4.3).",
        "",
        f"![Three measures against the number of experts, frozen and trained, each beside its null]({FIGURE})",
        "",
        "## What is measured",
        "",
        "Each expert is removed in turn, and the test samples are counted, by class, that were right and are now "
        "wrong.",
        "",
        "- *Polysemanticity*: `p = |d - e|`, with `d` the share of each class's right answers that is lost, and `e` 1",
        "  at the largest entry of `d` and 0 elsewhere: 0 if one class loses all and the others nothing, about 1 if",
        "  every loss is small. Null: as many losses, drawn at random. Mean over the experts with an effect;",
        "  *others as 1* counts the rest as 1.",
        "- *Concentration*: the largest entry of `d` over their sum. The same null, the same experts.",
        "- *Mutual information*, in bits, between the class and the expert that a sample's coefficients are drawn as:",
        "  what using an expert tells of the class. Null: labels exchanged at random.",
        "",
        "Specialised experts have a polysemanticity below its null, and the other two above theirs.",
        "",
    ]
    for part in shown:
        lines += [f"## {part.title}", "", *_table(part), ""]
    return "\n".join([*lines, *_how(shown, command, training)]) + "\n"


def _table(part: Part) -> list[str]:
    found = Runs(part.entries)
    return [
        "| backbone | experts | seeds | test accuracy | training accuracy | polysemanticity | null | others as 1 | "
        "concentration | null | mutual information | null | with an effect | in use |",
        "|---|---:|---:|" + "---:|" * 11,
        *(_row(found, b, n) for n in (*found.experts, 0) for b in BACKBONES if found.seeds(b, n)),
        "",
        "Means over seeds and, in brackets, the smallest and the largest. *With an effect*: experts whose removal",
        f"changes an answer. *In use*: experts with a coefficient above zero, mean of the test {part.samples}.",
    ]


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


def _verdicts(part: Part) -> list[str]:
    found = Runs(part.entries)
    sentences = [
        *_in_short(found),
        _beyond(found),
        *_more_experts(found),
        *_trained_less_frozen(found),
        *_accuracy(found),
    ]
    moved = [found.of("trained", n, s, "moved") for n in (*found.experts, 0) for s in found.seeds("trained", n)]
    if moved:
        sentences.append(
            f"*How far it was trained*: the test {part.samples}' features moved by {min(moved):.2f} to "
            f"{max(moved):.2f} of their distance from their mean; what is found holds for that much."
        )
    missing = len(EXPERTS_AND_LINEAR) * 2 * PLANNED_SEEDS - len(found.found)
    if missing > 0:
        sentences.append(
            f"**Not all was run**: {missing} of {missing + len(found.found)} planned runs are missing; the command "
            "goes on with them. What rests on one seed, or on none, is no finding."
        )
    return sentences


def _in_short(found: Runs) -> list[str]:
    """How many comparisons of the two backbones come out which way."""
    counts = dict.fromkeys(("further beyond chance", "less far", "not told apart"), 0)
    for measure in MEASURES:
        for experts in found.experts:
            seeds = found.common(*((b, experts) for b in BACKBONES))
            if len(seeds) > 1:
                difference = paired(*([found.excess(b, experts, s, measure) for s in seeds] for b in BACKBONES[::-1]))
                way = "not told apart" if difference.is_tie else "further beyond chance"
                counts["less far" if way != "not told apart" and difference.mean < 0 else way] += 1
    if not sum(counts.values()):
        return []
    return [
        f"**Trained with the backbone, experts are** {', '.join(f'{way} in {n}' for way, n in counts.items())} of "
        f"{sum(counts.values())} comparisons with the frozen backbone (measures and numbers of experts)."
    ]


def _beyond(found: Runs) -> str:
    """In how many runs each measure lies on the side of its null that specialisation would put it on."""
    parts = []
    for measure, name in MEASURES.items():
        counts = []
        for backbone in BACKBONES:
            excesses = [found.excess(backbone, n, s, measure) for n in found.experts for s in found.seeds(backbone, n)]
            counts.append(f"{sum(excess > 0 for excess in excesses)} of {len(excesses)} {backbone}")
        parts.append(f"{name} in {', '.join(counts)}")
    return f"*More specialised than chance* (runs on that side of the null): {'; '.join(parts)}."


def _more_experts(found: Runs) -> list[str]:
    """How the excess over the null changes with the number of experts, on each backbone."""
    first, last = found.experts[0], found.experts[-1]
    if first == last:
        return []
    parts = []
    for measure, name in MEASURES.items():
        ways = []
        for backbone in BACKBONES:
            seeds = found.common((backbone, first), (backbone, last))
            if seeds:
                ends = [[found.excess(backbone, n, s, measure) for s in seeds] for n in (last, first)]
                ways.append(f"{backbone} {_difference(*ends)}")
        parts.append(f"{name} {', '.join(ways)}")
    return [f"*From {first} to {last:,} experts*, distance beyond the null: {'; '.join(parts)}."]


def _trained_less_frozen(found: Runs) -> list[str]:
    sentences = []
    for measure, name in MEASURES.items():
        parts = []
        for experts in found.experts:
            seeds = found.common(*((b, experts) for b in BACKBONES))
            if seeds:
                pairs = [[found.excess(b, experts, s, measure) for s in seeds] for b in ("trained", "frozen")]
                parts.append(f"{experts:,} experts {_difference(*pairs)}")
        if parts:
            sentences.append(f"*Trained less frozen, {name}*, distance beyond the null: {'; '.join(parts)}.")
    return sentences


def _accuracy(found: Runs) -> list[str]:
    sentences = []
    for backbone in BACKBONES:
        parts = []
        for experts in found.experts:
            seeds = found.common((backbone, experts), (backbone, 0))
            if seeds:
                pairs = [[found.of(backbone, n, s, "test accuracy") for s in seeds] for n in (experts, 0)]
                parts.append(f"{experts:,} experts {_difference(*pairs)}")
        if parts:
            sentences.append(f"*Accuracy less that of a linear head*, {backbone} backbone: {'; '.join(parts)}.")
    return sentences


def _difference(one: Sequence[float], other: Sequence[float]) -> str:
    """A mean of pairs with its standard error and what it amounts to; one pair alone amounts to nothing."""
    found = paired(one, other)
    if found.pairs == 1:
        return f"{found.mean:+.3f} (one seed)"
    return f"{found}{' (not told apart' if found.is_tie else ' ('}{', ' if found.is_tie else ''}n {found.pairs})"


def _how(parts: Sequence[Part], command: str, training: Sequence[str]) -> list[str]:
    entries = [entry for part in parts for entry in part.entries]
    minutes = sum(entry["seconds"] for entry in entries) / 60
    machines = {", ".join(f"{k} {v}" for k, v in entry["result"]["machine"].items()) for entry in entries}
    lines = [
        "## How it was measured",
        "",
        f"Written by `{command}` from {' and '.join(f'[{part.file}]({part.file})' for part in parts)}: do not edit.",
        f"{len(entries)} runs, {minutes:.0f} minutes by the clock in all, one thread each, on a machine that did other "
        "work beside; a stopped",
        "command goes on where it was.",
        "",
    ]
    for part in parts:
        sizes = part.sizes
        lines += [
            f"- **{part.title}**: {' '.join(part.facts)} {sizes.classes} classes, for each {sizes.train} "
            f"{part.samples} to train on and {sizes.test} to measure on. *Trained*: the last "
            f"{'layer' if sizes.layers == 1 else f'{sizes.layers} layers'} and the head, the layers below are not; "
            f"*frozen*: the head alone. {sizes.epochs} passes in batches of {sizes.batch_size} both, the same ones "
            "for every run of a seed."
        ]
    return [*lines, *[f"- {sentence}" for sentence in training], f"- Machine: {'; '.join(sorted(machines))}."]


def draw(parts: Sequence[Part], path: Path) -> None:
    """Draw measures against the number of experts: means, bands over seeds, nulls dotted; a row for each problem."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    settings = {"svg.hashsalt": "factorized-moe", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(settings):
        size = (9.0, 2.9 * len(parts))
        figure, grid = pyplot.subplots(len(parts), len(MEASURES), figsize=size, layout="constrained", squeeze=False)
        for part, axes in zip(parts, grid, strict=True):
            found = Runs(part.entries)
            for axis, (measure, name) in zip(axes, MEASURES.items(), strict=True):
                for backbone in BACKBONES:
                    _draw_backbone(axis, found, backbone, measure)
                axis.set_xscale("log", base=2)
                axis.set_xticks(found.experts, [str(n) for n in found.experts])
                axis.minorticks_off()
                axis.set_xlabel("experts")
                axis.set_title(f"{part.samples}: {name}", fontsize=9)
        grid[0][0].legend(frameon=False, fontsize=8)
        write_files(path.parent, {path.name: lambda place: figure.savefig(place, metadata={"Date": None})})
        pyplot.close(figure)


def _draw_backbone(axis: Any, found: Runs, backbone: str, measure: str) -> None:
    sizes = [n for n in found.experts if found.seeds(backbone, n)]
    values, nulls = ([found.values(backbone, n, measure, w) for n in sizes] for w in (0, 1))
    colour = COLOURS[backbone]
    axis.plot(sizes, [statistics.fmean(v) for v in values], "o-", ms=3, color=colour, label=backbone)
    axis.plot(sizes, [statistics.fmean(v) for v in nulls], ":", color=colour, label=f"{backbone}, null")
    axis.fill_between(sizes, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.2, lw=0)
