"""All counterfactuals of a last layer beside a plain evaluation of its model, on real images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.contenders import Missing
from benchmarks.measuring import Effort
from benchmarks.rows import Contender, Row, compare, count, missing
from factorized_moe.demo.training import reproducible
from factorized_moe.interpret import Ablate, counterfactuals, intervene
from studies.common.images import FASHION_MNIST, Images, load, train_classifier
from studies.common.images import Sizes as ClassifierSizes

__all__ = ["SIZES", "TITLE", "Sizes", "rows"]

TITLE = "Every expert taken out in turn, beside a plain evaluation of the model on the test images"

ONE_EPOCH = ClassifierSizes(epochs=1)


@dataclass(frozen=True)
class Sizes:
    """The sizes of the case.

    Attributes:
        classifier: The sizes of the classifier, and of its training.
        experts: The number of experts of its head.
        separate: How many experts are taken out by a run of the model each, to compare.
        folder: The folder of IDX files.
    """

    classifier: ClassifierSizes = ONE_EPOCH
    experts: int = 1024
    separate: int = 2
    folder: Path = FASHION_MNIST


SIZES = Sizes()


def rows(effort: Effort, sizes: Sizes = SIZES, images: Images | None = None) -> Iterator[Row]:
    """Train a classifier and measure; a head that was never trained would use all experts for every image."""
    experts = count(sizes.experts, "expert")
    try:
        images = load(sizes.folder) if images is None else images
    except ValueError as error:
        yield missing(experts, "the images", Missing(str(error)))
        return
    with reproducible(0):
        model = train_classifier(images, sizes.classifier, sizes.experts, "entmax15", seed=0)
    data, parameters = images, tuple(model.parameters())

    def evaluate() -> Tensor:
        return torch.cat([model(inputs) for inputs, _ in data.test_batches()])

    def together() -> Tensor:
        return counterfactuals(model, data.test_batches()).changed

    def separately() -> Tensor:
        before = evaluate().argmax(dim=-1)
        changed = []
        for expert in range(sizes.separate):
            with intervene(model, Ablate(expert)):
                changed.append((evaluate().argmax(dim=-1) != before).sum())
        return torch.stack(changed)

    with torch.no_grad():
        assert torch.equal(separately(), together()[: sizes.separate])
    named = {
        f"all {sizes.experts:,} counterfactuals": together,
        f"{sizes.separate} of them by an evaluation each": separately,
    }
    contenders = [Contender(name, call, parameters) for name, call in named.items()]
    case = f"{experts}, {count(len(images.test), 'image')}"
    yield from compare(
        case, Contender("plain evaluation", evaluate, parameters), contenders, [], effort, training=False
    )
