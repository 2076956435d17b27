"""From a network to a picture's parts: the terms side by side, their lines, legs and texts, and a legend below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from factorized_moe.drawing.legs import hang_legs
from factorized_moe.drawing.parts import LINE_HEIGHT, Disc, Dot, Line, Scene, Text, pair
from factorized_moe.drawing.positions import DOT, RADIUS, place_vertices
from factorized_moe.drawing.skeleton import Skeleton, Strand, make_skeleton
from factorized_moe.drawing.texts import along_line, beside_vertex
from factorized_moe.network import TensorNetwork

__all__ = ["make_scene"]

SPREAD = 46.0
"""Between the arcs that join the same two discs, in points."""

ROUNDS = 3
"""How often the texts at lines are placed."""


def make_scene(network: TensorNetwork, width: Callable[[str], float]) -> Scene:
    """Arrange a network's picture; the terms of a sum lie side by side, a legend below.

    Args:
        network: The network.
        width: The width of a text, in points.
    """
    shared = {name for name, count in Counter(node.parameter for node in network.nodes).items() if count > 1}
    scene = Scene()
    right = 0.0
    for number, term in enumerate(network.terms):
        part = _term_scene(make_skeleton(network, term), network, shared, width)
        left, bottom, end, top = part.bounds
        if number:
            scene.texts.append(Text("+", (right + 20, 0.0), 14, 16, big=True))
            right += 40
        scene.add(part, right - left, -(bottom + top) / 2)
        right += end - left
    left, bottom, right, _ = scene.bounds
    scene.add(_legend(network, shared, width, right - left), (left + right) / 2, bottom - 18)
    return scene


def _term_scene(skeleton: Skeleton, network: TensorNetwork, shared: set[str], width: Callable[[str], float]) -> Scene:
    def text_of(label: str) -> str:
        return f"{label}={network.sizes[label]}"

    at = place_vertices(skeleton, width, text_of)
    scene = Scene()
    for vertex, node in skeleton.discs.items():
        scene.discs.append(Disc(pair(at[vertex]), node.parameter in shared))
    roles = {strand.ends[0]: strand.role for strand in skeleton.strands if strand.hub}
    scene.dots += [Dot(pair(at[dot]), roles[dot]) for dot in skeleton.dots]
    curves: list[tuple[Strand, np.ndarray]] = []
    for bundle in skeleton.bundles.values():
        for place, strand in enumerate(bundle):
            points = _curve(at[strand.ends[0]], at[strand.ends[1]], SPREAD * (place - (len(bundle) - 1) / 2))
            curves.append((strand, points))
            if strand.dotted:
                middle = points[len(points) // 2]
                at[f"dot:{strand.label}"] = middle
                scene.dots.append(Dot(pair(middle), strand.role))
    lines = [Line(_outside(points, strand, at, skeleton), strand.role) for strand, points in curves]
    scene.lines += lines
    pairs = len({frozenset(strand.ends) for strand in skeleton.strands})
    most = max(len(others) for others in skeleton.neighbours.values())
    wish = "outwards" if pairs >= len(skeleton.vertices) else "down" if most > 2 else "upright"
    for vertex in dict.fromkeys(leg.vertex for leg in skeleton.legs):
        legs = [leg for leg in skeleton.legs if leg.vertex == vertex]
        texts = [(text_of(leg.label), width(text_of(leg.label))) for leg in legs]
        hang_legs(scene, at[vertex], RADIUS if vertex in skeleton.discs else DOT, legs, texts, wish)
    for vertex, node in skeleton.discs.items():
        size = width(node.name)
        inside = Text(node.name, pair(at[vertex]), size)
        fits = size <= 2 * RADIUS - 4
        scene.texts.append(inside if fits else beside_vertex(scene, at[vertex], RADIUS, node.name, size))
    for dot, label in skeleton.dots.items():
        if roles[dot] == "bond":
            scene.texts.append(beside_vertex(scene, at[dot], DOT, text_of(label), width(text_of(label))))
    bonds = [(s.label, line) for (s, _), line in zip(curves, lines, strict=True) if s.role == "bond" and not s.hub]
    fixed = len(scene.texts)
    for turn in range(ROUNDS * len(bonds)):  # later rounds move a text out of the way of those placed after it
        label, line = bonds[turn % len(bonds)]
        if turn >= len(bonds):
            scene.texts.pop(fixed)
        scene.texts.append(along_line(scene, line.points, text_of(label), width(text_of(label))))
    return scene


def _curve(start: np.ndarray, end: np.ndarray, bend: float) -> np.ndarray:
    """A line between two points, or an arc that leaves it by `bend` in the middle, ``(P, 2)``."""
    along = end - start
    normal = np.array([-along[1], along[0]]) / np.linalg.norm(along)
    middle = (start + end) / 2 + 2 * bend * normal
    count = 2 * int(np.linalg.norm(along) / 4 + abs(bend) / 2) + 9
    t = np.linspace(0.0, 1.0, count)[:, None]
    return np.asarray((1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end)


def _outside(points: np.ndarray, strand: Strand, at: dict[str, np.ndarray], skeleton: Skeleton) -> np.ndarray:
    keep = np.ones(len(points), dtype=bool)
    for vertex in strand.ends:
        if vertex in skeleton.discs:
            keep &= np.linalg.norm(points - at[vertex], axis=1) >= RADIUS
    inner = points[keep]

    def end(vertex: str, nearest: np.ndarray) -> np.ndarray:
        if vertex not in skeleton.discs:
            return at[vertex]
        away = nearest - at[vertex]
        return np.asarray(at[vertex] + away / np.linalg.norm(away) * RADIUS)

    return np.vstack([end(strand.ends[0], inner[0]), inner, end(strand.ends[1], inner[-1])])


def _legend(network: TensorNetwork, shared: set[str], width: Callable[[str], float], room: float) -> Scene:
    """What the colours and marks stand for, in rows whose upper ends have their middle at (0, 0)."""
    padding = f", {network.shape[-2]} padded by {network.in_padding}" if network.in_padding else ""
    entries = [("expert", "expert mode")] if network.expert_labels else []
    entries += [("in", f"input{padding}"), ("out", "output")]
    entries += [("bond", "bond")] if network.bonds else []
    for parameter in sorted(shared):
        names = ", ".join(node.name for node in network.nodes if node.parameter == parameter)
        entries.append(("shared", f"one parameter: {names}"))
    rows: list[list[tuple[str, str, float]]] = [[]]
    for role, text in entries:
        taken = sum(size for _, _, size in rows[-1])
        size = 23 + width(text) + 16
        if rows[-1] and taken + size > max(room, 290.0):
            rows.append([])
        rows[-1].append((role, text, size))
    scene = Scene()
    for place, row in enumerate(rows):
        x, y = 8 - sum(size for _, _, size in row) / 2, -(1.6 * place + 0.5) * LINE_HEIGHT
        for role, text, size in row:
            if role == "shared":
                scene.discs.append(Disc((x + 9, y), shared=True, radius=5.0))
            else:
                scene.lines.append(Line(np.array([[x, y], [x + 18, y]]), role))
            scene.texts.append(Text(text, (x + size / 2 + 3.5, y), size - 39))
            x += size
    return scene
