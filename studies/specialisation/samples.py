"""Pictures of what experts get: test samples, drawn at random among those that an expert has most of.

Legend: ``m`` test samples, ``N`` experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from factorized_moe._writing import write_files
from studies.common.glosses import WORDNET
from studies.specialisation import concepts, glyphs
from studies.specialisation.data import CONCEPTS, TESTED, tested_words
from studies.specialisation.heads import Outcome, outcome_file
from studies.specialisation.plan import DEFAULT
from studies.specialisation.table import Runs

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["beside", "choose", "draw_samples"]

SIZES = (16, 256)
EXPERTS = 6
SAMPLES = 12
MARGIN, GAP, TITLE = 12, 40, 28
"""Pixels around a picture, between two, and for a title above each."""
CLASS_COLOURS = ("#1f6fb4", "#d1495b", "#2a9d5c", "#b8730f", "#7a5ea8")
ONCE = "#5f6975"


def choose(coefficients: Tensor, experts: int, samples: int) -> dict[int, list[int]]:
    """Some experts and samples of each, all drawn at random.

    Args:
        coefficients: ``(m, N)``.
        experts: How many experts; those are drawn from that are the first choice of enough samples.
        samples: How many samples of each, drawn from those that give it their largest coefficient.

    Examples:
        >>> choose(torch.eye(3)[[0, 0, 1, 2, 2]], experts=2, samples=2)
        {0: [0, 1], 2: [3, 4]}
    """
    generator = torch.Generator().manual_seed(0)
    first = coefficients.argmax(dim=1)
    enough = (first.bincount(minlength=coefficients.shape[1]) >= samples).nonzero().squeeze(1)
    chosen = enough[torch.randperm(len(enough), generator=generator)[:experts]].sort().values
    found = {}
    for expert in chosen.tolist():
        mine = (first == expert).nonzero().squeeze(1)
        found[expert] = mine[torch.randperm(len(mine), generator=generator)[:samples]].sort().values.tolist()
    return found


def draw_samples(runs: Runs, out: Path, cache: Path) -> None:
    """Draw the pictures for which the cache has what they need.

    Args:
        runs: The runs; those of seed 0 are shown.
        out: The folder.
        cache: Where downloads and outcomes are kept.
    """
    found = _coefficients(runs, "gl", cache)
    if found and (cache / "kanji.txt").exists():
        _draw_glyphs([choose(part, EXPERTS, SAMPLES) for part in found], out / "glyphs.png", cache)
    found = _coefficients(runs, "wn252", cache)
    if found and WORDNET.exists():
        known = concepts.read(CONCEPTS)
        _draw_words([choose(part, EXPERTS, SAMPLES) for part in found], out / "glosses.svg", tested_words(known), known)


def _coefficients(runs: Runs, data: str, cache: Path) -> list[Tensor]:
    """Those of both sizes, or none."""
    found = []
    for size in SIZES:
        if 0 not in runs.of(data, DEFAULT, size):
            return []
        rate = runs.learning_rate(data, DEFAULT, size)
        file = outcome_file({"data": data, **DEFAULT, "experts": size, "seed": 0, "learning_rate": rate}, cache)
        if not file.exists():
            return []
        found.append(Outcome.load(file).coefficients.float())
    return found


def _draw_glyphs(found: Sequence[dict[int, list[int]]], path: Path, cache: Path) -> None:
    """Pictures side by side, a row for each expert."""
    signs, faces = glyphs.characters(cache), glyphs.find_faces(cache)
    shown = glyphs.pictures(1, len(faces))

    def picture(sample: int) -> np.ndarray:
        kanji, face = shown[sample]
        return np.pad(glyphs.draw(signs[kanji], faces[face], (kanji, face)), 2, constant_values=255)

    blocks = [np.vstack([np.hstack([picture(k) for k in samples]) for samples in part.values()]) for part in found]
    image = beside(
        blocks, [f"{size} experts: {len(part)} of them, a row each" for size, part in zip(SIZES, found, strict=True)]
    )
    write_files(path.parent, {path.name: lambda place: image.save(place, format="png", optimize=True)})


def beside(blocks: Sequence[np.ndarray], titles: Sequence[str]) -> Image.Image:
    """Pictures side by side, each under its title, in sixteen greys.

    Args:
        blocks: Arrays from 0 to 255, ``(height, width)``.
        titles: One for each.
    """
    from PIL import Image, ImageDraw, ImageFont

    height = max(len(block) for block in blocks)
    width = sum(block.shape[1] for block in blocks) + GAP * (len(blocks) - 1)
    image = Image.new("L", (width + 2 * MARGIN, height + 2 * MARGIN + TITLE), 255)
    pen, left = ImageDraw.Draw(image), MARGIN
    for block, title in zip(blocks, titles, strict=True):
        pen.text((left, MARGIN), title, fill=0, font=ImageFont.load_default(size=18))
        image.paste(Image.fromarray(block), (left, MARGIN + TITLE))
        left += block.shape[1] + GAP
    return image.quantize(16)


def _draw_words(
    found: Sequence[dict[int, list[int]]], path: Path, words: Sequence[str], known: Sequence[concepts.Concept]
) -> None:
    """Words in rows, in the colours of their classes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "factorized-moe", "svg.fonttype": "none", "font.size": 8}):
        figure, axes = pyplot.subplots(1, len(found), figsize=(11, 5.6), layout="constrained")
        for axis, size, part in zip(np.atleast_1d(axes), SIZES, found, strict=True):
            axis.set(xlim=(0, 3), ylim=(5.2 * len(part), -0.5))
            axis.axis("off")
            axis.set_title(f"{size} experts", fontsize=10, loc="left")
            for row, (expert, samples) in enumerate(part.items()):
                classes = [sample // TESTED for sample in samples]
                counts = Counter(classes).most_common()
                repeated = [each for each, count in counts if count > 1]
                colours = dict(zip(repeated, CLASS_COLOURS, strict=False))
                told = ", ".join(f"{known[each].name} {count}" for each, count in counts[:2])
                more = f" and {len(counts) - 2} more classes" if len(counts) > 2 else ""
                axis.text(0, 5.2 * row, f"expert {expert}: {told}{more}", fontsize=8, fontweight="bold", va="center")
                for place, (sample, each) in enumerate(zip(samples, classes, strict=True)):
                    word = words[sample] if len(words[sample]) < 25 else f"{words[sample][:23]}..."
                    spot = (place % 3, 5.2 * row + 0.95 + 0.9 * (place // 3))
                    axis.text(*spot, word, color=colours.get(each, ONCE), va="center")
        write = partial(figure.savefig, metadata={"Date": None}, format="svg")
        write_files(path.parent, {path.name: write})
        pyplot.close(figure)
