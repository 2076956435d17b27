"""The page of what the gate and many experts cost: the sections that are too long for the page of all others."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.report import PAGE as BENCHMARKS
from benchmarks.report import circumstances, table
from benchmarks.sections import Section

__all__ = ["FIGURE", "LINK", "PAGE", "SECTIONS", "markdown"]

PAGE = "gate-benchmarks.md"
SECTIONS = ("activation", "entmax", "scaling")
FIGURE = "assets/scaling.svg"

LINK = f"""\
The gate's activation, and layers of up to a million experts, have [a page of their own]({PAGE}).
"""

OPENING = f"""\
# What the gate and many experts cost

Times as shares of the first row of a case, as on the page of [benchmarks]({BENCHMARKS}#how-to-read-it). What the
cheaper gates cost in accuracy is in [A gate for many experts](studies/many-experts.md). Written by `make bench`: do not
edit.
"""

GROWS = f"""\
## How it grows

![Time per token and memory against experts, rank and tokens]({FIGURE})
"""


def markdown(sections: Mapping[str, Section]) -> str:
    """The page; empty without its sections.

    Args:
        sections: Those of `SECTIONS` that were measured.
    """
    if not sections:
        return ""
    parts = [OPENING]
    if "scaling" in sections and sections["scaling"].extra:
        parts.append(GROWS)
    parts += ["## The table\n", table(section for section in sections.values() if section.rows)]
    if "entmax" in sections:
        parts.append(f"## {sections['entmax'].title}\n\n{sections['entmax'].extra['table']}")
    return "\n".join([*parts, circumstances(sections)])
