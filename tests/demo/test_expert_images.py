"""The picture: which images are chosen, in which order, and that a picture of the right kind comes out."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from factorized_moe.demo.expert_images import ExpertRow, _cut, _label, draw_experts, expert_rows

pytestmark = pytest.mark.thorough


def test_rows_are_in_order_of_load_and_images_in_order_of_coefficient() -> None:
    first = torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.2, 0.8, 0.0, 0.0], [0.7, 0.0, 0.0, 0.3]])
    second = torch.tensor([[0.4], [0.6], [0.5]])
    rows = expert_rows([first, second], [[2, 1, 0, 0], [2]])
    assert [(row.mode, row.expert, row.load) for row in rows] == [(0, 0, 2), (1, 0, 2), (0, 1, 1), (0, 3, 0), (0, 2, 0)]
    assert [row.images for row in rows] == [(0, 2, 1), (1, 2, 0), (1, 0), (2,), ()]
    assert rows[2].coefficients == pytest.approx((0.8, 0.1))


def test_rows_hold_at_most_twelve_images() -> None:
    (row,) = expert_rows([torch.linspace(0.1, 0.9, 50)[:, None]], [[25]])
    assert row.images == tuple(range(49, 37, -1))


def test_labels_and_coefficients() -> None:
    row = ExpertRow(1, 7, 31, (), ())
    assert _label(row, 0.5, several_modes=False) == "expert 7 · 31 images ≥ 0.5"
    assert _label(row, 0.5, several_modes=True) == "mode 1, expert 7 · 31 images ≥ 0.5"
    assert _label(ExpertRow(0, 7, 1, (), ()), 0.5, several_modes=False) == "expert 7 · 1 image ≥ 0.5"
    assert [_cut(value) for value in (0.4999, 0.5, 0.58, 1.0)] == [0.49, 0.5, 0.58, 1.0]


@pytest.mark.parametrize(("num_experts", "columns"), [(1, 1), (12, 1), (13, 2)])
@pytest.mark.parametrize("size", [(12, 12), (12, 20), (20, 12)])
def test_picture_shows_the_images(num_experts: int, columns: int, size: tuple[int, int]) -> None:
    rows = [ExpertRow(0, n, 1, (0,), (0.9,)) for n in range(num_experts)]
    images = torch.full((1, *size), 40, dtype=torch.uint8)
    drawn = draw_experts(rows, images, "A title", threshold=0.5)
    with Image.open(io.BytesIO(drawn)) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("L"))
    assert pixels[0].min() == 255  # a margin in white
    # One image of grey level 40 a row: it starts once in each column, and as often down as there are rows.
    # Letters have pixels of that level too, but never a square of three by three.
    dark = np.lib.stride_tricks.sliding_window_view(pixels == 40, (3, 3)).all(axis=(2, 3))
    dark = np.pad(dark, ((1, 0), (1, 0)))
    starts = [np.diff(dark.any(axis=axis).astype(int)).clip(0).sum() for axis in (0, 1)]
    assert starts == [columns, min(num_experts, 12 if columns == 1 else 7)]


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (64, 1)])
def test_images_of_extreme_shapes_are_drawn(size: tuple[int, int]) -> None:
    rows = [ExpertRow(0, n, 1, (0,), (0.9,)) for n in range(13)]
    drawn = draw_experts(rows, torch.zeros(1, *size, dtype=torch.uint8), "A title", threshold=0.5)
    with Image.open(io.BytesIO(drawn)) as picture:
        assert max(picture.size) < 2000


def test_title_says_how_many_experts_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    titles: list[str] = []
    monkeypatch.setattr(Figure, "suptitle", lambda figure, title, **options: titles.append(title))
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: None)
    rows = [ExpertRow(0, n, 0, (), ()) for n in range(65)]
    images = torch.zeros(1, 4, 4, dtype=torch.uint8)
    draw_experts(rows, images, "A title", threshold=0.5)
    draw_experts(rows[:64], images, "A title", threshold=0.5)
    assert titles == ["A title\n64 of 65 experts shown, those with the most images", "A title"]
