"""The pen: a scene drawn with matplotlib, without pyplot and its global figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from factorized_moe.drawing.arranging import make_scene
from factorized_moe.drawing.parts import Scene
from factorized_moe.drawing.positions import DOT
from factorized_moe.network import TensorNetwork

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLORS", "draw"]

COLORS = {"expert": "#d55e00", "in": "#0072b2", "out": "#009e73"}
"""Of the modes: three colours that colour-blind readers tell apart (Okabe & Ito 2008), 3:1 or more on white."""

FONT_SIZE = 8.5
MARGIN = 8.0


def draw(network: TensorNetwork, *, ax: Axes | None = None, color: str = "#7f7f7f") -> Axes:
    """Draw the diagram of a network.

    Every node is a disc and every bond a line with its size; a label of more than two nodes is a dot joined to each.
    Open ends are the modes, in a colour for experts, input and output. The terms of a sum lie side by side, and nodes
    that read one parameter have a double outline. The layout follows from the description and is always the same.

    Args:
        network: The network, for instance ``w.network`` of a layer's weight.
        ax: The axes to draw on, which the picture fills; by default those of a new figure of the picture's size with
            a transparent background, closed by nobody because pyplot does not know it.
        color: Of texts, outlines and bonds; the default is legible on white and on dark.

    Returns:
        The axes; ``draw(network).figure.savefig("network.svg")`` writes a file.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
        TypeError: If it is not a network.

    Examples:
        >>> from factorized_moe import FactorizedExpertTensor
        >>> w = FactorizedExpertTensor((8,), 16, 32, decomposition="cp", rank=4)
        >>> sorted(text.get_text() for text in draw(w.network).texts)[:3]
        ['bond', 'expert mode', 'expert_0']
    """
    if not isinstance(network, TensorNetwork):
        raise TypeError(f"draw takes a TensorNetwork, such as w.network, got {network!r}")
    try:
        from matplotlib.figure import Figure
        from matplotlib.font_manager import FontProperties
        from matplotlib.textpath import TextToPath
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "drawing needs matplotlib, which is not installed; install factorized-moe[plots]"
        ) from None
    font, ruler = FontProperties(size=FONT_SIZE), TextToPath()
    scene = make_scene(network, lambda text: ruler.get_text_width_height_descent(text, font, ismath=False)[0])
    left, bottom, right, top = scene.bounds
    width, height = right - left + 2 * MARGIN, top - bottom + 2 * MARGIN
    if ax is None:
        figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
        ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    ax.set_axis_off()
    ax.set_aspect("equal")
    ax.set_xlim(left - MARGIN, right + MARGIN)
    ax.set_ylim(bottom - MARGIN, top + MARGIN)
    extent, home = ax.get_window_extent(), ax.get_figure(root=True)
    assert home is not None  # axes without a figure have no place to draw on
    scale = min(extent.width / width, extent.height / height) * 72 / home.dpi
    _draw_scene(scene, ax, color, scale)
    return ax


def _draw_scene(scene: Scene, ax: Any, color: str, scale: float) -> None:
    from matplotlib.patches import Circle

    for line in scene.lines:
        x, y = line.points.T
        ax.plot(x, y, color=COLORS.get(line.role, color), linewidth=1.6 * scale, solid_capstyle="round", zorder=1)
    for disc in scene.discs:
        ax.add_patch(Circle(disc.centre, disc.radius, facecolor=color, alpha=0.12, linewidth=0, zorder=2))
        rings = (disc.radius, disc.radius * 0.88) if disc.shared else (disc.radius,)
        for radius in rings:
            outline = Circle(disc.centre, radius, fill=False, edgecolor=color, linewidth=1.3 * scale, zorder=2)
            ax.add_patch(outline)
    for dot in scene.dots:
        ax.add_patch(Circle(dot.centre, DOT, color=COLORS.get(dot.role, color), linewidth=0, zorder=3))
    for text in scene.texts:
        size = (16.0 if text.big else FONT_SIZE) * scale
        style = {"color": color, "fontsize": size, "ha": "center", "va": "center", "rotation": text.angle}
        ax.text(*text.centre, text.text, **style, parse_math=False, usetex=False, zorder=4)
