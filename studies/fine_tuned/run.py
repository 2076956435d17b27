"""The command: ``python -m studies fine_tuned``, see its ``--help``."""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import machine
from factorized_moe import MuMoE
from factorized_moe.interpret import LabelInformation, Polysemanticity, counterfactuals
from factorized_moe.optimisation import warm_up_and_cosine
from studies.common import runs
from studies.fine_tuned import page
from studies.fine_tuned.backbone import Backbone, Features, Sizes, embedded, load

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "results" / "models"
FILE = "fine-tuned.jsonl"

SEEDS = range(page.PLANNED_SEEDS)
RANK = 128
HEAD_RATE, BACKBONE_RATE, WEIGHT_DECAY, WARM_UP = 3e-3, 1e-4, 0.01, 0.05

FACTS = {
    "training": f"AdamW, learning rates {HEAD_RATE:g} (head) and {BACKBONE_RATE:g} (backbone), weight decay "
    f"{WEIGHT_DECAY:g}, "
    "a warm-up and a cosine, gradients clipped to 1; none of these was tuned.",
    "heads": f"CP of rank {RANK} with the library's defaults (entmax-1.5), and a linear head.",
}

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
def _moved(backbone: Backbone, data: Features, rows: Tensor) -> float:
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


def _train(data: Features, sizes: Sizes, backbone: Backbone, head: nn.Module, seed: int, trained: bool) -> list[float]:
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that the file of results lacks, and write the page and the picture."""
    parser = argparse.ArgumentParser(prog="python -m studies fine_tuned", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "studies", help="the folder to write to")
    parser.add_argument("--page", action="store_true", help="make no runs: the page and the picture alone")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums then come out the same on any number of cores
    sizes, file = Sizes(), options.out / FILE
    if not options.page:
        data = load(CACHE / "packages", sizes)
        facts = machine.describe()

        def run(settings: Mapping[str, Any]) -> Mapping[str, Any]:
            return measure_run(data, sizes, settings) | {"machine": facts}

        runs.finish(file, plan(), run)
    found = runs.read(file)
    if not found:
        raise SystemExit(f"{file}: no finished runs to make a page of")
    page.write(found, options.out, "python -m studies fine_tuned", sizes, FACTS)
    print(options.out / "fine-tuned.md")
