"""Tokens in files of uint16, described by a ``shards.json`` with their digests, read through memory maps.

A sample is determined by its number: every epoch cuts the tokens into blocks from another start, in another order.

Legend: ``T`` tokens of a sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from factorized_moe._reading import read_json
from factorized_moe._writing import write_files
from recipes.gpt.tokens import Tokenizer
from recipes.recipe import generator_of, shuffled

__all__ = ["Shards", "read_description", "write_shards"]

DESCRIPTION = "shards.json"
FORMAT = "factorized-moe recipes, shards of uint16, version 1"
HELD_OUT_EVERY = 20
"""One document in so many is held out."""


def write_shards(folder: Path, documents: Iterable[str], tokenizer: Tokenizer, source: str, size: int = 2**26) -> None:
    """Write documents as shards, each with its end, and then their description.

    Args:
        folder: Where to.
        documents: The texts, read one at a time.
        tokenizer: What makes numbers of them.
        source: What they are, for the description.
        size: The most tokens of a shard.

    Raises:
        OSError: If they cannot be written.
        ValueError: If there are too few documents to hold some out.
    """
    waiting: dict[str, list[np.ndarray[Any, Any]]] = {"train": [], "held_out": []}
    shards: dict[str, list[dict[str, Any]]] = {"train": [], "held_out": []}

    def flush(split: str, least: int) -> None:
        while (total := sum(map(len, waiting[split]))) >= max(1, least):
            tokens = np.concatenate(waiting[split])
            waiting[split] = [tokens[size:]] if total > size else []
            content = tokens[:size].astype("<u2").tobytes()
            name = f"{split}-{len(shards[split]):05}.bin"
            write_files(folder, {name: content})
            digest = hashlib.sha256(content).hexdigest()
            shards[split].append({"file": name, "tokens": len(content) // 2, "sha256": digest})

    for number, text in enumerate(documents):
        split = "held_out" if number % HELD_OUT_EVERY == HELD_OUT_EVERY // 2 else "train"
        waiting[split].append(np.array([*tokenizer.encode(text), tokenizer.end], dtype=np.uint16))
        flush(split, size)
    for split in waiting:
        flush(split, 1)
        if not shards[split]:
            raise ValueError(f"the text has too few documents: none is {split}; {HELD_OUT_EVERY} or more are needed")
    description = {"format": FORMAT, "source": source, "vocabulary": tokenizer.vocabulary, "shards": shards}
    text = json.dumps(description, indent=2) + "\n"
    write_files(folder, {**tokenizer.files(), DESCRIPTION: text.encode()})


def read_description(folder: Path) -> dict[str, Any]:
    """What `write_shards` wrote about its shards.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged.
    """
    file = folder / DESCRIPTION
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {DESCRIPTION}; make shards by python -m recipes.gpt.prepare")
    found = read_json(file)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{file} does not describe shards of this version; make them anew")
    return found


class Shards:
    """The samples of one split.

    Args:
        folder: Where `write_shards` wrote to.
        split: ``"train"`` or ``"held_out"``.
        length: ``T``.
        seed: Of the order.

    Raises:
        ValueError: If a shard is missing, of another size, or there are not two samples in any.
    """

    def __init__(self, folder: Path, split: str, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        described = read_description(folder)
        self.vocabulary = int(described["vocabulary"])
        self.entries = [(folder / entry["file"], entry) for entry in described["shards"][split]]
        self.open: dict[int, np.ndarray[Any, Any]] = {}
        for file, entry in self.entries:
            if not file.is_file() or file.stat().st_size != 2 * entry["tokens"]:
                there = f"{file.stat().st_size:,} bytes" if file.is_file() else "missing"
                raise ValueError(f"{file} is damaged: {there}, {2 * entry['tokens']:,} bytes expected; make it anew")
        self.blocks = [max(0, entry["tokens"] // length - 1) for _, entry in self.entries]
        self.ends = np.cumsum(self.blocks)
        if not len(self):
            raise ValueError(f"{folder}: no shard of {split} has {2 * length} tokens, as samples of {length} need")

    def __len__(self) -> int:
        """The samples of an epoch."""
        return int(self.ends[-1])

    def training(self, number: int) -> tuple[Tensor, Tensor]:
        """A sample of training: tokens, and the token after each, ``(T,)`` both."""
        phase = torch.randint(self.length, (1,), generator=generator_of(self.seed, 2, number // len(self)))
        return self._block(shuffled(number, len(self), self.seed), int(phase))

    def spread(self, number: int, of: int) -> tuple[Tensor, Tensor]:
        """One of some samples at equal distances, for evaluation."""
        return self._block(number * len(self) // of, 0)

    def _block(self, block: int, phase: int) -> tuple[Tensor, Tensor]:
        shard = int(np.searchsorted(self.ends, block, side="right"))
        start = phase + (block - int(self.ends[shard]) + self.blocks[shard]) * self.length
        row = torch.from_numpy(self._tokens(shard)[start : start + self.length + 1].astype(np.int64))
        return row[:-1], row[1:]

    def _tokens(self, shard: int) -> np.ndarray[Any, Any]:
        """A shard's tokens, checked when they are first asked for."""
        if shard not in self.open:
            file, entry = self.entries[shard]
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest != entry["sha256"]:
                raise ValueError(f"{file} is damaged: its content is not what was written; make it anew")
            tokens = np.memmap(file, dtype="<u2", mode="r")
            if int(tokens.max()) >= self.vocabulary:
                raise ValueError(f"{file} holds token {int(tokens.max())}, but the vocabulary has {self.vocabulary}")
            self.open[shard] = tokens
        return self.open[shard]


def documents_of(source: str, pattern: str, column: str) -> Iterator[str]:
    """The documents of a source: ``stdlib``, a Hugging Face data set on disk, a folder of text files, or one file.

    Args:
        source: The word, or a path.
        pattern: Which files of a folder.
        column: The column of a data set that has the text.

    Raises:
        ValueError: If there is no such source or column, or no text in it.
    """
    import sysconfig

    place = Path(sysconfig.get_paths()["stdlib"]) if source == "stdlib" else Path(source)
    if (place / "dataset_info.json").exists() or (place / "dataset_dict.json").exists():
        from datasets import load_from_disk

        table = load_from_disk(str(place))
        table = table["train"] if (place / "dataset_dict.json").exists() else table
        if column not in table.column_names:
            raise ValueError(f"{place} has no column {column!r} but {table.column_names}; name one by --column")
        yield from (row[column] for row in table)
        return
    files = sorted(place.glob("*.py" if source == "stdlib" else pattern)) if place.is_dir() else [place]
    files = [file for file in files if file.is_file()]
    if not files:
        raise ValueError(f"{place}: no file {pattern!r}; name a folder, a file or a data set, and --pattern")
    yield from (file.read_text(encoding="utf-8", errors="replace") for file in files)
