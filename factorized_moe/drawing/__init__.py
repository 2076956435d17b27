"""Tensor network diagrams, drawn from a network's description alone.

Four steps: what is joined (`skeleton`), where it lies (`positions`), lines and texts that do not overlap (`arranging`,
with `legs` and `texts`), and the pen (`picture`).
"""

from factorized_moe.drawing.picture import draw
from factorized_moe.drawing.svg import draw_svg
from factorized_moe.network import TensorNetwork

__all__ = ["draw", "draw_svg"]

# In a notebook a network is its picture. The description itself knows nothing of pictures.
TensorNetwork._repr_svg_ = draw_svg  # type: ignore[attr-defined]
