"""What the samples of a run were, as a report shows them: images, patches of images, or the tokens of texts.

Legend: ``n`` images, or the tokens of all texts; ``H`` height, ``W`` width of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factorized_moe._scalars import is_whole

__all__ = ["Images", "Patches", "Texts"]


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
        _check_pixels(self.pixels)

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True, eq=False)
class Patches:
    """The inputs were the patches of images, counted through all images in order, row after row.

    Attributes:
        pixels: The whole images, as for `Images`.
        grid: The rows and columns of patches that the model cuts an image into.
        prefix: The tokens before the patches of each image: 1 for a vision transformer with a class token.

    Raises:
        TypeError: If the grid or the prefix is no whole number.
        ValueError: If the pixels have another shape or type, the grid is empty, or the prefix is negative.

    Examples:
        A vision transformer with patches of 8 x 8 pixels and a class token.

        >>> patches = Patches(np.zeros((5, 32, 32, 3), dtype=np.uint8), grid=(4, 4), prefix=1)
        >>> len(patches), patches.place(17 + 1 + 6), patches.place(17)
        (85, (1, 1, 2), (1, -1, -1))
    """

    pixels: NDArray[Any]
    grid: tuple[int, int]
    prefix: int = 0

    def __post_init__(self) -> None:
        _check_pixels(self.pixels)
        sizes = tuple(self.grid)
        if len(sizes) != 2 or not all(is_whole(size) for size in (*sizes, self.prefix)):
            raise TypeError(f"grid is {self.grid!r} and prefix {self.prefix!r}, expected (rows, columns) and an int")
        if min(sizes) < 1 or self.prefix < 0:
            raise ValueError(
                f"grid is {sizes} and prefix {self.prefix}, expected at least one patch and no less than 0"
            )
        object.__setattr__(self, "grid", tuple(int(size) for size in sizes))
        object.__setattr__(self, "prefix", int(self.prefix))

    @property
    def per_image(self) -> int:
        """The samples of one image: its patches and what comes before them."""
        return self.prefix + self.grid[0] * self.grid[1]

    def __len__(self) -> int:
        return len(self.pixels) * self.per_image

    @property
    def offsets(self) -> NDArray[np.int64]:
        """The number of the first sample of each image, and last the number of all samples, ``(n + 1,)``."""
        return np.arange(len(self.pixels) + 1, dtype=np.int64) * self.per_image

    def place(self, sample: int) -> tuple[int, int, int]:
        """The image of a sample, and its row and column in the grid, -1 and -1 before the patches.

        Args:
            sample: The sample's number.
        """
        image, place = divmod(sample, self.per_image)
        return image, *(divmod(place - self.prefix, self.grid[1]) if place >= self.prefix else (-1, -1))


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


def _check_pixels(pixels: NDArray[Any]) -> None:
    shape = pixels.shape
    if pixels.dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
        raise ValueError(
            f"pixels have shape {shape} and type {pixels.dtype}, expected (n, H, W) or (n, H, W, 3) of uint8"
        )
