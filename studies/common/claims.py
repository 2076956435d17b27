"""What a study says of a claim of the paper: one row of the summary page."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["VERDICTS", "Claim"]

VERDICTS = ("reproduced", "in part", "not reproduced", "not testable here")


@dataclass(frozen=True)
class Claim:
    """A claim with what was found.

    Attributes:
        claim: What the paper says, in our words.
        verdict: One of `VERDICTS`.
        number: The figures that decide, with their number of seeds.
        page: The study's page, relative to ``docs/studies``.
        figure: Its picture, relative to ``docs/studies``; empty if it has none.
        command: What makes the page.

    Raises:
        ValueError: If the verdict is none of them.
    """

    claim: str
    verdict: str
    number: str
    page: str
    figure: str
    command: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"a verdict is one of {', '.join(VERDICTS)}, got {self.verdict!r}")
