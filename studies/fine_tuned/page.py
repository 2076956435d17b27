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
from studies.common.paired import Difference, paired
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

FURTHER, LESS, NOT_TOLD = "further beyond chance", "less far", "not told apart"

OPENING = """\
# Experts on a backbone that is trained with them

[The study of specialisation](specialisation.md) puts heads of experts (uMoE layers, Oldfield et al. 2024, arXiv
2402.12550) on frozen features; the paper fine-tunes the backbone too. Here the last layer of each of two pretrained
backbones is trained together with the head, beside the same backbone *frozen*: are the experts as specialised? Whether
they are the same experts was not looked at, and nothing here compares with the paper's own models or data.

Each expert is removed in turn, and the test samples are counted, by class, that were right and are now wrong.

- *Polysemanticity*: `p = |d - e|`, a Euclidean length, with `d` the share of each class's right answers that is lost
  and `e` 1 at the largest entry of `d` and 0 elsewhere: 0 if one class loses all and the others nothing, about 1 if
  every loss is small. Mean over the experts whose removal changes an answer; *others as 1* counts the rest as 1. The
  *null*: as many losses, drawn at random.
- *Concentration*: the largest entry of `d` over their sum, at most 1. The same experts, the same null.
- *Mutual information*, in bits, of the class and an expert drawn by the sample's coefficients, which the gate gives:
  what using an expert tells of the class. Null: labels exchanged at random.
- *Distance beyond the null*: how far a measure is from its null in the direction of specialised experts, below it for
  polysemanticity, above it for the other two. Nulls move too when a backbone is trained, as more or fewer answers are
  lost.
- `±` is the standard error of differences paired by seed, *n* their number. *Not told apart*: zero is in their 95%
  interval by Student's t. Of 18 such comparisons about one would differ by chance; differences are taken before
  rounding.

""".splitlines()

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
        *OPENING,
        *(line for part in shown for line in (f"**{part.title}**", "", *(f"- {s}" for s in _verdicts(part)), "")),
        f"![Three measures against the number of experts, frozen and trained, each beside its null]({FIGURE})",
        "",
        "*Means, and shaded from the least to the largest seed; dotted: nulls. A line is to be read beside the null of "
        "its own colour: polysemanticity below it and the others above it are specialised.*",
        "",
        *(line for part in shown for line in (f"## {part.title}", "", *_differences(part), *_table(part), "")),
        *_how(shown, command, training),
    ]
    return "\n".join(lines) + "\n"


def _differences(part: Part) -> list[str]:
    """The trained backbone less the frozen one: each measure, its null, and the distance between them."""
    found = Runs(part.entries)
    lines = []
    for measure, name in MEASURES.items():
        for experts in found.experts:
            seeds = found.common(*((b, experts) for b in BACKBONES))
            if not seeds:
                continue
            both = BACKBONES[::-1]
            moves = [paired(*([found.of(b, experts, s, measure, w) for s in seeds] for b in both)) for w in (0, 1)]
            distance = _distance(found, measure, experts, seeds)
            lines.append(
                f"| {name} | {experts:,} | {moves[0].mean:+.4f} | {moves[1].mean:+.4f} | "
                f"{_mean(distance)} | {distance.pairs} | {_way(distance)} |"
            )
    if not lines:
        return []
    return [
        "Trained less frozen:",
        "",
        "| measure | experts | itself | its null | distance beyond the null | n | |",
        "|---|---:|---:|---:|---:|---:|---|",
        *lines,
        "",
    ]


def _distance(found: Runs, measure: str, experts: int, seeds: Sequence[int]) -> Difference:
    return paired(*([found.excess(b, experts, s, measure) for s in seeds] for b in BACKBONES[::-1]))


def _way(difference: Difference) -> str:
    if difference.is_unclear:
        return NOT_TOLD
    return FURTHER if difference.mean > 0 else LESS


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
    sentences = [*_as_specialised(found), _beyond(found), *_accuracy(found)]
    moved = [found.of("trained", n, s, "moved") for n in (*found.experts, 0) for s in found.seeds("trained", n)]
    if moved:
        sentences.append(
            f"*How far the backbone moved*: the root mean square change of the test {part.samples}' features is "
            f"{min(moved):.2f} to {max(moved):.2f} of that of their distance from their mean before; what is found "
            "holds for that much."
        )
    missing = len(EXPERTS_AND_LINEAR) * 2 * PLANNED_SEEDS - len(found.found)
    if missing > 0:
        sentences.append(
            f"**Not all was run**: {missing} of {missing + len(found.found)} planned runs are missing; the command "
            "goes on with them. What rests on one seed, or on none, is no finding."
        )
    return sentences


def _as_specialised(found: Runs) -> list[str]:
    """By each measure, at how many numbers of experts the two backbones differ, and which way."""
    parts = []
    for measure, name in MEASURES.items():
        ways = []
        for experts in found.experts:
            seeds = found.common(*((b, experts) for b in BACKBONES))
            if len(seeds) > 1:
                ways.append((experts, _way(_distance(found, measure, experts, seeds))))
        told = [
            f"{way} with {', '.join(numbers)}"
            for way in (FURTHER, LESS, NOT_TOLD)
            if (numbers := [f"{experts:,}" for experts, w in ways if w == way])
        ]
        if told:
            parts.append(f"{'B' if parts else 'b'}y {name} {'; '.join(told)}.")
    if not parts:
        return []
    return [f"**Trained beside frozen, experts are** {' '.join(parts)}"]


def _beyond(found: Runs) -> str:
    """In how many runs each measure lies on the side of its null that specialisation would put it on."""
    parts = []
    for measure, name in MEASURES.items():
        counts = []
        for backbone in BACKBONES:
            excesses = [found.excess(backbone, n, s, measure) for n in found.experts for s in found.seeds(backbone, n)]
            counts.append(f"{sum(excess > 0 for excess in excesses)} of {len(excesses)} {backbone}")
        parts.append(f"{name} in {', '.join(counts)}")
    return f"*Runs on the specialised side of their null*, by however little: {'; '.join(parts)}."


def _accuracy(found: Runs) -> list[str]:
    sentences = []
    parts = []
    for experts in (*found.experts, 0):
        seeds = found.common(*((b, experts) for b in BACKBONES))
        if seeds:
            gained = paired(*([found.of(b, experts, s, "test accuracy") for s in seeds] for b in BACKBONES[::-1]))
            parts.append(f"{f'{experts:,} experts' if experts else 'linear head'} {_difference(gained)}")
    if parts:
        sentences.append(f"*Test accuracy, trained less frozen*: {'; '.join(parts)}.")
    for backbone in BACKBONES:
        parts = []
        for experts in found.experts:
            seeds = found.common((backbone, experts), (backbone, 0))
            if seeds:
                less = paired(*([found.of(backbone, n, s, "test accuracy") for s in seeds] for n in (experts, 0)))
                parts.append(f"{experts:,} experts {_difference(less)}")
        if parts:
            sentences.append(f"*Test accuracy less a linear head's*, {backbone} backbone: {'; '.join(parts)}.")
    return sentences


def _difference(found: Difference) -> str:
    """A mean of pairs with its standard error and its number; what is not told apart is said."""
    if found.pairs == 1:
        return f"{_mean(found)} (one seed)"
    return f"{_mean(found)}{', not told apart' if found.is_unclear else ''} (n {found.pairs})"


def _mean(found: Difference) -> str:
    return f"{found.mean:+.4f}" + ("" if found.pairs == 1 else f" ± {found.error:.4f}")


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
