"""From a command line to a trained model, and from an error to a sentence."""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate import PartialState

from recipes.checkpoints import LAST
from recipes.options import Options, parse
from recipes.recipe import Recipe
from recipes.train import train

__all__ = ["run"]

T = TypeVar("T", bound=Options)


def run(kind: type[T], recipe: Callable[[T], Recipe], text: str | None, arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says.

    Args:
        kind: The recipe's options.
        recipe: From options to the recipe.
        text: What ``--help`` says.
        arguments: Those of the command line; the process's own by default.

    Returns:
        The exit status: 1 after an error that has been told.
    """
    options = parse(kind, arguments, text)
    state = PartialState(cpu=options.cpu)
    try:
        with state.main_process_first():  # what the first process prepares, such as shards of text, the others find
            made = recipe(options)
        loss = train(made, options)
    except (FloatingPointError, ModuleNotFoundError, OSError, ValueError) as error:
        print(f"error: {told(error, options)}", file=sys.stderr, flush=True)
        return 1
    if state.is_main_process:
        print(f"held-out loss {loss:.4f}; results in {options.out}")
    if state.num_processes > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state.destroy_process_group()
    return 0


def told(error: Exception, options: Options) -> str:
    """An error in words, with what to do where that is known."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        kept = options.out / LAST
        left = f"{kept} is whole" if kept.exists() else "there is no checkpoint yet"
        return f"the disk is full ({error}); {left}. Free some space and give the same command again"
    return str(error)
