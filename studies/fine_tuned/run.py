"""The study's command: ``python -m studies fine_tuned [--quick] [--only texts pictures] [--page]``.

Every finished run is a line of a file, one file for each problem, so a stopped command goes on where it was. The page
and its picture are written anew at the end.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import machine
from factorized_moe import MuMoE
from factorized_moe.interpret import LabelInformation, Polysemanticity, counterfactuals
from factorized_moe.optimisation import warm_up_and_cosine
from studies.common import runs
from studies.common.command import command_of, folder_of
from studies.fine_tuned import page, pictures, texts
from studies.fine_tuned.backbone import Features, Sizes, embedded

CACHE = Path("results/models")

SEEDS = range(page.PLANNED_SEEDS)
RANK = 128
HEAD_RATE, BACKBONE_RATE, WEIGHT_DECAY, WARM_UP = 3e-3, 1e-4, 0.01, 0.05

TRAINING = (
    f"Heads: CP of rank {RANK} with the library's defaults (entmax-1.5), one expert mode, and a linear head; CP has "
    "more parameters than the linear head, so their accuracies are not a comparison at equal size.",
    "A trained backbone also fits better, and more of its experts have an effect: how much of a difference is due to "
    "that is not known. One layer was trained; nothing is said of more.",
    f"AdamW, learning rates {HEAD_RATE:g} (head) and {BACKBONE_RATE:g} (backbone), weight decay {WEIGHT_DECAY:g}, "
    "a warm-up and a cosine, gradients clipped to 1; none of these was tuned. Features are standardised by the means "
    "and deviations of the training samples before any training. A seed sets the head's start and the order of the "
    "batches.",
    "Polysemanticity, concentration and their null: `factorized_moe.interpret.Polysemanticity`; mutual information: "
    "`LabelInformation`.",
)

QUICK = {"classes": 4, "train": 4, "test": 2, "epochs": 1, "batch_size": 8}
"""For tests: figures without meaning."""

Settings = dict[str, Any]


def plan() -> Iterator[Settings]:
    """All runs, seed by seed; a linear head has 0 experts."""
    for seed in SEEDS:
        for trained in (False, True):
            for experts in page.EXPERTS_AND_LINEAR:
                yield {"backbone": "trained" if trained else "frozen", "experts": experts, "seed": seed}


def measure_run(data: Features, sizes: Sizes, settings: Mapping[str, Any], rank: int = RANK) -> dict[str, Any]:
    """Train a head on a backbone, and measure what its experts come to do.

    Args:
        data: The problem.
        sizes: How long to train.
        settings: ``backbone`` (``"trained"`` with the head, or ``"frozen"``), ``experts``, ``seed``.
        rank: The CP rank of the head.
    """
    torch.manual_seed(settings["seed"])
    experts = settings["experts"]
    features = len(data.mean)
    head = MuMoE(features, data.classes, [experts], "cp", rank) if experts else nn.Linear(features, data.classes)
    backbone = copy.deepcopy(data.model)
    trained = settings["backbone"] == "trained"
    losses = _train(data, sizes, backbone, head, settings["seed"], trained)
    head.eval()
    rows = {name: data.scaled(embedded(backbone, part)) for name, part in _parts(data).items()}
    found: dict[str, Any] = {
        "loss": statistics.fmean(losses[-20:]),
        "parameters": sum(parameter.numel() for parameter in head.parameters()),
        "moved": _moved(backbone, data, rows["test"]),
    }
    for name, part in _parts(data).items():
        with torch.no_grad():
            answers = torch.cat([head(batch) for batch in rows[name].split(512)]).argmax(-1)
        found[f"{name} accuracy"] = float((answers == part.labels).double().mean())
    return found | (_experts(head, rows["test"], data) if experts else {})


def _parts(data: Features) -> dict[str, Any]:
    return {"train": data.train, "test": data.test}


@torch.no_grad()
def _moved(backbone: nn.Module, data: Features, rows: Tensor) -> float:
    """How far training has moved the test texts' features, over their distance from their mean."""
    before = data.scaled(embedded(data.model, data.test))
    return float((rows - before).square().sum().sqrt() / (before - before.mean(0)).square().sum().sqrt())


def _experts(head: nn.Module, rows: Tensor, data: Features) -> dict[str, Any]:
    """Polysemanticity and mutual information beside their nulls, and how many experts a text uses."""
    labels = data.test.labels
    found = counterfactuals(head, list(zip(rows.split(512), labels.split(512), strict=True)))
    if found.correct is None or found.correct_without is None:
        raise RuntimeError("the batches have labels, so the counts of correct answers are known")
    summary = Polysemanticity.of_counts(found.correct, found.correct_without).summary()
    with torch.no_grad():
        (coefficients,) = head.gate(rows)
    information = LabelInformation.of(coefficients, labels, data.classes)
    beside = dict(summary.measures)
    for name in ("mutual_information", "concentration", "effective_classes"):
        beside[f"information: {name}"] = getattr(information, name)
    return {
        "measures": {name: [each.value, each.null_mean, each.null_spread] for name, each in beside.items()},
        "with effect": summary.num_experts - summary.num_without_effect,
        "used": float((coefficients > 0).double().sum(-1).mean()),
    }


def _train(data: Features, sizes: Sizes, backbone: nn.Module, head: nn.Module, seed: int, trained: bool) -> list[float]:
    """Train the head, and the backbone too if it is asked for; the same batches for every run of a seed."""
    generator = torch.Generator().manual_seed(seed)
    known = None if trained else data.scaled(embedded(backbone, data.train))
    groups = [{"params": list(head.parameters()), "highest": HEAD_RATE}]
    if trained:
        groups.append({"params": list(backbone.parameters()), "highest": BACKBONE_RATE})
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    batches = [batch for _ in range(sizes.epochs) for batch in data.train.epoch(sizes.batch_size, generator)]
    losses = []
    for step, chosen in enumerate(batches):
        for group in optimizer.param_groups:
            warm_up = max(1, round(WARM_UP * len(batches)))
            group["lr"] = group["highest"] * warm_up_and_cosine(step, len(batches), warm_up)
        rows = data.scaled(backbone(*data.train.batch(chosen))) if known is None else known[chosen]
        loss = nn.functional.cross_entropy(head(rows), data.train.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@dataclass(frozen=True)
class Problem:
    """A problem of the study, as a command makes it.

    Attributes:
        file: Of its runs.
        title: Of its section.
        samples: What is sorted into classes.
        sizes: How much is trained on what.
        load: Makes the data.
        facts: What a reader wants to know of data and backbone.
    """

    file: str
    title: str
    samples: str
    sizes: Sizes
    load: Callable[[Path, Sizes], Features]
    facts: tuple[str, ...]


PROBLEMS = {
    "texts": Problem(
        "fine-tuned.jsonl",
        "Texts on MiniLM",
        "texts",
        Sizes(),
        texts.load,
        (
            "Noun glosses of WordNet (WordNet 3.0 licence), to be sorted by the concept above them, the concepts with "
            "the most glosses, the first 20 tokens.",
            "Backbone: all-MiniLM-L6-v2 (Apache-2.0), six layers, the mean over tokens.",
        ),
    ),
    "pictures": Problem(
        "fine-tuned-pictures.jsonl",
        "Pictures on a ViT",
        "pictures",
        pictures.SIZES,
        pictures.load,
        (
            "Kanji drawn in forty faces, 56 x 56 pixels, as in the study of specialisation; tested in faces in which "
            "that kanji was not trained.",
            "Backbone: a ViT of DINOv2-small's shape from a network for salience (MIT), twelve layers, its class "
            "token.",
        ),
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that the files of results lack, and write the page and the picture.

    Args:
        arguments: Those of the command line.
    """
    options = command_of("fine_tuned", __doc__, only=PROBLEMS).parse_args(arguments)
    torch.set_num_threads(1)  # sums then come out the same on any number of cores
    out, facts, parts = folder_of(options), machine.describe(), []
    for name, problem in PROBLEMS.items():
        sizes = dataclasses.replace(problem.sizes, **QUICK) if options.quick else problem.sizes
        file = out / problem.file

        @cache
        def data(problem: Problem = problem, sizes: Sizes = sizes) -> Features:
            return problem.load(CACHE / "packages", sizes)

        def run(
            settings: Mapping[str, Any], data: Callable[[], Features] = data, sizes: Sizes = sizes
        ) -> Mapping[str, Any]:
            return measure_run(data(), sizes, settings) | {"machine": facts}

        if not options.page and name in (options.only or PROBLEMS):
            wanted = plan()
            runs.finish(file, (s for s in wanted if not options.quick or s["seed"] == 0), run)
        parts.append(page.Part(problem.title, problem.file, runs.read(file), sizes, problem.samples, problem.facts))
    if not any(part.entries for part in parts):
        raise SystemExit(f"{out}: no finished runs to make a page of")
    page.write(parts, out, "python -m studies fine_tuned", TRAINING)
    print(out / "fine-tuned.md")
