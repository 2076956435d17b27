"""Many classes of text: the glosses of WordNet's nouns, each to be sorted by a concept far above it.

`studies.common.glosses` takes the concept directly above, which gives a hundred classes with fifty glosses.
Here a concept collects everything below it that no deeper concept has taken, so there are hundreds of classes
with a hundred.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from studies.common.glosses import WORDNET
from studies.real_models import sentences
from studies.real_models.sources import SENTENCE_MODEL, unpack

__all__ = ["FEWEST", "Concept", "concepts", "embeddings", "read"]

FEWEST = 100
"""Glosses that make a concept a class."""


@dataclass(frozen=True)
class Concept:
    """A class.

    Attributes:
        name: Its first word.
        depth: Its distance from the root.
        words: The first word of each noun below it.
        glosses: Their glosses.
    """

    name: str
    depth: int
    words: tuple[str, ...]
    glosses: tuple[str, ...]


def concepts(lines: Iterable[str], most: int, fewest: int = FEWEST) -> list[Concept]:
    """The deepest concepts with enough glosses below them, deepest first; no gloss is in two.

    Args:
        lines: WordNet's ``data.noun``.
        most: How many concepts at most.
        fewest: The fewest glosses of one.

    Examples:
        >>> lines = [
        ...     "00000001 03 n 01 thing 0 000 | all",
        ...     "00000002 03 n 01 cat 0 001 @ 00000001 n 0000 | purrs",
        ...     "00000003 03 n 01 dog 0 001 @ 00000001 n 0000 | barks",
        ... ]
        >>> concepts(lines, most=1, fewest=2)
        [Concept(name='thing', depth=0, words=('cat', 'dog'), glosses=('purrs', 'barks'))]
    """
    word, above, gloss = _parse(lines)

    @cache
    def depth(noun: str) -> int:
        parent = above[noun]
        return 0 if parent is None else 1 + depth(parent)

    below: dict[str, list[str]] = defaultdict(list)
    found = []
    for noun in sorted(word, key=lambda noun: (-depth(noun), noun)):
        mine = below.pop(noun, [])
        if len(mine) >= fewest:
            found.append(Concept(word[noun], depth(noun), tuple(word[k] for k in mine), tuple(gloss[k] for k in mine)))
            mine = []
        parent = above[noun]
        if parent is not None:
            below[parent] += [*mine, noun]
    return found[:most]


def _parse(lines: Iterable[str]) -> tuple[dict[str, str], dict[str, str | None], dict[str, str]]:
    """The first word of each noun, the noun above it, and its gloss."""
    word: dict[str, str] = {}
    above: dict[str, str | None] = {}
    gloss: dict[str, str] = {}
    for line in lines:
        head, bar, text = line.partition(" | ")
        fields = head.split()
        if line.startswith("  ") or not bar:  # the licence, at the top
            continue
        first = 4 + 2 * int(fields[3], 16)  # after the words, two fields each; then the number of pointers, four each
        pointers = [fields[first + 1 + 4 * k :][:2] for k in range(int(fields[first]))]
        name = fields[0]
        word[name], gloss[name] = fields[4].replace("_", " "), text.strip()
        above[name] = next((target for kind, target in pointers if kind == "@"), None)
    return word, above, gloss


def read(most: int) -> list[Concept]:
    """The concepts of the installed WordNet.

    Args:
        most: How many at most.

    Raises:
        FileNotFoundError: If WordNet is not installed.
    """
    if not WORDNET.exists():
        raise FileNotFoundError(f"{WORDNET}: no such file; install Debian's wordnet-base")
    with WORDNET.open(encoding="latin-1") as stream:
        return concepts(stream, most)


def embeddings(found: Iterable[Concept], cache_folder: Path) -> Tensor:
    """The embeddings of all glosses, one concept after the other, ``(n, D)``; made once, in some minutes, and kept.

    Args:
        found: The concepts.
        cache_folder: Where the encoder and the embeddings are kept.
    """
    file = cache_folder / "concepts.safetensors"
    if not file.exists():
        model, tokenizer = sentences.load(unpack(SENTENCE_MODEL, cache_folder))
        texts = [gloss for concept in found for gloss in concept.glosses]
        order = sorted(range(len(texts)), key=lambda k: len(texts[k]))  # batches of equal lengths are short
        embedded = sentences.embed(model, sentences.encode(tokenizer, [texts[k] for k in order]))
        partial = file.with_suffix(".partial")
        save_file({"embeddings": embedded[torch.tensor(order).argsort()].contiguous()}, partial)
        partial.replace(file)
    return load_file(file)["embeddings"]
