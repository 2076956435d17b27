"""Text that is there wherever Python is: the source of the standard library, as bytes or as tokens in shards.

Legend: ``T`` tokens of a sequence, ``B`` sequences.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from recipes.gpt.prepare import prepare
from recipes.gpt.shards import DESCRIPTION

__all__ = ["VOCABULARY", "Text", "standard_library", "token_shards"]

VOCABULARY = 128
"""Bytes of ASCII; any other byte is a question mark."""


@dataclass(frozen=True, eq=False)
class Text:
    """A text in two parts.

    Attributes:
        train: ``(n,)``, int64.
        held_out: ``(m,)``, int64.
        source: What it is, with its licence and the start of its digest.
    """

    train: Tensor
    held_out: Tensor
    source: str

    def batch(self, generator: torch.Generator, sequences: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Sequences of the training part at random places, and the token after each, ``(B, T)`` both."""
        starts = torch.randint(len(self.train) - tokens, (sequences,), generator=generator)
        rows = torch.stack([self.train[start : start + tokens + 1] for start in starts.tolist()])
        return rows[:, :-1], rows[:, 1:]

    def evaluation(self, sequences: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Sequences of the held-out part at equal distances, and the token after each, ``(B, T)`` both."""
        starts = torch.linspace(0, len(self.held_out) - tokens - 1, sequences).long()
        rows = torch.stack([self.held_out[start : start + tokens + 1] for start in starts.tolist()])
        return rows[:, :-1], rows[:, 1:]


def standard_library(held_out: float = 0.05) -> Text:
    """The modules at the top of Python's standard library, one after the other by name; the last part is held out.

    Args:
        held_out: The share that is held out.
    """
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    content = b"".join(file.read_bytes() for file in files)
    tokens = torch.frombuffer(bytearray(content), dtype=torch.uint8).long()
    tokens = torch.where(tokens < VOCABULARY, tokens, ord("?"))
    split = int(len(tokens) * (1.0 - held_out))
    digest = hashlib.sha256(content).hexdigest()[:12]
    source = (
        f"{len(files)} modules of Python {platform.python_version()}'s standard library, {len(content):,} bytes "
        f"(Python Software Foundation Licence; digest {digest})"
    )
    return Text(tokens[:split], tokens[split:], source)


def token_shards(cache: Path) -> Path:
    """The text in tokens of a vocabulary of 2,048 trained on it, as the GPT's recipe reads them; made once.

    Args:
        cache: Where it is kept.
    """
    folder = cache / "python-text"
    if not (folder / DESCRIPTION).exists():
        prepare("stdlib", folder, vocabulary=2048)
    return folder
