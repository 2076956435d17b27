"""Where the parts of a picture lie: apart, and as a reader expects."""

import math
from dataclasses import replace

import pytest

from factorized_moe import TensorNetwork
from factorized_moe.decompositions import get_decomposition
from factorized_moe.decompositions.registry import registered_decompositions
from factorized_moe.drawing.arranging import make_scene
from factorized_moe.drawing.parts import Scene, Text, pair
from factorized_moe.drawing.positions import RADIUS

SIZES = (64, 16, 8, 769, 768)


def width(text: str) -> float:
    return 5.0 * len(text)  # about that of the font at its size


def scene_of(name: str, modes: int) -> Scene:
    decomposition = get_decomposition(name)
    shape = (*SIZES[:modes], *SIZES[3:])
    return make_scene(decomposition.network(shape[:-2], *shape[-2:], decomposition.resolve_rank(12, shape)), width)


def parsed(text: str) -> Scene:
    words = {word for part in text.split(",") for word in part.split(":")[-1].split()}
    return make_scene(TensorNetwork.parse(text, dict.fromkeys(words, 12)), width)


def covered(scene: Scene) -> dict[str, float]:
    """For each text what it covers of lines, dots, other texts, and discs that it is not the name of."""
    found = {}
    for text in scene.texts:
        discs = [disc for disc in scene.discs if disc.centre != text.centre]
        others = [other for other in scene.texts if other is not text]
        found[text.text] = replace(scene, discs=discs, texts=others).cover()(text)
    return found


@pytest.mark.parametrize("modes", [0, 1, 2, 3])
@pytest.mark.parametrize("name", registered_decompositions())
def test_no_text_covers_anything(name: str, modes: int) -> None:
    scene = scene_of(name, modes)
    assert {text: cost for text, cost in covered(scene).items() if cost > 1} == {}
    for k, disc in enumerate(scene.discs):
        for other in scene.discs[k + 1 :]:
            assert math.dist(disc.centre, other.centre) > 2 * RADIUS


def test_an_overlap_is_seen() -> None:
    scene = scene_of("tt", 1)
    scene.texts.append(Text("over a line", pair(scene.lines[0].points[3]), 60.0))
    assert covered(scene)["over a line"] > 1


def centres(scene: Scene) -> dict[str, tuple[float, float]]:
    places = {text.centre: text.text for text in scene.texts}
    return {places[disc.centre]: disc.centre for disc in scene.discs if disc.centre in places}


def test_a_chain_is_a_line() -> None:
    at = centres(scene_of("tt", 2))
    assert sorted(at, key=lambda name: at[name][0]) == ["expert_0", "expert_1", "input", "output"]
    assert len({y for _, y in at.values()}) == 1


def test_a_tree_has_its_leaves_in_one_row_in_the_order_of_the_modes() -> None:
    at = centres(scene_of("tucker", 2))
    leaves = ["expert_0", "expert_1", "input", "output"]
    assert sorted(leaves, key=lambda name: at[name][0]) == leaves
    assert len({at[name][1] for name in leaves}) == 1
    assert at["core"][1] > at["input"][1]


def test_a_ring_is_a_circle() -> None:
    points = list(centres(scene_of("tr", 3)).values())
    middle = [sum(values) / 5 for values in zip(*points, strict=True)]
    radii = [math.dist(point, middle) for point in points]
    assert max(radii) - min(radii) < 1e-6


def test_a_label_of_many_nodes_is_a_dot_above_them() -> None:
    scene = scene_of("cp", 2)
    (dot,) = scene.dots
    assert dot.role == "bond"
    assert all(dot.centre[1] > disc.centre[1] + RADIUS for disc in scene.discs)


def test_input_lies_left_of_output_in_any_other_network() -> None:
    at = centres(parsed("a: expert_0 p q r, b: in p s t, c: out q s u, d: r t u"))
    assert at["b"][0] < at["c"][0]
    assert at["a"][1] > 0 > at["b"][1]


def test_terms_lie_side_by_side() -> None:
    scene = scene_of("shared_private", 1)
    (plus,) = [text for text in scene.texts if text.text == "+"]
    at = centres(scene)
    assert at["shared"][0] < plus.centre[0] < at["expert_0"][0]


@pytest.mark.thorough
def test_a_large_network_is_arranged() -> None:
    rows = [[f"n{r}{c}: r{r}_{c} r{r}_{c + 1} c{r}_{c} c{r + 1}_{c}" for c in range(4)] for r in range(4)]
    text = ", ".join(node for row in rows for node in row)
    for edge, mode in {"r0_0": "in", "r3_4": "out"}.items():
        text = text.replace(f" {edge}", f" {mode}")
    outer = [f"r{k}_{e}" for k in range(4) for e in (0, 4)] + [f"c{e}_{k}" for k in range(4) for e in (0, 4)]
    for label in outer:
        text = text.replace(f" {label}", "")
    assert len(parsed(text).discs) == 16
