"""Where a value lies on the ranks of a group, and the collectives that bring it from one layout to another.

Legend: ``p`` ranks. Every label is cut as torch cuts it: pieces of ``ceil(size / p)`` entries, the last ones shorter or
empty.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COPY", "SUMMAND", "WHOLE", "Layout", "collectives", "share", "split_along", "start"]


@dataclass(frozen=True)
class Layout:
    """What each rank holds of a value, and of its gradient.

    Args:
        kind: ``"whole"``: every rank holds the value and its whole gradient. ``"copy"``: every rank holds the value,
            and a summand of its gradient. ``"summand"``: the value is the sum of what the ranks hold, and every rank
            holds the whole gradient. ``"split"``: every rank holds a piece of the value and of the gradient.
        label: The label that a split value is cut along.
    """

    kind: str
    label: str = ""

    def __str__(self) -> str:
        return f"split along {self.label}" if self.label else self.kind


WHOLE, COPY, SUMMAND = Layout("whole"), Layout("copy"), Layout("summand")


def split_along(label: str) -> Layout:
    """The layout of a value that is cut along a label."""
    return Layout("split", label)


_COLLECTIVES = {
    ("whole", "whole"): ("keep", "keep"),
    ("whole", "copy"): ("keep", "all_reduce"),
    ("whole", "split"): ("cut", "all_gather"),
    ("whole", "summand"): ("first", "keep"),
    ("summand", "whole"): ("all_reduce", "keep"),
    ("summand", "copy"): ("all_reduce", "all_reduce"),
    ("summand", "split"): ("reduce_scatter", "all_gather"),
    ("summand", "summand"): ("keep", "keep"),
    ("split", "whole"): ("all_gather", "cut"),
    ("split", "copy"): ("all_gather", "reduce_scatter"),
    ("split", "split"): ("all_to_all", "all_to_all"),
}


def collectives(source: Layout, target: Layout) -> tuple[str, str] | None:
    """What brings a value from one layout to another, and what its backward pass does; ``None`` if nothing can.

    ``"keep"``, ``"cut"`` and ``"first"`` (the first rank keeps it, the others take zeros) send nothing.

    Examples:
        >>> collectives(SUMMAND, WHOLE), collectives(WHOLE, COPY), collectives(COPY, WHOLE)
        (('all_reduce', 'keep'), ('keep', 'all_reduce'), None)
    """
    if source == target:
        return None if source == COPY else ("keep", "keep")
    return _COLLECTIVES.get((source.kind, target.kind))


def start(size: int, ranks: int, rank: int) -> int:
    """The first entry of a rank's piece of a label."""
    return min(size, -(-size // ranks) * rank)


def share(size: int, ranks: int, rank: int = 0) -> int:
    """The entries in a rank's piece of a label; rank 0 has the most.

    Examples:
        >>> [share(7, 4, rank) for rank in range(4)], [share(2, 4, rank) for rank in range(4)]
        ([2, 2, 2, 1], [1, 1, 0, 0])
    """
    return start(size, ranks, rank + 1) - start(size, ranks, rank)
