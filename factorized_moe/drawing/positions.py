"""Where the vertices of a skeleton lie, in points, from its shape alone.

A chain is a line, a tree has its centre on top and its leaves in one row, a cycle is a circle. Any other graph is laid
out so that distances on paper are those in the graph (Kamada and Kawai 1989), from a few fixed starts of which the one
with the fewest crossings is kept, and turned so that the input is left of the output.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from factorized_moe.drawing.skeleton import Skeleton

__all__ = ["DOT", "RADIUS", "place_vertices"]

RADIUS = 23.0
"""Of a disc, in points."""

DOT = 3.5
"""The radius of a dot, in points."""

GAP = 46.0
LEVEL = 96.0
STARTS = 16

Positions = dict[str, np.ndarray]


def place_vertices(skeleton: Skeleton, width: Callable[[str], float], text_of: Callable[[str], str]) -> Positions:
    """The centre of every disc and dot, as ``(x, y)`` with y upwards.

    Args:
        skeleton: The graph.
        width: The width of a text, in points.
        text_of: The text at a label's line.
    """
    parts: list[Positions] = []
    neighbours = skeleton.neighbours
    rest = list(skeleton.vertices)
    while rest:  # parts that nothing joins are a product; they lie side by side
        part = _reachable(rest[0], neighbours)
        rest = [vertex for vertex in rest if vertex not in part]
        parts.append(_place_part([v for v in skeleton.vertices if v in part], skeleton, neighbours, width, text_of))
    placed: Positions = {}
    right = 0.0
    for positions in parts:
        low = min(point[0] for point in positions.values())
        feet = max(_foot(v, skeleton, width, text_of) for v in positions) / 2 + GAP / 2
        shift = np.array([right + feet - low if placed else 0.0, 0.0])
        placed |= {vertex: point + shift for vertex, point in positions.items()}
        right = max(point[0] for point in placed.values()) + feet
    return placed


def _place_part(
    part: list[str],
    skeleton: Skeleton,
    neighbours: Mapping[str, list[str]],
    width: Callable[[str], float],
    text_of: Callable[[str], str],
) -> Positions:
    rank = _mode_ranks(skeleton)
    degrees = [len(neighbours[vertex]) for vertex in part]
    edges = sum(degrees) // 2
    feet = {vertex: _foot(vertex, skeleton, width, text_of) for vertex in part}
    if max(degrees) <= 2 and edges == len(part) - 1:
        ends = [v for v in part if len(neighbours[v]) < 2]
        order = _walk(min(ends, key=lambda v: rank.get(v, math.inf)), neighbours)
        return _line(order, skeleton, feet, width, text_of)
    if edges == len(part) - 1:
        return _tree(part, skeleton, rank, feet, width, text_of)
    for dot in [vertex for vertex in reversed(part) if vertex in skeleton.dots]:
        rest = _without(skeleton, dot)
        inner = [vertex for vertex in part if vertex != dot]
        if _is_tree(inner, rest.neighbours):
            wide = {v: feet[v] + (RADIUS + GAP) * (v in neighbours[dot]) for v in inner}
            return _with_dot_below(dot, _tree(inner, rest, rank, wide, width, text_of), neighbours)
    if set(degrees) == {2}:
        order = _walk(min(part, key=lambda v: rank.get(v, math.inf)), neighbours, rank)
        return _circle(order, skeleton, width, text_of)
    return _stress(part, skeleton, neighbours)


def _reachable(start: str, neighbours: Mapping[str, list[str]]) -> set[str]:
    found, frontier = {start}, [start]
    while frontier:
        fresh = set(neighbours[frontier.pop()]) - found
        found |= fresh
        frontier += fresh
    return found


def _mode_ranks(skeleton: Skeleton) -> dict[str, float]:
    """For each vertex with a leg the place of its first mode."""
    ranks: dict[str, float] = {}
    for place, leg in enumerate(skeleton.legs):
        for vertex in (leg.vertex, *(e for s in skeleton.strands if s.dotted and s.label == leg.label for e in s.ends)):
            ranks.setdefault(vertex, place)
    return ranks


def _foot(vertex: str, skeleton: Skeleton, width: Callable[[str], float], text_of: Callable[[str], str]) -> float:
    """The room that a vertex with the texts below it takes from left to right."""
    legs = [width(text_of(leg.label)) + 10 for leg in skeleton.legs if leg.vertex == vertex]
    spread = 30.0 if len(legs) > 1 else 0.0
    name = width(skeleton.discs[vertex].name) + 12 if vertex in skeleton.discs else 0.0
    return max(2 * RADIUS + 14, sum(legs) + spread, name)


def _walk(start: str, neighbours: Mapping[str, list[str]], rank: Mapping[str, float] | None = None) -> list[str]:
    order = [start]
    while True:
        following = [vertex for vertex in neighbours[order[-1]] if vertex not in order]
        if not following:
            return order
        order.append(min(following, key=lambda v: (rank or {}).get(v, math.inf)))


def _line(
    order: Sequence[str],
    skeleton: Skeleton,
    feet: Mapping[str, float],
    width: Callable[[str], float],
    text_of: Callable[[str], str],
) -> Positions:
    x = 0.0
    positions = {order[0]: np.zeros(2)}
    for here, there in itertools.pairwise(order):
        strands = [s for s in skeleton.strands if set(s.ends) == {here, there}]
        gap = max([GAP, *(width(text_of(strand.label)) + 14 for strand in strands)]) + 26 * (len(strands) > 1)
        x += max(2 * RADIUS + gap, (feet[here] + feet[there]) / 2)
        positions[there] = np.array([x, 0.0])
    return positions


def _without(skeleton: Skeleton, dot: str) -> Skeleton:
    dots = {vertex: label for vertex, label in skeleton.dots.items() if vertex != dot}
    return replace(skeleton, dots=dots, strands=tuple(s for s in skeleton.strands if dot not in s.ends))


def _is_tree(part: Sequence[str], neighbours: Mapping[str, list[str]]) -> bool:
    edges = sum(len(neighbours[vertex]) for vertex in part) // 2
    return edges == len(part) - 1 and len(_reachable(part[0], neighbours)) == len(part)


def _with_dot_below(dot: str, positions: Positions, neighbours: Mapping[str, list[str]]) -> Positions:
    """A tree, and below it a dot that is joined to several of its vertices, where its lines meet no disc."""
    held = [positions[vertex] for vertex in neighbours[dot]]
    middle = (min(point[0] for point in held) + max(point[0] for point in held)) / 2

    def hidden(x: float) -> float:
        at = np.array([x, -LEVEL])
        return sum(
            max(0.0, RADIUS + 6 - _to_segment(point, at, positions[end]))
            for end in neighbours[dot]
            for vertex, point in positions.items()
            if vertex != end
        )

    shifts = sorted(range(-200, 201, 4), key=abs)
    best = min(shifts, key=lambda shift: (round(hidden(middle + shift), 3), abs(shift)))
    return positions | {dot: np.array([middle + best, -LEVEL])}


def _tree(
    part: Sequence[str],
    skeleton: Skeleton,
    rank: Mapping[str, float],
    feet: Mapping[str, float],
    width: Callable[[str], float],
    text_of: Callable[[str], str],
) -> Positions:
    neighbours, bundles = skeleton.neighbours, skeleton.bundles
    distance = {v: _distances(v, neighbours) for v in part}
    least = min(max(distance[v].values()) for v in part)
    root = [v for v in part if max(distance[v].values()) == least][-1]
    positions: Positions = {}

    def degree(vertex: str) -> int:
        return len(neighbours[vertex])

    def room(vertex: str, above: str) -> float:
        """From left to right, the texts at the lines upwards included."""
        strands = [*bundles.get((vertex, above), []), *bundles.get((above, vertex), [])]
        texts = [width(text_of(strand.label)) + 26 for strand in strands if not strand.hub]
        return max([feet[vertex], *texts])

    def first_mode(vertex: str, above: str) -> float:
        below = [first_mode(child, vertex) for child in neighbours[vertex] if child != above]
        return min([rank.get(vertex, math.inf), *below])

    def grow(vertex: str, above: str, left: float) -> tuple[float, int]:
        """Place what is below a vertex from `left` on; the right end, and the height."""
        children = [child for child in neighbours[vertex] if child != above]
        children.sort(key=lambda child: first_mode(child, vertex))
        right, height = left, 0
        for child in children:
            right, below = grow(child, vertex, right)
            height = max(height, below + 1)
        end = max(right, left + room(vertex, above))
        for moved in [v for v in positions if positions[v][0] >= left and right < end]:
            positions[moved] = positions[moved] + np.array([(end - right) / 2, 0.0])
        ends = [positions[children[k]][0] for k in (0, -1)] if children else [left, end]
        positions[vertex] = np.array([sum(ends) / 2, LEVEL * height])
        return end, height

    grow(root, "", 0.0)
    # Where many lines fan out, each is made as long as its text, which can then lie along it.
    texts = [width(text_of(s.label)) for s in skeleton.strands if not s.hub and max(map(degree, s.ends)) > 3]
    steeper = max([LEVEL, *(text + 2 * RADIUS + 14 for text in texts)]) / LEVEL
    return {vertex: point * np.array([1.0, steeper]) for vertex, point in positions.items()}


def _distances(start: str, neighbours: Mapping[str, list[str]]) -> dict[str, int]:
    found, frontier = {start: 0}, [start]
    for vertex in frontier:
        for other in neighbours[vertex]:
            if other not in found:
                found[other] = found[vertex] + 1
                frontier.append(other)
    return found


def _circle(
    order: Sequence[str], skeleton: Skeleton, width: Callable[[str], float], text_of: Callable[[str], str]
) -> Positions:
    count = len(order)
    longest = max(width(text_of(strand.label)) for strand in skeleton.strands)
    side = 2 * RADIUS + max(GAP, longest + 14)
    radius = side / 2 / math.sin(math.pi / count)
    angles = [math.pi / 2 + math.pi / count - 2 * math.pi * k / count for k in range(count)]
    return {v: radius * np.array([math.cos(a), math.sin(a)]) for v, a in zip(order, angles, strict=True)}


def _stress(part: Sequence[str], skeleton: Skeleton, neighbours: Mapping[str, list[str]]) -> Positions:
    import networkx  # costs 0.1 s to import, and most pictures do without

    graph = networkx.Graph()
    graph.add_nodes_from(part)
    for vertex in part:
        for other in neighbours[vertex]:
            hub = vertex in skeleton.dots or other in skeleton.dots
            graph.add_edge(vertex, other, length=0.8 if hub else 1.0)
    best: tuple[float, Positions] | None = None
    generator = random.Random(0)
    order = list(part)
    for _ in range(STARTS if len(part) <= 12 else 1):
        angles = {v: 2 * math.pi * k / len(order) for k, v in enumerate(order)}
        start = {v: np.array([math.cos(a), math.sin(a)]) for v, a in angles.items()}
        found = networkx.kamada_kawai_layout(graph, pos=start, weight="length")
        positions = _scaled({v: found[v] for v in part}, skeleton, list(graph.edges))
        cost = _clutter(positions, list(graph.edges))
        if best is None or cost < best[0] - 1e-3:
            best = cost, positions
        generator.shuffle(order)
    assert best is not None  # there is at least one start
    return _turned(best[1], skeleton)


def _scaled(positions: Positions, skeleton: Skeleton, edges: Sequence[tuple[str, str]]) -> Positions:
    """Large enough that vertices keep apart and lines are long enough for their texts."""

    def wanted(pair: tuple[str, str], joined: bool) -> float:
        dots = sum(vertex in skeleton.dots for vertex in pair)
        return (2 - dots) * RADIUS + (58.0 if joined else 36.0)

    joined = {frozenset(edge) for edge in edges}
    pairs = list(itertools.combinations(positions, 2))
    apart = {pair: max(float(np.linalg.norm(positions[pair[0]] - positions[pair[1]])), 1e-6) for pair in pairs}
    factor = max(wanted(pair, frozenset(pair) in joined) / apart[pair] for pair in pairs)
    return {vertex: point * factor for vertex, point in positions.items()}


def _clutter(positions: Positions, edges: Sequence[tuple[str, str]]) -> float:
    """How hard a layout is to read: crossings, vertices on lines, and its area."""
    crossings = sum(
        _cross(*(positions[v] for v in (*one, *other)))
        for one, other in itertools.combinations(edges, 2)
        if not set(one) & set(other)
    )
    hidden = sum(
        max(0.0, RADIUS + 8 - _to_segment(positions[v], positions[a], positions[b])) / RADIUS
        for a, b in edges
        for v in positions
        if v not in (a, b)
    )
    extent = np.ptp(np.array(list(positions.values())), axis=0)
    return 10.0 * crossings + 10.0 * hidden + float(extent.sum()) / 100


def _cross(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> bool:
    def side(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> float:
        return float((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]))

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def _to_segment(point: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    along = b - a
    t = float(np.clip(np.dot(point - a, along) / np.dot(along, along), 0.0, 1.0))
    return float(np.linalg.norm(point - a - t * along))


def _turned(positions: Positions, skeleton: Skeleton) -> Positions:
    """Turned so that the output lies right of the input, or the longer way, and the first expert above."""
    vertices = list(positions)
    points = np.array([positions[v] for v in vertices])
    points = points - points.mean(axis=0)
    at = {v: points[k] for k, v in enumerate(vertices)}
    groups: dict[str, list[np.ndarray]] = {"expert": [], "in": [], "out": []}
    for leg in skeleton.legs:
        held = (
            [leg.vertex] if leg.vertex in at else [e for s in skeleton.strands if s.label == leg.label for e in s.ends]
        )
        groups[leg.role] += [at[v] for v in held if v in at]
    middle = {group: np.mean(held, axis=0) for group, held in groups.items() if held}
    axis = middle["out"] - middle["in"] if {"in", "out"} <= middle.keys() else np.zeros(2)
    if np.linalg.norm(axis) < 1.0:
        axis = np.linalg.svd(points)[2][0]
    axis = axis / np.linalg.norm(axis)
    turned = points @ np.array([[axis[0], -axis[1]], [axis[1], axis[0]]])
    up = middle.get("expert", np.zeros(2)) @ np.array([-axis[1], axis[0]])
    if up < -1.0:
        turned[:, 1] *= -1
    return dict(zip(vertices, turned, strict=True))
