"""Pictures of networks: complete, legible, on the axes given, without global figures."""

import sys
from collections.abc import Iterator

import matplotlib
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from factorized_moe import TensorNetwork
from factorized_moe.decompositions import get_decomposition
from factorized_moe.decompositions.registry import registered_decompositions
from factorized_moe.drawing import draw
from factorized_moe.drawing.picture import COLORS

DIMS = (8, 4, 3)


def described(name: str, modes: int) -> TensorNetwork:
    """A network of the decomposition; an input of prime size is padded by those that split it."""
    shape = (*DIMS[:modes], 17, 12)
    decomposition = get_decomposition(name)
    return decomposition.network(shape[:-2], *shape[-2:], decomposition.resolve_rank(3, shape))


HAND_WRITTEN = {
    "a grid": "a: expert_0 p q, b: in p r s, c: out r t, d: q u, e: u s v, f: v t",
    "every pair joined": "a: expert_0 p q r, b: in p s t, c: out q s u, d: r t u",
    "nothing joined": "expert_0, in, out, c: ",
    "one parameter for two": "expert_0 a, in b, first: a b c, second@first: c d e, e f, out d f",
    "two dots for all": "expert_0 r s, in r s, out r s",
    "long words": "a_node_of_a_long_name: expert_0 a_bond_of_a_long_name, in a_bond_of_a_long_name b, b out",
    "many legs": "w: expert_0 expert_1 expert_2 in out",
    "three terms": "in out + expert_0 r, in r, r out + expert_0 in s, s out",
}


def written(name: str) -> TensorNetwork:
    text = HAND_WRITTEN[name]
    modes = {"expert_0": 3, "expert_1": 3, "expert_2": 3, "in": 3, "out": 3}
    words = {word for part in text.replace("+", ",").split(",") for word in part.split(":")[-1].split()}
    return TensorNetwork.parse(text, {word: modes.get(word, 3) for word in words})


@pytest.fixture(autouse=True)
def no_figure_is_left_to_pyplot() -> Iterator[None]:
    before = pyplot.get_fignums()
    yield
    assert pyplot.get_fignums() == before


def check_complete(network: TensorNetwork) -> None:
    texts = [text.get_text() for text in draw(network).texts]
    for node in network.nodes:
        assert node.name in texts
    for term in network.terms:
        for label in {label for node in term for label in node.labels}:
            assert f"{label}={network.sizes[label]}" in texts
    assert texts.count("+") == len(network.terms) - 1


@pytest.mark.parametrize("name", registered_decompositions())
def test_every_decomposition_is_drawn_completely(name: str) -> None:
    check_complete(described(name, 2))


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_any_network_is_drawn_completely(name: str) -> None:
    check_complete(written(name))


def test_the_same_network_gives_the_same_picture() -> None:
    def parts() -> list[tuple[object, ...]]:
        ax = draw(described("block_term", 2))
        return [(text.get_text(), text.get_position(), text.get_rotation()) for text in ax.texts]

    assert parts() == parts()


def test_legend_says_what_occurs() -> None:
    def legend(network: TensorNetwork) -> set[str]:
        drawn = {text.get_text() for text in draw(network).texts}
        sizes = {f"{label}={size}" for label, size in network.label_sizes}
        return drawn - sizes - {node.name for node in network.nodes} - {"+"}

    cp = TensorNetwork.parse("a: expert_0 r, b: in r, c: r out; expert_0=2 in=3 out=4 r=5")
    assert legend(cp) == {"expert mode", "input", "output", "bond"}
    assert legend(described("dense", 0)) == {"input", "output"}
    assert legend(described("kronecker", 0)) == {"input, 17 padded by 1", "output", "bond"}
    assert "one parameter: first, second" in legend(written("one parameter for two"))


def test_nodes_of_one_parameter_have_a_double_outline() -> None:
    def outlines(name: str) -> int:
        return sum(not patch.get_fill() for patch in draw(written(name)).patches)

    assert outlines("many legs") == 1
    assert outlines("one parameter for two") == 6 + 2 + 2  # six nodes, two of them double, as in the legend


def test_axes_given_are_filled_and_returned() -> None:
    figure = Figure(figsize=(8, 3))
    ax = figure.add_subplot(1, 2, 2)
    network = described("tr", 2)
    assert draw(network, ax=ax) is ax
    assert figure.axes == [ax]
    figure.canvas.draw()
    for text in ax.texts:
        box = text.get_window_extent()
        assert ax.bbox.x0 <= box.x0 <= box.x1 <= ax.bbox.x1
    natural = draw(network)
    assert ax.texts[0].get_fontsize() < natural.texts[0].get_fontsize()  # texts shrink with the picture


def test_new_figure_fits_the_picture_and_is_transparent() -> None:
    figure = draw(described("tucker", 3)).figure
    assert figure.get_facecolor()[3] == 0
    figure.canvas.draw()
    width, height = figure.bbox.width, figure.bbox.height
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 <= box.x1 <= width
        assert 0 <= box.y0 <= box.y1 <= height


def luminance(color: str) -> float:
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("color", [*COLORS.values(), "#7f7f7f"])
@pytest.mark.parametrize("background", ["#ffffff", "#1e2129"])
def test_colours_stand_out_on_white_and_on_dark(color: str, background: str) -> None:
    low, high = sorted([luminance(color), luminance(background)])
    assert (high + 0.05) / (low + 0.05) >= 3  # what WCAG 2.1 asks of graphics


def test_colour_of_texts_is_the_reader_s() -> None:
    ax = draw(described("cp", 1), color="#123456")
    assert {text.get_color() for text in ax.texts} == {"#123456"}
    assert {line.get_color() for line in ax.lines} == {"#123456", *COLORS.values()}


def test_a_user_s_settings_of_matplotlib_stay() -> None:
    before = dict(matplotlib.rcParams)
    draw(described("tt", 1))
    assert dict(matplotlib.rcParams) == before


def test_other_objects_are_refused() -> None:
    with pytest.raises(TypeError, match=r"draw takes a TensorNetwork, such as w\.network, got 'cp'"):
        draw("cp")


def test_matplotlib_is_asked_for_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib.figure", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError) as error:
        draw(described("cp", 1))
    assert str(error.value) == "drawing needs matplotlib, which is not installed; install factorized-moe[plots]"
