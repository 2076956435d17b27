"""PEER, the nearest thing with very many experts: each has one hidden unit, and is found by product keys.

Source: X. O. He, "Mixture of A Million Experts", arXiv 2407.04153. The query of each head is cut in two; each half is
compared with ``n`` keys, and the best ``k`` of the ``n ** 2`` sums choose the experts, whose weights are the softmax of
these sums.

Legend: ``*batch`` any leading shape, ``D`` features, ``h`` heads, ``q`` features of a query, ``n ** 2`` experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ProductKeys"]


class ProductKeys(nn.Module):
    """A layer of ``n ** 2`` experts of one hidden unit.

    Args:
        features: ``D``.
        side: ``n``.
        heads: ``h``.
        query: ``q``, even.
        chosen: ``k``, at most ``n``.
    """

    def __init__(self, features: int, side: int, heads: int = 4, query: int = 16, chosen: int = 8) -> None:
        super().__init__()
        self.heads, self.chosen, self.side = heads, chosen, side
        self.queries = nn.Linear(features, heads * query, bias=False)
        self.norm = nn.BatchNorm1d(heads * query)
        self.keys = nn.Parameter(torch.randn(2, side, query // 2) / (query // 2) ** 0.5)
        self.inward = nn.Parameter(torch.randn(side**2, features) / features**0.5)
        self.outward = nn.Parameter(torch.randn(side**2, features) / (heads * chosen) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """From ``(*batch, D)`` to ``(*batch, D)``."""
        rows = x.flatten(0, -2)  # (B, D)
        query = self.norm(self.queries(rows)).view(len(rows), self.heads, 2, -1)  # (B, h, 2, q / 2)
        scores, places = torch.einsum("bhsq,snq->bhsn", query, self.keys).topk(self.chosen)  # (B, h, 2, k) each
        sums = (scores[:, :, 0, :, None] + scores[:, :, 1, None, :]).flatten(-2)  # (B, h, k * k)
        experts = (places[:, :, 0, :, None] * self.side + places[:, :, 1, None, :]).flatten(-2)
        best, which = sums.topk(self.chosen)  # (B, h, k)
        experts = experts.gather(-1, which)
        hidden = nn.functional.gelu(torch.einsum("bhkd,bd->bhk", self.inward[experts], rows)) * best.softmax(-1)
        y: Tensor = torch.einsum("bhk,bhkd->bd", hidden, self.outward[experts])
        return y.view_as(x)


def largest_side(features: int, parameters: int) -> int:
    """The largest ``n`` with which a layer has no more than so many parameters."""
    side = 8
    while sum(p.numel() for p in ProductKeys(features, side + 1).parameters()) <= parameters:
        side += 1
    return side
