"""Tables of text, for what prints itself."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["text_table"]


def text_table(rows: Sequence[Sequence[str]], *, left: int = 2, indent: str = "") -> str:
    """Rows as lines with columns of one width each.

    Args:
        rows: The cells, the headings first; all rows have the same number.
        left: How many columns are aligned at their left; the others, of numbers, at their right.
        indent: What each line begins with.

    Examples:
        >>> print(text_table([("name", "size"), ("cp", "1,000"), ("tucker", "20")], left=1))
        name     size
        cp      1,000
        tucker     20
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(indent + "  ".join(cells).rstrip())
    return "\n".join(lines)
