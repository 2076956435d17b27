"""A network's picture as SVG, which notebooks show."""

from __future__ import annotations

import io
from importlib.util import find_spec

from factorized_moe.drawing.picture import draw
from factorized_moe.network import TensorNetwork

__all__ = ["draw_svg"]


def draw_svg(network: TensorNetwork) -> str | None:
    """A network's picture as the text of an SVG element, the same at every call; None without matplotlib.

    Args:
        network: The network.

    Raises:
        TypeError: If it is not a network.

    Examples:
        >>> from factorized_moe import FactorizedExpertTensor
        >>> w = FactorizedExpertTensor((8,), 16, 32, decomposition="cp", rank=4)
        >>> draw_svg(w.network)[:4]
        '<svg'
    """
    if not isinstance(network, TensorNetwork):
        raise TypeError(f"draw_svg takes a TensorNetwork, such as w.network, got {network!r}")
    if find_spec("matplotlib") is None:
        return None
    import matplotlib

    content = io.StringIO()
    figure = draw(network).get_figure(root=True)
    assert figure is not None  # `draw` made it
    with matplotlib.rc_context({"svg.hashsalt": "factorized-moe", "svg.fonttype": "path"}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return content.getvalue()[content.getvalue().index("<svg") :]
