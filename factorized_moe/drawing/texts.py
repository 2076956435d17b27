"""Places for texts: next to a disc or a dot, or along a line, where they cover nothing as far as there is room."""

from __future__ import annotations

import math

import numpy as np

from factorized_moe.drawing.parts import CLEARANCE, LINE_HEIGHT, Scene, Text, pair

__all__ = ["along_line", "beside_vertex"]


def beside_vertex(scene: Scene, centre: np.ndarray, radius: float, text: str, size: float) -> Text:
    """A text next to a disc or a dot, on the freest side; above before below, right before left."""
    tries = []
    for distance in (3.0, 10.0, 20.0):
        for degrees in (90, 60, 120, 30, 150, 0, 180, -90, -60, -120, -30, -150):
            direction = np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
            half = np.array([size / 2, LINE_HEIGHT / 2]) * direction
            moved = centre + (radius + distance) * direction + np.sign(np.round(direction, 6)) * np.abs(half)
            tries.append(Text(text, pair(moved), size))
    return min(tries, key=scene.cover())


def along_line(scene: Scene, points: np.ndarray, text: str, size: float) -> Text:
    """A text next to a line, near its middle; level where there is room, else as steep as the line."""
    tries = []
    for t in (0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74, 0.18, 0.82):
        place = round(t * (len(points) - 1))
        along = points[min(place + 2, len(points) - 1)] - points[max(place - 2, 0)]
        along = along if along[0] > 0 else -along
        normal = np.array([-along[1], along[0]]) / np.linalg.norm(along)
        steep = math.degrees(math.atan2(along[1], along[0]))
        level = abs(normal[0]) * (size - LINE_HEIGHT) / 2 + LINE_HEIGHT / 2
        for side in (1, -1):
            for angle, reach in ((0.0, level), (steep, LINE_HEIGHT / 2)):
                centre = points[place] + side * (reach + CLEARANCE + 0.5) * normal
                tries.append(Text(text, pair(centre), size, angle=angle))
    cost = scene.cover()
    return min(tries, key=lambda one: cost(one) + 0.3 * (one.angle != 0))
