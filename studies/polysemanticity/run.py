"""Class-level polysemanticity against the number of experts: ``python -m studies polysemanticity [--data FOLDER]``.

Two observations of Oldfield et al. 2024 (arXiv 2402.12550), made there with CP heads on large vision models, looked for
on small images: more experts serve fewer classes each, and entmax coefficients fewer than softmax ones.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from factorized_moe._writing import write_files
from factorized_moe.demo.training import reproducible
from factorized_moe.interpret import counterfactuals
from studies.common.images import FASHION_MNIST, Images, Sizes, load, train_classifier

ROOT = Path(__file__).parents[2]
FIGURE = "polysemanticity.svg"
EXPERTS = (16, 64, 256, 1024)
ACTIVATIONS = ("entmax15", "softmax")
SEEDS = (0, 1, 2)
SUBSTANTIAL = 10
"""Images that an expert's removal has to cost for its concentration to count: one image is always of one class."""
COLOURS = {"entmax15": "#1f4e79", "softmax": "#e9a23b"}


@dataclass(frozen=True)
class Run:
    """One trained classifier.

    Attributes:
        activation: The gate's.
        experts: The number of experts.
        seed: The seed.
        accuracy: On the test images.
        with_effect: Experts without which some class is recognised less often.
        polysemanticity: Mean over these; ``None`` if there is none.
        largest_drop: The share of its accuracy that the most affected class loses, mean over these.
        substantial: Experts without which at least 10 test images fewer are recognised.
        concentration: The share of an expert's accuracy drop, summed over classes, that is the most affected class's:
            mean over these; ``None`` if there is none. 1 is one class alone, whatever the drop's size.
        experts_per_image: Coefficients of an image other than 0, mean over the test images.
    """

    activation: str
    experts: int
    seed: int
    accuracy: float
    with_effect: int
    polysemanticity: float | None
    largest_drop: float | None
    substantial: int
    concentration: float | None
    experts_per_image: float


def runs(images: Images, sizes: Sizes, experts: Sequence[int] = EXPERTS, seeds: Sequence[int] = SEEDS) -> Iterator[Run]:
    """Train and measure, one classifier after the other; those of one seed see the images in the same order."""
    for seed in seeds:
        for number in experts:
            for activation in ACTIVATIONS:
                with reproducible(seed):
                    model = train_classifier(images, sizes, number, activation, seed)
                    yield _run(model, images, activation, number, seed)


def _run(model: Any, images: Images, activation: str, experts: int, seed: int) -> Run:
    found = counterfactuals(model, images.test_batches())
    measured = found.polysemanticity()
    assert found.correct is not None  # the batches have labels
    assert found.correct_without is not None
    drops = measured.accuracy_drop  # (N, C)
    largest = drops.amax(dim=-1)
    lost = (found.correct - found.correct_without).clamp(min=0).sum(dim=-1)
    substantial = lost >= SUBSTANTIAL
    return Run(
        activation=activation,
        experts=experts,
        seed=seed,
        accuracy=float(found.correct.sum() / found.num_predictions),
        with_effect=int(measured.has_effect.sum()),
        polysemanticity=_known(measured.mean),
        largest_drop=_known(float(largest[measured.has_effect].mean())),
        substantial=int(substantial.sum()),
        concentration=_known(float((largest / drops.sum(dim=-1))[substantial].mean())),
        experts_per_image=float(found.remade.sum() / found.num_predictions),
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def page(found: Sequence[Run], facts: Mapping[str, str]) -> str:
    """The page: what the figures say of the two observations, the picture, the table, and how it was measured."""
    seeds = sorted({run.seed for run in found})
    lines = [
        "# Polysemanticity and the number of experts",
        "",
        *(f"- {sentence}" for sentence in findings(found)),
        "",
        f"![Polysemanticity and concentration against the number of experts]({FIGURE})",
        "",
        "| gate | experts | accuracy | used by an image | with an effect | polysemanticity | largest drop "
        "| substantial | concentration |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for activation in dict.fromkeys(run.activation for run in found):
        for experts in sorted({run.experts for run in found}):
            mine = [run for run in found if (run.activation, run.experts) == (activation, experts)]
            cells = [
                _spread([run.accuracy for run in mine], 3),
                _spread([run.experts_per_image for run in mine], 1),
                _spread([run.with_effect for run in mine], 0),
                _spread([run.polysemanticity for run in mine], 3),
                _spread([run.largest_drop for run in mine], 3),
                _spread([run.substantial for run in mine], 0),
                _spread([run.concentration for run in mine], 3),
            ]
            lines.append(f"| {activation} | {experts:,} | {' | '.join(cells)} |")
    lines += ["", "Mean and, in brackets, the smallest and the largest of the seeds.", "", "## How it was measured", ""]
    lines += [
        f"Written by `{facts['command']}` from [polysemanticity.json](polysemanticity.json): do not edit. "
        f"{facts['images']} Each classifier is a small network with a CP head of rank {facts['rank']}, trained "
        f"together for {facts['epochs']} epochs; {len(seeds)} seeds.",
        "",
        "Each expert is taken out in turn (`factorized_moe.interpret.counterfactuals`). With `d_c` the share of class",
        "`c`'s test accuracy lost without it, its *polysemanticity* is `||d - onehot(argmax d)||`: 0 if it carries all",
        "of one class, 1 in the limit of a vanishing effect, more if it carries several classes. The form is this",
        "library's; that the paper's own is the same to the letter has not been confirmed. Its *concentration* is the",
        "largest `d_c` over the sum of all, which does not depend on the size of the effect: 1 is one class alone.",
        "Polysemanticity is a mean over the experts with an effect, concentration over the *substantial* ones, without",
        f"which at least {SUBSTANTIAL} test images fewer are recognised.",
        "",
        f"Measured on: {facts['machine']}.",
        "",
    ]
    return "\n".join(lines)


MEASURES = ("polysemanticity", "concentration")


def findings(found: Sequence[Run]) -> list[str]:
    """What the figures say, in sentences made from them."""
    sizes = sorted({run.experts for run in found})
    sentences = []
    for activation in dict.fromkeys(run.activation for run in found):
        few, many = (_by_seed(found, activation, size, "polysemanticity") for size in (sizes[0], sizes[-1]))
        fell = sum(after < before for before, after in zip(few, many, strict=True))
        verdict = _verdict("falls", fell, len(few))
        sentences.append(
            f"*Polysemanticity falls with the number of experts* ({activation}): {verdict}. From {sizes[0]:,} to "
            f"{sizes[-1]:,} experts it goes from {_mean(few):.3f} to {_mean(many):.3f}."
        )
        drops = [_mean(_by_seed(found, activation, size, "largest_drop")) for size in (sizes[0], sizes[-1])]
        sentences.append(
            f"Over the same range the class that an expert matters to most loses {drops[0]:.1%} and {drops[1]:.1%} of "
            f"its accuracy without it ({activation}); a score near 1 says little more than that this is small."
        )
        shares = {size: _mean(_by_seed(found, activation, size, "concentration")) for size in sizes}
        known = {size: share for size, share in shares.items() if not math.isnan(share)}
        if len(known) > 1:
            first, last = min(known), max(known)
            moved = "grows" if known[last] > known[first] else "does not grow"
            sentences.append(
                f"The concentration, which is free of this, {moved} ({activation}): {known[first]:.3f} at {first:,} "
                f"experts and {known[last]:.3f} at {last:,}."
            )
    if set(ACTIVATIONS) <= {run.activation for run in found}:
        for measure, word in (("polysemanticity", "less polysemantic"), ("concentration", "more concentrated")):
            wins = []
            for size in sizes:
                values = zip(*(_by_seed(found, name, size, measure) for name in ACTIVATIONS), strict=True)
                both = [pair for pair in values if not any(map(math.isnan, pair))]
                better = sum((a < b) if measure == "polysemanticity" else (a > b) for a, b in both)
                if both:
                    wins.append(f"{better} of {len(both)} seeds at {size:,} experts")
            sentences.append(
                f"*Entmax gives experts that are {word} than softmax's*: in {', '.join(wins) or 'no case'}."
            )
    return sentences


def _verdict(word: str, count: int, total: int) -> str:
    if count == total:
        return f"reproduced, it {word} in every seed"
    return f"not reproduced, it {word} in {count} of {total} seeds"


def _by_seed(found: Sequence[Run], activation: str, experts: int, measure: str) -> list[float]:
    mine = [run for run in found if (run.activation, run.experts) == (activation, experts)]
    values = [getattr(run, measure) for run in sorted(mine, key=lambda run: run.seed)]
    return [math.nan if value is None else value for value in values]


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _mean(values: Sequence[float]) -> float:
    known = _finite(values)
    return statistics.fmean(known) if known else math.nan


def _spread(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "none"
    return f"{_mean(known):,.{digits}f} [{min(known):,.{digits}f}, {max(known):,.{digits}f}]"


def draw(found: Sequence[Run], path: Path) -> None:
    """Draw the two measures against the number of experts: means, and a band from the least to the largest seed."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "factorized-moe", "font.size": 9, "axes.spines.top": False}):
        figure, axes = pyplot.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
        for axis, measure in zip(axes, MEASURES, strict=True):
            for activation in dict.fromkeys(run.activation for run in found):
                mine = [run for run in found if run.activation == activation and getattr(run, measure) is not None]
                sizes = sorted({run.experts for run in mine})
                values = [_by_seed(found, activation, size, measure) for size in sizes]
                axis.plot(
                    sizes, [_mean(v) for v in values], "o-", markersize=3, label=activation, color=COLOURS[activation]
                )
                axis.fill_between(
                    sizes,
                    [min(_finite(v)) for v in values],
                    [max(_finite(v)) for v in values],
                    alpha=0.2,
                    color=COLOURS[activation],
                    lw=0,
                )
            every = sorted({run.experts for run in found})
            axis.set_xlim(every[0] / 1.2, every[-1] * 1.2)
            axis.set_xscale("log", base=2)
            axis.set_xticks(every, [f"{size:,}" for size in every])
            axis.set_xlabel("experts")
            axis.set_ylabel(f"{measure}, mean over experts")
            axis.spines["right"].set_visible(False)
            axis.grid(alpha=0.3, linewidth=0.5)
        axes[0].legend(frameon=False)
        write_files(path.parent, {path.name: lambda place: figure.savefig(place, metadata={"Date": None})})
        pyplot.close(figure)


def write(found: Sequence[Run], facts: Mapping[str, str], out: Path) -> None:
    """Write the figures, the page and the picture."""
    stored = {"facts": dict(facts), "runs": [asdict(run) for run in found]}
    figures = json.dumps(stored, indent=1) + "\n"
    write_files(out, {"polysemanticity.json": figures.encode(), "polysemanticity.md": page(found, facts).encode()})
    draw(found, out / FIGURE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure and write the page."""
    parser = argparse.ArgumentParser(prog="python -m studies polysemanticity", description=__doc__)
    parser.add_argument("--data", type=Path, default=FASHION_MNIST, help="a folder of IDX files")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "studies", help="the folder to write to")
    options = parser.parse_args(arguments)
    images, sizes, found = load(options.data), Sizes(), []
    start = time.perf_counter()
    for run in runs(images, sizes):
        found.append(run)
        print(f"{time.perf_counter() - start:.0f} s  {run}", flush=True)
    side = math.isqrt(images.train.shape[1])
    facts = {
        "command": "python -m studies polysemanticity",
        "images": f"{options.data.name}: {len(images.train):,} training and {len(images.test):,} test images of "
        f"{side} x {side} pixels.",
        "rank": str(sizes.rank),
        "epochs": str(sizes.epochs),
        "machine": ", ".join(f"{key} {value}" for key, value in describe().items()),
    }
    write(found, facts, options.out)
