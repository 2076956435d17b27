"""Tensor network diagrams, drawn from a network's description alone.

Four steps: what is joined (`skeleton`), where it lies (`positions`), lines and texts that do not overlap (`arranging`,
with `legs` and `texts`), and the pen (`picture`).
"""

from factorized_moe.drawing.picture import draw

__all__ = ["draw"]
