"""What a report shows of a recording beyond the measures of the package, read chunk by chunk.

Legend: ``n`` samples, ``N`` experts of one mode, ``K`` top samples kept of each expert, ``W`` tokens around a top
token, ``B`` bins, ``z`` coefficients above 0 of a chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from factorized_moe.interpret.recording.coefficients import Mode
from factorized_moe.interpret.recording.recording import Recording
from factorized_moe.interpret.recording.streaming import finite_rows
from factorized_moe.interpret.report.samples import Patches, Texts

__all__ = ["expert_histograms", "top_tokens", "values_around"]


def expert_histograms(recording: Recording, bins: int, end: float, layer: str, mode: Mode) -> Tensor:
    """How many coefficients of each expert lie in each of equal bins from 0 to an end, ``(N, B)``, int64.

    Args:
        recording: The recording.
        bins: ``B``.
        end: Where the last bin ends; what is beyond counts in it, and in the first bin what is below 0.
        layer: The layer's name.
        mode: The expert mode.
    """
    experts = math.prod(recording.grid(layer, mode))
    counts = torch.zeros(experts * bins, dtype=torch.int64)
    for _, rows in finite_rows(recording, layer, mode):
        _, expert, value = rows.entries()
        place = (value.double() * (bins / end)).long().clamp(0, bins - 1)
        counts += torch.bincount(expert * bins + place, minlength=experts * bins)
    histograms = counts.reshape(experts, bins)
    histograms[:, 0] += recording.num_samples - histograms.sum(dim=1)  # the zeros, of which there are no entries
    return histograms


def top_tokens(recording: Recording, texts: Texts | Patches, k: int, layer: str, mode: Mode) -> tuple[Tensor, Tensor]:
    """For each expert its largest token in each of the texts where that is largest, so that no text fills the list.

    Args:
        recording: The recording, whose samples are the tokens of the texts, or the patches of the images, in order.
        texts: The texts, or the patches: then an image is what a text is.
        k: How many texts to keep for each expert.
        layer: The layer's name.
        mode: The expert mode.

    Returns:
        The numbers of the tokens, ``(N, K)``, int64, largest first, -1 where fewer texts have a coefficient above 0;
        and their coefficients, ``(N, K)``, 0 there.
    """
    experts = math.prod(recording.grid(layer, mode))
    ends = torch.from_numpy(texts.offsets[1:])
    best = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=recording.dtype)
    for start, rows in finite_rows(recording, layer, mode):
        sample, expert, value = rows.entries()
        above = value > 0
        best = _best_of_texts(
            torch.cat([best[0], sample[above] + start]),
            torch.cat([best[1], expert[above]]),
            torch.cat([best[2], value[above]]),
            ends,
            k,
        )
    sample, expert, value = best
    counts = torch.bincount(expert, minlength=experts)
    rank = torch.arange(len(expert)) - (counts.cumsum(0) - counts)[expert]
    tokens, values = torch.full((experts, k), -1), torch.zeros(experts, k, dtype=recording.dtype)
    tokens[expert, rank], values[expert, rank] = sample, value
    return tokens, values


def _best_of_texts(
    sample: Tensor, expert: Tensor, value: Tensor, ends: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` largest of each expert, ordered by expert and then by size, one of each text; each ``(z,)``."""
    order = value.argsort(descending=True, stable=True)
    key = expert * len(ends) + torch.bucketize(sample, ends, right=True)
    order = order[key[order].argsort(stable=True)]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = key[order][1:] != key[order][:-1]
    order = order[first]  # the largest of each expert and text
    order = order[value[order].argsort(descending=True, stable=True)]
    order = order[expert[order].argsort(stable=True)]
    counts = torch.bincount(expert[order], minlength=1)
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[expert[order]]
    kept = order[rank < k]
    return sample[kept], expert[kept], value[kept]


def values_around(recording: Recording, texts: Texts, tokens: Tensor, radius: int, layer: str, mode: Mode) -> Tensor:
    """The expert's coefficients of the tokens around each of its top tokens.

    Args:
        recording: The recording, whose samples are the tokens of the texts in order.
        texts: The texts.
        tokens: For each expert the numbers of its top tokens, -1 for none, ``(N, K)``.
        radius: How many tokens to either side.
        layer: The layer's name.
        mode: The expert mode.

    Returns:
        The coefficients, ``(N, K, W)`` with ``W`` twice the radius and 1; NaN beyond the ends of a token's text.
    """
    offsets = torch.from_numpy(texts.offsets)
    text = torch.bucketize(tokens, offsets[1:], right=True).clamp(max=max(0, len(offsets) - 2))  # (N, K)
    first, last = offsets[text][..., None], offsets[(text + 1).clamp(max=len(offsets) - 1)][..., None]
    around = tokens[..., None] + torch.arange(-radius, radius + 1)  # (N, K, W)
    inside = (around >= first) & (around < last) & (tokens >= 0)[..., None]
    values = torch.full(around.shape, math.nan)
    expert = torch.arange(len(tokens))[:, None, None].expand_as(around)
    for start, rows in finite_rows(recording, layer, mode):
        here = inside & (around >= start) & (around < start + len(rows))
        values[here] = rows.dense()[around[here] - start, expert[here]].float()
    return values
