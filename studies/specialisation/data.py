"""What the heads are trained on: features of many classes of text and of glyphs, and ten classes of images.

Legend: ``n`` training samples, ``m`` test samples, ``D`` features, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from studies.common.images import FASHION_MNIST, load
from studies.specialisation import concepts, glyphs

__all__ = ["CONCEPTS", "DATA", "TESTED", "Data", "cluster", "made_up", "tested_words"]

CONCEPTS = 252
TESTED = 25
"""Glosses of each class that are held out, at equal distances."""
CAP = 100
"""Glosses of a class, those held out among them, where classes are to be of one size."""


@dataclass(frozen=True, eq=False)
class Data:
    """Standardised samples with their classes.

    Attributes:
        train: ``(n, D)``.
        train_labels: ``(n,)``.
        test: ``(m, D)``.
        test_labels: ``(m,)``.
        class_names: ``C`` of them.
        epochs: Passes over the training samples.
        hidden: Features of a small network that is trained before the head; 0 for a head on the samples as they are.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    epochs: int
    hidden: int = 0

    @property
    def num_classes(self) -> int:
        """``C``."""
        return len(self.class_names)

    def validation(self) -> Data:
        """The training samples alone: every fifth is held out, to choose a learning rate by."""
        held_out = torch.arange(len(self.train)) % 5 == 4
        rows, labels = self.train, self.train_labels
        return replace(
            self,
            train=rows[~held_out],
            train_labels=labels[~held_out],
            test=rows[held_out],
            test_labels=labels[held_out],
        )


def cluster(centres: Tensor, groups: int, rounds: int = 50) -> Tensor:
    """The number of each centre's group by k-means, ``(C,)``; it begins at centres that lie far apart.

    Args:
        centres: ``(C, D)``.
        groups: How many.
        rounds: Rounds of k-means.

    Examples:
        >>> cluster(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), groups=2).tolist()
        [0, 0, 1, 1]
    """
    chosen = [0]
    while len(chosen) < groups:
        chosen.append(int(torch.cdist(centres, centres[chosen]).amin(dim=1).argmax()))
    means = centres[chosen]
    for _ in range(rounds):
        nearest = torch.cdist(centres, means).argmin(dim=1)
        members = torch.nn.functional.one_hot(nearest, groups).to(centres)
        sizes = members.sum(dim=0)
        means = torch.where((sizes > 0)[:, None], members.T @ centres / sizes.clamp(min=1)[:, None], means)
    return nearest


def _standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    mean, spread = train.mean(dim=0), train.std(dim=0)
    return (train - mean) / spread, (test - mean) / spread


def _places(size: int) -> Tensor:
    """The glosses of a class that count where classes are of one size: at equal distances, ``(CAP,)``."""
    return torch.linspace(0, size - 1, CAP).round().long()


def _tested(size: int) -> Tensor:
    return _places(size)[:: CAP // TESTED]


def tested_words(found: Sequence[concepts.Concept]) -> list[str]:
    """The nouns of the test samples, in order."""
    return [concept.words[place] for concept in found for place in _tested(len(concept.words)).tolist()]


def _glosses(folder: Path, cap: int | None) -> Data:
    found = concepts.read(CONCEPTS)
    rows = concepts.embeddings(found, folder)
    parts: dict[bool, list[Tensor]] = {True: [], False: []}
    labels: dict[bool, list[int]] = {True: [], False: []}
    start = 0
    for number, concept in enumerate(found):
        size = len(concept.glosses)
        places = _places(size)
        tested = torch.zeros(size, dtype=torch.bool)
        tested[_tested(size)] = True
        kept = torch.ones(size, dtype=torch.bool)
        if cap is not None:
            kept[:] = False
            kept[places] = True
        for held_out, mask in ((True, tested), (False, kept & ~tested)):
            parts[held_out].append(rows[start : start + size][mask])
            labels[held_out] += [number] * int(mask.sum())
        start += size
    train, test = _standardised(torch.cat(parts[False]), torch.cat(parts[True]))
    names = tuple(concept.name for concept in found)
    epochs = 8 if cap is not None else 3
    return Data(train, torch.tensor(labels[False]), test, torch.tensor(labels[True]), names, epochs)


def _coarse(folder: Path, groups: int) -> Data:
    """The same glosses, sorted into groups of classes."""
    fine = DATA["wn252"](folder)
    members = torch.nn.functional.one_hot(fine.train_labels, fine.num_classes).float()
    group = cluster(members.T @ fine.train / members.sum(dim=0)[:, None], groups)
    names = tuple(str(number) for number in range(groups))
    return replace(fine, train_labels=group[fine.train_labels], test_labels=group[fine.test_labels], class_names=names)


def _glyphs(folder: Path) -> Data:
    found = glyphs.features(folder)
    train, test = _standardised(found["train"], found["test"])
    _, _, directions = torch.pca_lowrank(train, q=192, niter=4)
    train, test = _standardised(train @ directions, test @ directions)
    names = tuple(glyphs.characters(folder))
    return Data(train, found["train_labels"], test, found["test_labels"], names, 30)


def _fashion(folder: Path) -> Data:
    images = load(FASHION_MNIST)
    names = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "trainer", "bag", "ankle boot")
    return Data(images.train, images.train_labels, images.test, images.test_labels, names, 2, 128)


def made_up(classes: int = 6, features: int = 12, samples: int = 20) -> Data:
    """A few classes that lie apart, for tests."""
    generator = torch.Generator().manual_seed(0)
    centres = 2.0 * torch.randn(classes, features, generator=generator)
    labels = torch.arange(classes).repeat_interleave(samples)
    train, test = (centres[labels] + torch.randn(len(labels), features, generator=generator) for _ in range(2))
    return Data(train, labels, test, labels, tuple(f"class {k}" for k in range(classes)), 8)


DATA: dict[str, Callable[[Path], Data]] = {
    "wn252": cache(lambda folder: _glosses(folder, CAP)),
    "gl": cache(_glyphs),
    "fm": cache(_fashion),
    "wn50": cache(lambda folder: _coarse(folder, 50)),
    "wn10": cache(lambda folder: _coarse(folder, 10)),
    "wn252 all": cache(lambda folder: _glosses(folder, None)),
}
"""The data by name, from the folder where downloads are kept."""
