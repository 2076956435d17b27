"""What a report shows of a recording beyond the measures of the package, read chunk by chunk.

Legend: ``n`` samples, ``N`` experts of one mode, ``K`` top samples kept of each expert, ``W`` tokens around a top
token, ``B`` bins, ``z`` coefficients above 0 of a chunk.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from factorized_moe.interpret.measures.keeping import draw_order
from factorized_moe.interpret.recording.streaming import Block
from factorized_moe.interpret.report.samples import Patches, Texts

__all__ = ["ContextCollector", "ExpertHistograms", "NoNegatives", "TopTokens"]

OFFERED_ELEMENTS = 2**17
"""Elements of the pieces whose tokens are offered together: all that are kept are sorted with them each time."""


class ExpertHistograms:
    """How many coefficients of each expert lie in each of equal bins from 0 to an end.

    Args:
        experts: ``N``.
        bins: ``B``.
        end: Where the last bin ends; what is beyond counts in it, and in the first bin what is below 0.
    """

    def __init__(self, experts: int, bins: int, end: float) -> None:
        self._bins, self._end, self._samples = bins, end, 0
        self._counts = torch.zeros(experts * bins, dtype=torch.int64)

    def add(self, block: Block) -> None:
        """Take the next samples."""
        self._samples += len(block)
        experts = len(self._counts) // self._bins
        if block.rows.is_sparse:
            _, expert, value = block.entries
            self._counts += torch.bincount(expert * self._bins + self._place(value), minlength=len(self._counts))
            return
        first = torch.arange(experts) * self._bins
        places = torch.empty(block.rows.values.shape, dtype=torch.int32)
        for some, piece in block.pieces():
            places[some] = first + self._place(piece)
        self._counts += torch.bincount(places.view(-1), minlength=len(self._counts))

    def _place(self, values: Tensor) -> Tensor:
        return (values.double() * (self._bins / self._end)).long().clamp(0, self._bins - 1)

    def result(self) -> Tensor:
        """The counts, ``(N, B)``, int64."""
        histograms = self._counts.reshape(-1, self._bins).clone()
        histograms[:, 0] += self._samples - histograms.sum(dim=1)  # the zeros, of which there are no entries
        return histograms


class TopTokens:
    """For each expert its largest token in each of the texts where that is largest, so that no text fills the list.

    Of equal tokens, and of texts whose largest are equal, those that come first in a random order.

    Args:
        texts: The texts, whose tokens the samples are in order; or the images of patches.
        experts: ``N``.
        k: How many texts to keep for each expert.
        dtype: The type of the coefficients.
        seed: Of the order.
    """

    def __init__(self, texts: Texts | Patches, experts: int, k: int, dtype: torch.dtype, seed: int = 0) -> None:
        self._ends, self._experts, self._k = torch.from_numpy(texts.offsets[1:]), experts, k
        self._order = draw_order(len(texts), seed)
        self._best = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=dtype)
        self._last = torch.zeros(experts, dtype=dtype)  # below it no token has a chance

    def add(self, block: Block) -> None:
        """Take the next samples."""
        if block.rows.is_sparse:
            sample, expert, value = block.active(0.0)
            self._offer(block.start, sample, expert, value)
            return
        for some, piece in block.pieces(OFFERED_ELEMENTS):
            reached = piece.numpy() >= self._last.numpy()
            reached &= piece.numpy() > 0
            sample, expert = map(torch.from_numpy, np.divmod(np.flatnonzero(reached), piece.shape[1]))
            if len(sample):
                self._offer(block.start + some.start, sample, expert, piece[sample, expert])

    def _offer(self, start: int, sample: Tensor, expert: Tensor, value: Tensor) -> None:
        chance = value >= self._last[expert]
        offered = sample[chance] + start, expert[chance], value[chance]
        sample, expert, value = (torch.cat([kept, new]) for kept, new in zip(self._best, offered, strict=True))
        self._best = _best_of_texts(sample, expert, value, self._order, self._ends, self._k)
        _, expert, value = self._best
        full = torch.bincount(expert, minlength=self._experts) == self._k
        last = torch.full_like(self._last, math.inf).scatter_reduce(0, expert, value, "amin")
        self._last = torch.where(full, last, 0.0)

    def result(self) -> tuple[Tensor, Tensor]:
        """The numbers of the tokens, largest first, and their coefficients, each ``(N, K)``.

        Where fewer texts have a coefficient above 0, they are -1 and 0.
        """
        sample, expert, value = self._best
        counts = torch.bincount(expert, minlength=self._experts)
        rank = torch.arange(len(expert)) - (counts.cumsum(0) - counts)[expert]
        tokens = torch.full((self._experts, self._k), -1)
        values = torch.zeros(self._experts, self._k, dtype=value.dtype)
        tokens[expert, rank], values[expert, rank] = sample, value
        return tokens, values


def _best_of_texts(
    sample: Tensor, expert: Tensor, value: Tensor, draw: Tensor, ends: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` largest of each expert, ordered by expert and then by size, one of each text; each ``(z,)``."""
    order = draw[sample].argsort()
    order = order[value[order].argsort(descending=True, stable=True)]
    key = expert * len(ends) + torch.bucketize(sample, ends, right=True)
    order = order[key[order].argsort(stable=True)]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = key[order][1:] != key[order][:-1]
    order = order[first]  # the largest of each expert and text
    order = order[draw[sample[order]].argsort()]
    order = order[value[order].argsort(descending=True, stable=True)]
    order = order[expert[order].argsort(stable=True)]
    counts = torch.bincount(expert[order], minlength=1)
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[expert[order]]
    kept = order[rank < k]
    return sample[kept], expert[kept], value[kept]


class ContextCollector:
    """The expert's coefficients of the tokens around each of its top tokens.

    Args:
        texts: The texts, whose tokens the samples are in order.
        tokens: For each expert the numbers of its top tokens, -1 for none, ``(N, K)``.
        radius: How many tokens to either side.
    """

    def __init__(self, texts: Texts, tokens: Tensor, radius: int) -> None:
        offsets = torch.from_numpy(texts.offsets)
        text = torch.bucketize(tokens, offsets[1:], right=True).clamp(max=max(0, len(offsets) - 2))  # (N, K)
        first, last = offsets[text][..., None], offsets[(text + 1).clamp(max=len(offsets) - 1)][..., None]
        self._around = tokens[..., None] + torch.arange(-radius, radius + 1)  # (N, K, W)
        self._inside = (self._around >= first) & (self._around < last) & (tokens >= 0)[..., None]
        self._expert = torch.arange(len(tokens))[:, None, None].expand_as(self._around)
        self._values = torch.full(self._around.shape, math.nan)

    def add(self, block: Block) -> None:
        """Take the next samples."""
        here = self._inside & (self._around >= block.start) & (self._around < block.start + len(block))
        self._values[here] = block.rows.dense()[self._around[here] - block.start, self._expert[here]].float()

    def result(self) -> Tensor:
        """The coefficients, ``(N, K, W)`` with ``W`` twice the radius and 1; NaN beyond the ends of a token's text."""
        return self._values


class NoNegatives:
    """Refuses negative coefficients: a sum of which some part is negative does not divide into shares.

    Args:
        layer: The layer's name, for the message.
    """

    def __init__(self, layer: str) -> None:
        self._layer = layer

    def add(self, block: Block) -> None:
        """Look at the next samples."""
        if block.range[0] < 0:
            raise ValueError(
                f"layer {self._layer!r} has the coefficient {block.range[0]} among the samples from {block.start} on; "
                "how coefficients divide among the classes is found for those from 0 up; record without labels"
            )
