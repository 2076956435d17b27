"""The picture of the experts: for each one, the images that give it the largest coefficients.

Legend: ``m`` images, ``H`` height, ``W`` width in pixels, ``N`` experts of one mode.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ExpertRow", "draw_experts", "expert_rows"]

IMAGES_PER_ROW = 12
MOST_ROWS = 64
MOST_ROWS_OF_ONE_COLUMN = 12

CELL, LETTER, TITLE_LETTER, TITLE_LINE, MARGIN = 0.42, 0.068, 0.09, 0.22, 0.15
"""Inches: an image's width with its gap, a letter of a label and of the title, a line of the title, a margin."""


@dataclass(frozen=True)
class ExpertRow:
    """One expert and its images, the largest coefficient first.

    Attributes:
        mode: The expert mode.
        expert: The expert's number in it.
        load: The number of images with a coefficient of at least the threshold.
        images: The numbers of the images.
        coefficients: Their coefficients, all above 0.
    """

    mode: int
    expert: int
    load: int
    images: tuple[int, ...]
    coefficients: tuple[float, ...]


def expert_rows(coefficients: Sequence[Tensor], loads: Sequence[Sequence[int]]) -> list[ExpertRow]:
    """Choose the images of every expert of every mode; the experts with the most images come first.

    Args:
        coefficients: For each expert mode ``(m, N)``.
        loads: For each expert mode the number of images at the threshold, ``N`` ints.
    """
    rows = []
    for mode, (mode_coefficients, mode_loads) in enumerate(zip(coefficients, loads, strict=True)):
        count = min(IMAGES_PER_ROW, len(mode_coefficients))
        top = mode_coefficients.topk(count, dim=0)  # (count, N)
        for expert, load in enumerate(mode_loads):
            values, images = top.values[:, expert].tolist(), top.indices[:, expert].tolist()
            used = [(image, value) for image, value in zip(images, values, strict=True) if value > 0]
            chosen, shown = zip(*used, strict=True) if used else ((), ())
            rows.append(ExpertRow(mode, expert, load, chosen, shown))
    return sorted(rows, key=lambda row: (-row.load, -max(row.coefficients, default=0.0), row.mode, row.expert))


def draw_experts(rows: Sequence[ExpertRow], images: Tensor, title: str, threshold: float) -> bytes:
    """Draw one row of images for each expert, in one column or two.

    Args:
        rows: The experts, in order; at most 64 are drawn, and the title says so where there are more.
        images: The images that the rows number, ``(m, H, W)``, uint8.
        title: The title.
        threshold: Coefficients from here on are set in dark type.

    Returns:
        The content of a PNG file.
    """
    from matplotlib.figure import Figure

    drawn = rows[:MOST_ROWS]
    if len(drawn) < len(rows):
        title += f"\n{len(drawn)} of {len(rows)} experts shown, those with the most images"
    columns = 1 if len(drawn) <= MOST_ROWS_OF_ONE_COLUMN else 2
    per_column = math.ceil(len(drawn) / columns)
    several_modes = any(row.mode for row in rows)
    labels = [_label(row, threshold, several_modes) for row in drawn]

    row_step, step = _steps(images)
    inch = max(step, row_step / 1.3) / CELL  # in pixels of the images
    sheet_width, sheet_height = IMAGES_PER_ROW * step / inch, per_column * row_step / inch
    label_width = LETTER * max(map(len, labels)) + MARGIN
    title_height = TITLE_LINE * (title.count("\n") + 1) + MARGIN
    title_width = TITLE_LETTER * max(map(len, title.split("\n"))) + MARGIN
    width = max(title_width, columns * (label_width + sheet_width)) + MARGIN
    height = title_height + sheet_height + MARGIN
    figure = Figure(figsize=(width, height))
    figure.suptitle(title, fontsize=12, y=1 - MARGIN / height, verticalalignment="top")
    for column in range(columns):
        part = slice(column * per_column, (column + 1) * per_column)
        left = column * (label_width + sheet_width) + label_width
        axes = figure.add_axes((left / width, MARGIN / height, sheet_width / width, sheet_height / height))
        _draw_column(axes, drawn[part], labels[part], per_column, images.numpy(), threshold)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def _draw_column(
    axes: Axes,
    rows: Sequence[ExpertRow],
    labels: Sequence[str],
    num_rows: int,
    images: np.ndarray,
    threshold: float,
) -> None:
    """One sheet of images on white, the coefficient below each, the expert's name beside each row."""
    height, width = images.shape[1:]
    row_step, step = _steps(images)
    sheet = np.full((num_rows * row_step, IMAGES_PER_ROW * step), 255, dtype=np.uint8)
    for y, row in zip(range(0, len(sheet), row_step), rows, strict=False):
        for x, image, coefficient in zip(range(0, sheet.shape[1], step), row.images, row.coefficients, strict=False):
            sheet[y : y + height, x : x + width] = images[image]
            reached = coefficient >= threshold
            axes.text(
                x + (width - 1) / 2,
                y + height + 0.5,
                f"{_cut(coefficient):.2f}",
                fontsize=6.5,
                color="black" if reached else "0.55",
                weight="bold" if reached else "normal",
                horizontalalignment="center",
                verticalalignment="top",
            )
        if not row.images:
            axes.text(0, y + height / 2, "no image has a coefficient above 0", fontsize=8, color="0.55", va="center")
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_yticks([k * row_step + height / 2 for k in range(len(rows))], labels, fontsize=9)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _steps(images: Tensor | np.ndarray) -> tuple[int, int]:
    """Pixels from one row of images to the next, with space for the coefficients, and from one image to the next."""
    height, width = images.shape[1:]
    return height + max(2, round(0.4 * max(height, width))), width + max(1, round(0.15 * max(height, width)))


def _cut(coefficient: float) -> float:
    """Two decimals, cut and not rounded, so that none seems to reach a threshold that it misses."""
    return math.floor(100 * coefficient + 1e-4) / 100


def _label(row: ExpertRow, threshold: float, several_modes: bool) -> str:
    mode = f"mode {row.mode}, " if several_modes else ""
    return f"{mode}expert {row.expert} · {row.load} image{'' if row.load == 1 else 's'} ≥ {threshold:g}"
