"""Tables as text and as HTML, for what prints itself and what a notebook shows."""

from __future__ import annotations

import html
from collections.abc import Sequence

__all__ = ["html_table", "text_table"]


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


def html_table(rows: Sequence[Sequence[str]], caption: str, *, left: int = 1, more: str = "") -> str:
    """Rows as a table for a notebook; whatever is in the cells is shown as text.

    Args:
        rows: The cells, the headings first; all rows have the same number.
        caption: What the table is of.
        left: How many columns are aligned at their left; the others, of numbers, at their right.
        more: A line below, such as how many rows are left out.

    Examples:
        >>> print(html_table([("name", "size"), ("<cp>", "1,000")], "Sizes"))
        <table><caption style="text-align: left; white-space: nowrap">Sizes</caption><thead><tr>\
<th style="text-align: left">name</th>\
<th style="text-align: right">size</th></tr></thead><tbody><tr><td style="text-align: left">&lt;cp&gt;</td>\
<td style="text-align: right">1,000</td></tr></tbody></table>
    """

    def row(cells: Sequence[str], tag: str) -> str:
        sides = ("left" if column < left else "right" for column in range(len(cells)))
        inside = (
            f'<{tag} style="text-align: {side}">{html.escape(cell)}</{tag}>'
            for side, cell in zip(sides, cells, strict=True)
        )
        return f"<tr>{''.join(inside)}</tr>"

    head, *body = rows
    below = f"<p>{html.escape(more)}</p>" if more else ""
    return (
        f'<table><caption style="text-align: left; white-space: nowrap">{html.escape(caption)}</caption>'
        f"<thead>{row(head, 'th')}</thead>"
        f"<tbody>{''.join(row(cells, 'td') for cells in body)}</tbody></table>{below}"
    )
