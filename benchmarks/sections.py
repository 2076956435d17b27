"""The measurements of a section, as the files of results hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from benchmarks.measuring import Ratio
from benchmarks.rows import Row

__all__ = ["Section", "Sections", "read"]


@dataclass(frozen=True)
class Section:
    """One section's measurements.

    Attributes:
        title: Its heading in the table.
        command: The command that measured it.
        machine: What `benchmarks.machine.describe` said.
        rows: The measurements.
        show_baselines: Whether the page shows the baselines' own rows; else the contender's name has to say it.
        extra: What else the section found: the points of a figure, or fitted constants.
        date: When it was measured, ``"2026-11-26"``; empty where that was not kept.
    """

    title: str
    command: str
    machine: Mapping[str, str]
    rows: Sequence[Row] = ()
    show_baselines: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)
    date: str = ""

    @property
    def processor(self) -> str:
        """That of the machine."""
        return self.machine.get("processor", "an unknown processor")


Sections: TypeAlias = Mapping[str, Section]
"""By name."""


def read(stored: Mapping[str, Any]) -> dict[str, Section]:
    """Sections from what JSON holds of them.

    Args:
        stored: By name, each as `dataclasses.asdict` makes it.
    """
    return {
        name: Section(**{**values, "rows": [_row(row) for row in values["rows"]]}) for name, values in stored.items()
    }


def _row(stored: Mapping[str, Any]) -> Row:
    ratios = {name: stored[name] and Ratio(**stored[name]) for name in ("forward", "training")}
    return Row(**{**stored, **ratios})
