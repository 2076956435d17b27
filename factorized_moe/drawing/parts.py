"""The parts of a picture and their places, in points, y upwards; and how much of them a text would cover."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from factorized_moe.drawing.positions import DOT, RADIUS

__all__ = ["CLEARANCE", "LINE_HEIGHT", "Disc", "Dot", "Line", "Scene", "Text", "pair"]

CLEARANCE = 2.0
LINE_HEIGHT = 10.0


@dataclass(frozen=True)
class Disc:
    """A node; `shared` if another node reads the same parameter."""

    centre: tuple[float, float]
    shared: bool = False
    radius: float = RADIUS


@dataclass(frozen=True)
class Dot:
    """Where a label's lines meet."""

    centre: tuple[float, float]
    role: str


@dataclass(frozen=True)
class Line:
    """A label between two vertices, or its open end, as points ``(P, 2)``."""

    points: np.ndarray
    role: str


@dataclass(frozen=True)
class Text:
    """A text, turned by an angle in degrees."""

    text: str
    centre: tuple[float, float]
    width: float
    height: float = LINE_HEIGHT
    angle: float = 0.0
    big: bool = False

    @property
    def spine(self) -> np.ndarray:
        """Points along its middle, ``(P, 2)``; what it covers lies within half its height of them."""
        half = max(self.width - self.height, 0.0) / 2
        direction = np.array([math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))])
        return np.asarray(np.array(self.centre) + np.linspace(-half, half, int(half / 3) + 2)[:, None] * direction)

    def distance_to(self, points: np.ndarray) -> np.ndarray:
        """From points ``(P, 2)`` to the nearest of its middle, ``(P,)``."""
        spine = self.spine
        along = spine[-1] - spine[0]
        length = float(np.dot(along, along))
        t = np.clip((points - spine[0]) @ along / length, 0.0, 1.0) if length else np.zeros(len(points))
        return np.asarray(np.linalg.norm(points - spine[0] - t[:, None] * along, axis=1))

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top."""
        (left, bottom), (right, top) = self.spine.min(axis=0), self.spine.max(axis=0)
        return left - self.height / 2, bottom - self.height / 2, right + self.height / 2, top + self.height / 2


@dataclass
class Scene:
    """All parts of a picture."""

    discs: list[Disc] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top of everything."""
        boxes = [text.box for text in self.texts]
        boxes += [_around(disc.centre, disc.radius) for disc in self.discs]
        boxes += [_around(dot.centre, DOT) for dot in self.dots]
        boxes += [(*line.points.min(axis=0), *line.points.max(axis=0)) for line in self.lines]
        table = np.array(boxes)
        (left, bottom), (right, top) = table[:, :2].min(axis=0), table[:, 2:].max(axis=0)
        return float(left), float(bottom), float(right), float(top)

    def add(self, other: Scene, x: float, y: float) -> None:
        """Take over another scene, moved."""
        self.discs += [Disc(_moved(disc.centre, x, y), disc.shared, disc.radius) for disc in other.discs]
        self.dots += [Dot(_moved(dot.centre, x, y), dot.role) for dot in other.dots]
        self.lines += [Line(line.points + np.array([x, y]), line.role) for line in other.lines]
        self.texts += [replace(text, centre=_moved(text.centre, x, y)) for text in other.texts]

    def cover(self) -> Callable[[Text], float]:
        """How much of what the scene now holds a text would cover; 0 for none."""
        points = [np.zeros((0, 2)), *(line.points for line in self.lines)]
        reaches = [0.0] * len(points)
        weights = [0.2] * len(points)  # a line has many points, a disc one
        for centre, radius in [(d.centre, d.radius) for d in self.discs] + [(dot.centre, DOT) for dot in self.dots]:
            points, reaches, weights = [*points, np.array([centre])], [*reaches, radius], [*weights, 1.0]
        for text in self.texts:
            points, reaches, weights = [*points, text.spine], [*reaches, text.height / 2], [*weights, 1.0]
        counts = [len(part) for part in points]
        everything, reach, weight = np.vstack(points), np.repeat(reaches, counts), np.repeat(weights, counts)

        def cost(text: Text) -> float:
            overlap = reach + text.height / 2 + CLEARANCE - text.distance_to(everything)
            return float(weight @ np.maximum(0.0, overlap))

        return cost


def _around(centre: tuple[float, float], radius: float) -> tuple[float, float, float, float]:
    return centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius


def _moved(centre: tuple[float, float], x: float, y: float) -> tuple[float, float]:
    return centre[0] + x, centre[1] + y


def pair(point: np.ndarray) -> tuple[float, float]:
    """A point ``(2,)`` as a pair of floats."""
    return float(point[0]), float(point[1])
