"""Make shards of tokens from text: ``python -m recipes.gpt.prepare --text FOLDER --out results/text``.

The text is ``stdlib`` (the modules of Python's standard library), a folder of files, one file, or a Hugging Face data
set on disk. Tokens are bytes, or those of a tokenizer.json, or of one that is trained here::

    python -m recipes.gpt.prepare --text stdlib --vocabulary 2048 --out results/python-text
    python -m recipes.gpt.prepare --text openwebtext --tokenizer gpt2 --out openwebtext-shards
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from recipes.gpt.shards import documents_of, read_description, write_shards
from recipes.gpt.tokens import Bytes, Tokenizer, read_tokenizer, train_pairs

__all__ = ["main", "prepare"]

TRAINED_ON = 100_000
"""Documents that a tokenizer is trained on."""


def prepare(
    text: str,
    out: Path,
    *,
    pattern: str = "**/*.txt",
    column: str = "text",
    tokenizer: Path | None = None,
    vocabulary: int = 0,
    size: int = 2**26,
) -> None:
    """Write shards of a text.

    Args:
        text: ``stdlib``, or a path.
        out: The folder of the shards.
        pattern: Which files of a folder.
        column: The column of a data set.
        tokenizer: A folder with a ``tokenizer.json``.
        vocabulary: The tokens of a tokenizer to be trained; none by default.
        size: The most tokens of a shard.

    Raises:
        OSError: If something cannot be read or written.
        ValueError: If the text or the tokenizer does not fit.
    """
    used: Tokenizer = Bytes()
    if tokenizer is not None:
        if not (tokenizer / "tokenizer.json").exists():
            raise ValueError(f"{tokenizer} has no tokenizer.json")
        used = read_tokenizer(tokenizer)
    elif vocabulary:
        used = train_pairs(islice(documents_of(text, pattern, column), TRAINED_ON), vocabulary)
    name = f"Python {platform.python_version()}'s standard library" if text == "stdlib" else Path(text).name
    write_shards(out, documents_of(text, pattern, column), used, name, size)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Args:
        arguments: Those of the command line; the process's own by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="stdlib", help="stdlib, a folder, a file, or a data set on disk")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the shards")
    parser.add_argument("--pattern", default="**/*.txt", help="which files of a folder")
    parser.add_argument("--column", default="text", help="the column of a data set that has the text")
    parser.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer.json, such as a model's")
    parser.add_argument("--vocabulary", type=int, default=0, help="train a tokenizer of so many tokens on the text")
    parser.add_argument("--shard-tokens", type=int, default=2**26, help="the most tokens of a shard")
    given = parser.parse_args(arguments)
    try:
        prepare(
            given.text,
            given.out,
            pattern=given.pattern,
            column=given.column,
            tokenizer=given.tokenizer,
            vocabulary=given.vocabulary,
            size=given.shard_tokens,
        )
    except (ModuleNotFoundError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for split, shards in read_description(given.out)["shards"].items():
        print(f"{split}: {sum(shard['tokens'] for shard in shards):,} tokens in {len(shards)} shards")
    return 0


if __name__ == "__main__":
    sys.exit(main())
