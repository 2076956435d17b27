"""MkDocs hook: what a table in Markdown cannot say: a row that heads the ones below it, and an interval on one line.

A row of one bold cell and nothing else becomes one cell as wide as the table, so that its text does not wrap in the
first column. In ``1.03 [1.01, 1.04]`` the bracket does not break.
"""

import re
from typing import Any

HEADING = re.compile(
    r"<tr>\s*<td[^>]*>(?P<text><strong>(?:(?!</td>|</strong>).)*</strong>)</td>(?P<empty>(?:\s*<td[^>]*></td>)+)\s*</tr>",
    re.DOTALL,
)
CELL = re.compile(r"<td[^>]*>[^<]*</td>")
INTERVAL = re.compile(r"\[([^\[\],]+), ([^\[\],]+)\]")


def on_page_content(page_html: str, **_: Any) -> str:
    """The page with such rows and intervals; other tables stay as they are."""

    def heading(found: re.Match[str]) -> str:
        return f'<tr>\n<td colspan="{1 + found["empty"].count("<td")}">{found["text"]}</td>\n</tr>'

    def cell(found: re.Match[str]) -> str:
        return INTERVAL.sub("[\\1,&nbsp;\\2]", found[0])

    return CELL.sub(cell, HEADING.sub(heading, page_html))
