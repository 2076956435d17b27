"""Many classes of text: WordNet's noun glosses, to be sorted by the concept above them, as sentence embeddings.

Debian's ``wordnet-base`` (WordNet 3.0 licence) has the glosses; the embeddings are those of the frozen sentence encoder
that the study of real models uses.

Legend: ``n`` glosses, ``D`` features, ``C`` classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from studies.real_models import sentences
from studies.real_models.sources import SENTENCE_MODEL, unpack

__all__ = ["WORDNET", "Glosses", "group", "load"]

WORDNET = Path("/usr/share/wordnet/data.noun")
"""Where Debian's package puts the nouns."""

FEWEST = 30
TESTED = 10
"""Glosses of each class that are held out, at equal distances."""


@dataclass(frozen=True, eq=False)
class Glosses:
    """Standardised embeddings with their classes.

    Attributes:
        train: ``(n, D)``.
        train_labels: ``(n,)``.
        test: ``(m, D)``.
        test_labels: ``(m,)``.
        num_classes: ``C``.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    num_classes: int


def group(lines: Iterable[str], fewest: int = FEWEST) -> list[list[str]]:
    """The glosses of each class: of the nouns directly below one concept, where there are enough of them.

    Args:
        lines: WordNet's ``data.noun``.
        fewest: The fewest glosses of a class.

    Examples:
        >>> lines = [f"0000{k} 03 n 01 w 0 001 @ 00000009 n 0000 | gloss {k}" for k in range(3)]
        >>> group(lines, fewest=3)
        [['gloss 0', 'gloss 1', 'gloss 2']]
    """
    found: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        head, bar, gloss = line.partition(" | ")
        fields = head.split()
        if line.startswith("  ") or not bar:  # the licence, at the top
            continue
        first = 4 + 2 * int(fields[3], 16)  # after the words, two fields each; then the number of pointers, four each
        pointers = [fields[first + 1 + 4 * k :][:2] for k in range(int(fields[first]))]
        above = next((target for kind, target in pointers if kind == "@"), None)
        if above is not None:
            found[above].append(gloss.strip())
    return [found[above] for above in sorted(found) if len(found[above]) >= fewest]


def load(cache: Path) -> Glosses:
    """The glosses as embeddings; made once, in some minutes, and kept.

    Args:
        cache: Where the encoder and the embeddings are kept.

    Raises:
        FileNotFoundError: If WordNet is not installed.
    """
    if not WORDNET.exists():
        raise FileNotFoundError(f"{WORDNET}: no such file; install Debian's wordnet-base")
    with WORDNET.open(encoding="latin-1") as stream:
        classes = group(stream)
    file = cache / "glosses.safetensors"
    if not file.exists():
        model, tokenizer = sentences.load(unpack(SENTENCE_MODEL, cache))
        texts = [gloss for glosses in classes for gloss in glosses]
        order = sorted(range(len(texts)), key=lambda k: len(texts[k]))  # batches of equal lengths are short
        embedded = sentences.embed(model, sentences.encode(tokenizer, [texts[k] for k in order]))
        partial = file.with_suffix(".partial")
        save_file({"embeddings": embedded[torch.tensor(order).argsort()].contiguous()}, partial)
        partial.replace(file)
    rows = load_file(file)["embeddings"]
    labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor([len(part) for part in classes]))
    tested = torch.zeros(len(rows), dtype=torch.bool)
    start = 0
    for part in classes:
        tested[start + torch.linspace(0, len(part) - 1, TESTED).long()] = True
        start += len(part)
    mean, spread = rows[~tested].mean(0), rows[~tested].std(0)
    rows = (rows - mean) / spread
    return Glosses(rows[~tested], labels[~tested], rows[tested], labels[tested], len(classes))
