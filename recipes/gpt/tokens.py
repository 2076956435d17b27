"""Text as numbers below 65,536: bytes, or the byte-pair encoding of a ``tokenizer.json``.

Both have one more token than their alphabet, which ends a document.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Bytes", "Pairs", "Tokenizer", "read_tokenizer", "train_pairs"]

END = "<|endoftext|>"
TOKENIZER = "tokenizer.json"


class Tokenizer(Protocol):
    """From text to numbers and back."""

    vocabulary: int
    end: int

    def encode(self, text: str) -> list[int]:
        """The numbers of a text."""

    def decode(self, numbers: list[int]) -> str:
        """The text of numbers; what is no text is a replacement character."""

    def files(self) -> dict[str, bytes]:
        """What has to lie beside the shards to read them."""


class Bytes:
    """Bytes of UTF-8 as they are.

    Examples:
        >>> Bytes().decode(Bytes().encode("a café"))
        'a café'
    """

    vocabulary, end = 257, 256

    def encode(self, text: str) -> list[int]:
        """Each byte."""
        return list(text.encode())

    def decode(self, numbers: list[int]) -> str:
        """The text; the end of a document is a form feed."""
        return bytes(12 if number == self.end else number for number in numbers).decode(errors="replace")

    def files(self) -> dict[str, bytes]:
        """Nothing."""
        return {}


class Pairs:
    """A tokenizer of the ``tokenizers`` library with an end-of-text token.

    Args:
        inner: The tokenizer.

    Raises:
        ValueError: If it has no such token, or more tokens than 16 bits tell apart.
    """

    def __init__(self, inner: Any) -> None:
        self.inner, self.vocabulary = inner, inner.get_vocab_size()
        if (end := inner.token_to_id(END)) is None:
            raise ValueError(f"the tokenizer has no token {END!r}, which ends documents here")
        if self.vocabulary > 2**16:
            raise ValueError(f"the tokenizer has {self.vocabulary:,} tokens; shards of uint16 hold 65,536")
        self.end = int(end)

    def encode(self, text: str) -> list[int]:
        """The numbers of the pieces."""
        return list(self.inner.encode(text).ids)

    def decode(self, numbers: list[int]) -> str:
        """The pieces together."""
        return str(self.inner.decode(numbers, skip_special_tokens=False))

    def files(self) -> dict[str, bytes]:
        """The tokenizer's own file."""
        return {TOKENIZER: self.inner.to_str().encode()}


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, of shards or of a model; bytes if it has none."""
    file = folder / TOKENIZER
    if not file.exists():
        return Bytes()
    from tokenizers import Tokenizer as Inner

    return Pairs(Inner.from_file(str(file)))


def train_pairs(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-pair encoding that fits some texts.

    Args:
        texts: The texts.
        vocabulary: How many tokens it shall have.
    """
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return Pairs(inner)
