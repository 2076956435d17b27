"""Open ends: a short line from a disc or a dot into the freest direction, and its text beyond the tip."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from factorized_moe.drawing.parts import LINE_HEIGHT, Line, Scene, Text, pair
from factorized_moe.drawing.positions import DOT, RADIUS
from factorized_moe.drawing.skeleton import Leg

__all__ = ["hang_legs"]

LENGTH = {RADIUS: 24.0, DOT: 16.0}
APART = 80.0


def hang_legs(
    scene: Scene, centre: np.ndarray, radius: float, legs: Sequence[Leg], texts: Sequence[tuple[str, float]], wish: str
) -> None:
    """Add the legs of one vertex to a scene.

    Args:
        scene: The scene, with all discs, dots and lines but the legs.
        centre: Where the vertex is.
        radius: Its radius.
        legs: Its legs.
        texts: For each the text at its tip, with its width.
        wish: The direction to choose where several are free: ``"down"``, ``"upright"`` (down or up) or ``"outwards"``
            (away from the other discs).
    """
    used = _directions(scene, centre, radius)
    away = centre - np.mean([disc.centre for disc in scene.discs], axis=0)
    outwards = math.atan2(away[1], away[0])
    cover = scene.cover()
    step = 10 if len(legs) < 3 else 15
    worth: dict[float, float] = {}
    for angle in (math.radians(degrees) for degrees in range(-180, 180, step)):
        fits = {"down": -math.sin(angle), "upright": abs(math.sin(angle)), "outwards": math.cos(angle - outwards)}[wish]
        line, text = _leg(centre, radius, angle, "", max(size for _, size in texts))
        start, tip = line[2], line[-1]  # what lies about the root is judged by the angles between the lines
        path = Text("", pair((start + tip) / 2), float(np.linalg.norm(tip - start)), 3.0, math.degrees(angle))
        worth[angle] = 12.0 * fits - 12.0 * (cover(text) + cover(path))

    def score(chosen: tuple[float, ...]) -> tuple[float, ...]:
        total = 0.0
        for angle in chosen:
            others = [*used, *(other for other in chosen if other != angle)]
            apart = min((abs((angle - o + math.pi) % (2 * math.pi) - math.pi) for o in others), default=math.pi)
            total += min(math.degrees(apart), APART) + worth[angle]
        upright = sum(abs(math.cos(angle)) for angle in chosen)
        return round(total, 3), -round(upright, 3), -round(sum(map(math.sin, chosen)), 3), *chosen

    if len(legs) <= 4:
        best = max(itertools.combinations(worth, len(legs)), key=score)
    else:  # too many to try all
        best = tuple(math.radians(-180 + 360 * (k + 0.5) / len(legs)) for k in range(len(legs)))
    from_below = sorted(best, key=lambda angle: (round(math.sin(angle), 1), math.cos(angle)))
    for leg, angle, (words, size) in zip(legs, from_below, texts, strict=True):
        line, text = _leg(centre, radius, angle, words, size)
        scene.lines.append(Line(line, leg.role))
        scene.texts.append(text)


def _leg(centre: np.ndarray, radius: float, angle: float, text: str, size: float) -> tuple[np.ndarray, Text]:
    """The line's points ``(P, 2)``, and the text beyond its tip."""
    direction = np.array([math.cos(angle), math.sin(angle)])
    start, tip = centre + radius * direction, centre + (radius + LENGTH[radius]) * direction
    half = np.array([size / 2, LINE_HEIGHT / 2]) + 2
    if abs(direction[1]) > 0.5:  # steep: the text hangs by its middle
        reach = half[1] / abs(direction[1])
    else:  # flat: the line meets the text's end
        reach = min(half[0] / abs(direction[0]), half[1] / max(abs(direction[1]), 1e-9))
    return start + np.linspace(0.0, 1.0, 9)[:, None] * (tip - start), Text(text, pair(tip + reach * direction), size)


def _directions(scene: Scene, centre: np.ndarray, radius: float) -> list[float]:
    """The angles at which lines leave a vertex."""
    found = []
    for line in scene.lines:
        away = np.linalg.norm(line.points - centre, axis=1)
        nearest = int(away.argmin())
        if away[nearest] <= radius + 1:
            for step in (-3, 3):  # from the middle of an arc it leaves both ways
                if 0 <= nearest + step < len(line.points):
                    x, y = line.points[nearest + step] - centre
                    found.append(math.atan2(y, x))
    return found
