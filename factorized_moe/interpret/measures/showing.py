"""How a result of a measurement is shown: in one line, and as a table in a notebook."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from factorized_moe._text_tables import html_table

__all__ = ["is_large", "one_line", "table_of"]

MOST_ROWS = 12
LONGEST_TUPLE = 4
MOST_ELEMENTS = 2**21
"""Of a result's tensors; a table of more would take seconds to make and shows its first rows only."""


def one_line(result: Any) -> str:
    """A dataclass with its tensors as types and shapes, so that it fits into a line.

    Args:
        result: The result.
    """
    parts = (f"{field.name}={_short(getattr(result, field.name))}" for field in dataclasses.fields(result))
    return f"{type(result).__name__}({', '.join(parts)})"


def table_of(result: Any, columns: Mapping[str, Sequence[Any]]) -> str:
    """The first rows of a result's table as HTML, with its numbers that stand alone as the caption.

    Args:
        result: The result.
        columns: The columns of its table, all of one length.
    """
    names = list(columns)
    length = len(columns[names[0]]) if names else 0
    cells = [[_cell(columns[name][row]) for name in names] for row in range(min(length, MOST_ROWS))]
    alone = [
        f"{field.name} {_cell(value)}"
        for field in dataclasses.fields(result)
        if isinstance(value := getattr(result, field.name), int | float | str)
    ]
    left_out = length - len(cells)
    return html_table(
        [names, *cells],
        ", ".join([type(result).__name__, *alone]),
        left=0,
        more=f"and {left_out:,} more rows; all of them: to_pandas()" if left_out else "",
    )


def is_large(result: Any) -> bool:
    """Whether a table of it is too much for a notebook.

    Args:
        result: The result.
    """
    values = (getattr(result, field.name) for field in dataclasses.fields(result))
    return sum(value.numel() for value in values if isinstance(value, Tensor)) > MOST_ELEMENTS


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, tuple) and len(value) > LONGEST_TUPLE:
        return f"<{len(value):,} entries>"
    return repr(value)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
