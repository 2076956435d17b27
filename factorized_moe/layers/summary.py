"""What a layer of experts is, in a table: for a notebook."""

from __future__ import annotations

import math

from torch import nn

from factorized_moe._text_tables import html_table
from factorized_moe.decompositions import name_of
from factorized_moe.drawing import draw_svg
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["summary_html"]


def summary_html(layer: nn.Module, tensors: dict[str, FactorizedExpertTensor], gate: nn.Module) -> str:
    """A layer's expert tensors and their costs as a table, with the picture of the first one's network.

    Args:
        layer: The layer.
        tensors: Its expert tensors by name.
        gate: Its gate.
    """
    rows = [("tensor", "matrices", "decomposition", "rank", "parameters", "as dense tensor", "FLOPs per sample")]
    for name, tensor in tensors.items():
        plan = tensor.plan()
        dense = math.prod(tensor.network.shape)
        decomposition, rank = name_of(tensor.decomposition), str(tensor.rank)
        shape = f"{tensor.in_features} to {tensor.out_features}{', with bias' if tensor.bias else ''}"
        costs = (f"{tensor.num_parameters:,}", f"{dense:,}", f"{plan.flops // plan.batch_size:,}")
        rows.append((name, shape, decomposition, rank, *costs))
    dims = next(iter(tensors.values())).expert_dims
    grid = f"{' x '.join(map(str, dims))} = " if len(dims) > 1 else ""
    total, of_gate = (sum(p.numel() for p in module.parameters()) for module in (layer, gate))
    caption = (
        f"{type(layer).__name__}: {grid}{math.prod(dims):,} experts, {total:,} parameters, {of_gate:,} of the gate"
    )
    picture = draw_svg(next(iter(tensors.values())).network) or ""
    return html_table(rows, caption, left=4) + picture
