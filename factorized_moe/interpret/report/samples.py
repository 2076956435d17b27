"""What the samples of a run were, as a report shows them: images, or the tokens of texts.

Legend: ``n`` samples: images, or the tokens of all texts; ``H`` height, ``W`` width of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Images", "Texts"]


@dataclass(frozen=True, eq=False)
class Images:
    """Inputs that are images, as a report shows them.

    Attributes:
        pixels: Grey ``(n, H, W)`` or colour ``(n, H, W, 3)``, uint8.

    Raises:
        ValueError: If the pixels have another shape or type.

    Examples:
        >>> len(Images(np.zeros((5, 28, 28), dtype=np.uint8)))
        5
    """

    pixels: NDArray[Any]

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if self.pixels.dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
            raise ValueError(
                f"pixels have shape {shape} and type {self.pixels.dtype}, expected (n, H, W) or (n, H, W, 3) of uint8"
            )

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True, eq=False)
class Texts:
    """Inputs that are the tokens of texts, as a report shows them; counted through all texts in order.

    Attributes:
        texts: For each text its tokens, as they are to be shown: spaces belong to the tokens.

    Examples:
        >>> len(Texts([["A", " text"], ["Another", " one", "."]]))
        5
    """

    texts: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        if any(isinstance(text, str) for text in self.texts):
            raise TypeError("texts holds a string, expected lists of tokens; use text.split() or a tokenizer")
        kinds = {type(token).__name__ for text in self.texts for token in text if not isinstance(token, str)}
        if kinds:
            raise TypeError(f"tokens are {', '.join(sorted(kinds))}, expected strings; decode them first")

    def __len__(self) -> int:
        return sum(len(text) for text in self.texts)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """The number of the first token of each text, and last the number of all tokens, ``(len(texts) + 1,)``."""
        return np.cumsum([0, *(len(text) for text in self.texts)], dtype=np.int64)
