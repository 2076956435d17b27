"""Labelled lines: a file whose lines are a label, a tab and a text, or a folder with ``train.tsv`` and ``test.tsv``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.recipe import listed

__all__ = ["LabelledLines", "read_lines"]

HELD_OUT_EVERY = 10


@dataclass(frozen=True, eq=False)
class LabelledLines:
    """The lines of one split.

    Attributes:
        texts: The texts.
        labels: The class of each.
        classes: The names of the classes.
    """

    texts: Sequence[str]
    labels: Sequence[int]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.texts)


def read_lines(place: Path) -> tuple[LabelledLines, LabelledLines]:
    """The lines of training and the held-out ones; of a single file, one in ten of each class is held out.

    Args:
        place: The file, or the folder.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line has no label or no text, a class is only in one split, or there is one class.
    """
    if place.is_dir():
        training, tested = _read(place / "train.tsv"), _read(place / "test.tsv")
    else:
        everything = _read(place)
        training, tested = {}, {}
        for name, texts in everything.items():
            tested[name] = texts[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY] or texts[-1:]
            held = {id(text) for text in tested[name]}
            training[name] = [text for text in texts if id(text) not in held]
    if len(training) < 2:
        raise ValueError(f"{place} has {len(training)} classes; two or more were expected")
    if empty := [name for name, texts in training.items() if not texts]:
        raise ValueError(f"{place}: class {listed(empty)} has one line; two are needed, one to hold out")
    if differing := sorted(training.keys() ^ tested.keys()):
        raise ValueError(f"{place}: classes that are not in both train.tsv and test.tsv: {listed(differing)}")
    return _split(training), _split(tested)


def _read(file: Path) -> dict[str, list[str]]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; a line of it is a label, a tab and a text")
    found: dict[str, list[str]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        label, tab, text = line.partition("\t")
        if not tab or not label.strip() or not text.strip():
            raise ValueError(f"{file}, line {number}: a label, a tab and a text were expected, got {line[:60]!r}")
        found.setdefault(label.strip(), []).append(text.strip())
    return dict(sorted(found.items()))


def _split(classes: dict[str, list[str]]) -> LabelledLines:
    texts = [text for part in classes.values() for text in part]
    labels = [label for label, part in enumerate(classes.values()) for _ in part]
    return LabelledLines(texts, labels, tuple(classes))
