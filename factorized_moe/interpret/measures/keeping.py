"""Keeping the best samples of each expert while a recording goes by, equal ones in an order drawn at random.

Legend: ``n`` samples, ``N`` experts, ``k`` samples kept of each, ``c`` candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KeptSamples", "draw_order"]

NEVER = 2**62
"""The place of a sample that there is not."""


def draw_order(samples: int, seed: int) -> Tensor:
    """A place for each sample in a random order, ``(n,)``, int64; the same for the same seed and number of samples."""
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed))


class KeptSamples:
    """For each expert the ``k`` samples with the largest coefficients, equal ones by an order; or by the order alone.

    Args:
        experts: ``N``.
        k: How many to keep.
        dtype: The type of the coefficients.
        largest: Whether the largest come first; otherwise only the order counts.

    Attributes:
        samples: The samples' numbers, best first, ``(N, k)``, int64; -1 where there are fewer.
        values: Their coefficients, ``(N, k)``; 0 where there is no sample.
        places: Their places in the order, ``(N, k)``; ``NEVER`` where there is no sample.
    """

    def __init__(self, experts: int, k: int, dtype: torch.dtype, *, largest: bool) -> None:
        self.samples = torch.full((experts, k), -1)
        self.values = torch.zeros(experts, k, dtype=dtype)
        self.places = torch.full((experts, k), NEVER)
        self._largest = largest

    def offer(self, sample: Tensor, expert: Tensor, value: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Take candidates with coefficients above 0: their samples, experts, coefficients and places, each ``(c,)``.

        Returns:
            The experts that had a candidate, and how many of the kept and offered samples have the coefficient of the
            expert's last one.
        """
        k = self.values.shape[1]
        changed, owner = expert.unique(return_inverse=True)
        owner = torch.cat([torch.arange(len(changed)).repeat_interleave(k), owner])
        values, places, samples = (
            torch.cat([kept[changed].reshape(-1), new])
            for kept, new in ((self.values, value), (self.places, place), (self.samples, sample))
        )
        order = places.argsort()
        if self._largest:
            order = order[values[order].argsort(descending=True, stable=True)]
        order = order[owner[order].argsort(stable=True)]
        counts = torch.bincount(owner, minlength=len(changed))  # k and more
        best = order[(counts.cumsum(0) - counts)[:, None] + torch.arange(k)]
        self.samples[changed], self.values[changed], self.places[changed] = samples[best], values[best], places[best]
        last = self.values[changed, -1]
        equal = torch.bincount(owner[values == last[owner]], minlength=len(changed))
        return changed, equal
