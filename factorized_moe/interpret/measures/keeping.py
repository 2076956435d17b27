"""Keeping the best samples of each expert while a recording goes by, equal ones in an order drawn at random.

Legend: ``n`` samples, ``N`` experts, ``k`` samples kept of each, ``c`` candidates.
"""

from __future__ import annotations

import numpy as np
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
        # NumPy, on one thread: there are too few candidates to wait for several at each step.
        kept = tuple(tensor.numpy() for tensor in (self.values, self.places, self.samples))
        k, offered = self.values.shape[1], expert.numpy()
        changed = np.flatnonzero(np.bincount(offered, minlength=len(self.values)))
        number = np.zeros(len(self.values), dtype=np.int64)
        number[changed] = np.arange(len(changed))
        owner = np.concatenate([np.arange(len(changed)).repeat(k), number[offered]])
        values, places, samples = (
            np.concatenate([mine[changed].reshape(-1), new.numpy()])
            for mine, new in zip(kept, (value, place, sample), strict=True)
        )
        order = places.argsort()
        if self._largest:
            order = order[(-values[order]).argsort(kind="stable")]
        order = order[owner[order].argsort(kind="stable")]
        counts = np.bincount(owner, minlength=len(changed))  # k and more
        best = order[(counts.cumsum() - counts)[:, None] + np.arange(k)]
        for mine, new in zip(kept, (values, places, samples), strict=True):
            mine[changed] = new[best]
        last = kept[0][changed, -1]
        equal = np.bincount(owner[values == last[owner]], minlength=len(changed))
        return torch.from_numpy(changed), torch.from_numpy(equal)
