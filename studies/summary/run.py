"""The summary of all claims: ``python -m studies summary``; a second.

It takes the sentences of verdict from the studies' pages, which their commands made from their runs. A page that has no
such sentence any more is an error.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from factorized_moe._writing import write_files
from studies.summary.rows import ROWS, Row

__all__ = ["answers", "main", "page", "shortened", "verdict"]

DOCS = Path(__file__).parents[2] / "docs" / "studies"
VERDICTS = re.compile(
    r"not reproduced|reproduced in part|reproduced|not testable|cannot tell|not told apart", re.IGNORECASE
)


def answers(row: Row, text: str) -> list[str]:
    r"""The lines of a page that answer a claim.

    Args:
        row: The claim.
        text: The page.

    Raises:
        ValueError: If a line is not there.

    Examples:
        >>> row = Row("a claim", "page.md", (r"- \*\*It",), "", "", "")
        >>> answers(row, "# Title\n\n- **It is: reproduced.** By 2.\n- More.")
        ['**It is: reproduced.** By 2.']
    """
    found = []
    for lead in row.leads:
        lines = [line for line in text.splitlines() if re.match(lead, line)]
        if not lines:
            raise ValueError(f"{row.page} has no line that begins with {lead!r}")
        found += lines
    return [line.removeprefix("- ") for line in found]


def shortened(line: str, room: int) -> str:
    """A line's first sentences or clauses: the first, and those after it while there is room.

    Args:
        line: One of what `answers` gives.
        room: Characters, unless the first sentence has more.

    Examples:
        >>> shortened("**It is: reproduced.** By 2, as before. More of it.", 40)
        '**It is: reproduced.** By 2, as before …'
    """
    parts = re.split(r"(?:(?<=[.;])|(?<=\.\*\*)) (?![^(\[]*[)\]])", line)  # not within brackets
    kept = parts[0]
    for part in parts[1:]:
        if len(kept) + len(part) > room:
            return kept.removesuffix(";").removesuffix(".") + (" …" if not kept.endswith("**") else "")
        kept = f"{kept} {part}"
    return kept


def verdict(lines: Sequence[str]) -> str:
    """What the lines say together: one word if they agree, ``"in part"`` if something was reproduced and something not.

    Where nothing was reproduced, but not everything could be told, both is said: few seeds are no support for a claim.

    Args:
        lines: What `answers` gives.

    Raises:
        ValueError: If no line has a verdict.

    Examples:
        >>> verdict(["reproduced", "by 2"]), verdict(["reproduced", "not reproduced"])
        ('reproduced', 'in part')
        >>> verdict(["not reproduced for CP", "not told apart for tensor ring"])
        'not reproduced or cannot tell'
    """
    words = {word.lower().replace("not told apart", "cannot tell") for line in lines for word in VERDICTS.findall(line)}
    if not words:
        raise ValueError(f"no verdict in {list(lines)}")
    if words == {"not reproduced", "cannot tell"}:
        return "not reproduced or cannot tell"
    return words.pop().removeprefix("reproduced ") if len(words) == 1 else "in part"


def page(texts: dict[str, str]) -> str:
    """The page in Markdown.

    Args:
        texts: The studies' pages by name.
    """
    lines = [
        "# The paper's claims",
        "",
        "What Oldfield et al. 2024 (arXiv 2402.12550) say of uMoE layers, and what small runs on two processor cores",
        "found, with this library's defaults. ImageNet, OpenWebText, CLIP and the paper's sizes were not at hand: a",
        "claim that fails here may hold there. Each sentence is made from its study's runs and shortened here (…); its",
        "page has seeds, spreads and what limits it.",
        "",
        '<div class="claims" markdown="1">',
        "",
        "| claim | verdict | what decides | more |",
        "|---|---|---|---|",
    ]
    for row in ROWS:
        found = answers(row, texts[row.page])
        more = [f"[page]({row.page})", *([f"[figure]({row.figure})"] if row.figure else []), f"`{row.command}`"]
        cells = [
            f"{row.claim} ({row.tables})",
            f"**{verdict(found)}**",
            "<br>".join(shortened(line, row.room) for line in found),
            "<br>".join(more),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "</div>"]) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Write the page.

    Args:
        arguments: Those of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m studies summary", description=__doc__)
    parser.add_argument("--out", type=Path, default=DOCS, help="the folder of the pages; docs/studies")
    folder = parser.parse_args(arguments).out
    texts = {row.page: (folder / row.page).read_text(encoding="utf-8") for row in ROWS}
    write_files(folder, {"index.md": page(texts).encode()})
