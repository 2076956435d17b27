"""The studies by name: ``python -m studies`` lists them, ``python -m studies NAME --help`` says what one takes."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent


def names() -> list[str]:
    """The folders that hold a study: those with a ``__main__``-like ``run.py``."""
    return sorted(path.parent.name for path in HERE.glob("*/run.py"))


def main(arguments: list[str]) -> int:
    """Run the study that the first argument names, with the others.

    Args:
        arguments: The name and what the study takes.
    """
    if not arguments or arguments[0] not in names():
        listed = "\n".join(f"  {name}: {import_module(f'studies.{name}').__doc__.splitlines()[0]}" for name in names())
        given = f"there is no study {arguments[0]!r}; " if arguments and not arguments[0].startswith("-") else ""
        print(f"{given}usage: python -m studies NAME [options]\n\nthe studies:\n{listed}")
        return 0 if arguments[:1] == ["--help"] else 2
    import_module(f"studies.{arguments[0]}.run").main(arguments[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
