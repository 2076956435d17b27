"""What was measured on other processors: kept when a section is measured on a new one, and shown side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import sections
from benchmarks.measuring import Ratio
from benchmarks.sections import Section, Sections

__all__ = ["FILE", "LINK", "PAGE", "load", "markdown", "moved", "text", "today"]

FILE, PAGE = "benchmarks-other-processors.json", "other-processors.md"

Others = Mapping[str, Sections]
"""Sections by name, by processor."""

LINK = """\
## On other processors

Some of these rows beside the last figures of another processor: [Benchmarks on two processors](other-processors.md).
"""

ABOUT = """\
# Benchmarks on two processors

Ratios as on the page of [benchmarks](benchmarks.md), of the rows that were measured on two processors: on the left what
was measured last, on the right the last figures of another processor, of the library of their day. Written by
`python -m benchmarks`: do not edit.

"""


def load(path: Path) -> dict[str, dict[str, Section]]:
    """The sections of a file by processor, none if there is no file."""
    if not path.exists():
        return {}
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {processor: sections.read(values) for processor, values in stored.items()}


def text(others: Others) -> str:
    """All processors' sections as what `load` reads."""
    stored = {p: {name: asdict(section) for name, section in found.items()} for p, found in others.items()}
    return json.dumps(stored, indent=1) + "\n"


def today() -> str:
    """The date, as sections hold it."""
    return datetime.now(UTC).date().isoformat()


def moved(others: Others, stored: Sections, name: str, section: Section) -> dict[str, dict[str, Section]]:
    """The other processors' sections once one has been measured: what it replaces is kept if it is of another one.

    Args:
        others: Them before.
        stored: The sections that were measured last.
        name: The section that was measured.
        section: What was measured.
    """
    found = {processor: dict(values) for processor, values in others.items()}
    found.get(section.processor, {}).pop(name, None)
    if name in stored and stored[name].processor != section.processor:
        found.setdefault(stored[name].processor, {})[name] = stored[name]
    return {processor: values for processor, values in found.items() if values}


def markdown(here: Sections, others: Others) -> str:
    """The page of all rows that were measured on two processors; empty if there are none.

    Args:
        here: The sections that were measured last.
        others: Those of other processors.
    """
    lines = [line for processor, found in others.items() for line in _lines(here, processor, found)]
    return ABOUT + "\n".join(lines) + "\n" if lines else ""


def _lines(here: Sections, processor: str, found: Sections) -> Iterator[str]:
    for name, old in found.items():
        if name not in here:
            continue
        new = here[name]
        before = {(row.case, row.contender): row for row in old.rows if not row.baseline}
        rows = [row for row in new.rows if not row.baseline and (row.case, row.contender) in before]
        if not rows:
            continue
        yield from (
            f"| **{new.title}** | | {_head(new)} | | {_head(old)} | |",
            "|---|---|---:|---:|---:|---:|",
            "| case | contender | forward | training | forward | training |",
        )
        previous = ""
        for row in rows:
            other = before[row.case, row.contender]
            cells = (row.forward, row.training, other.forward, other.training)
            shown = "" if row.case == previous else row.case
            previous = row.case
            yield f"| {shown} | {row.contender} | {' | '.join(map(_ratio, cells))} |"
        yield ""


def _head(section: Section) -> str:
    threads = section.machine.get("threads", "?")
    return f"{section.processor}, {threads} threads" + (f", {section.date}" if section.date else "")


def _ratio(ratio: Ratio | None) -> str:
    return "" if ratio is None else str(ratio)
