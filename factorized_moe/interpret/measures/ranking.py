"""The samples that use an expert most, and the experts that a sample uses most.

Legend: ``n`` samples, ``N`` experts of one mode or of the whole grid, ``k`` how many are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factorized_moe._validation import check_kind, check_size
from factorized_moe.interpret.measures.measurement import Measurement, expert_columns
from factorized_moe.interpret.recording.recording import Mode, Recording
from factorized_moe.interpret.recording.streaming import finite_rows

__all__ = ["TopExperts", "TopSamples", "find_top_experts", "find_top_samples"]


@dataclass(frozen=True, eq=False)
class TopSamples(Measurement):
    """For each expert the samples with its largest coefficients, the largest first.

    Attributes:
        samples: The samples' numbers in the recording, ``(N, k)``, int64; -1 where fewer have a coefficient above 0.
        values: Their coefficients, ``(N, k)``; 0 where there is no sample.
        ids: Their ids, ``(N, k)``, int64; -1 where there is no sample.
        grid: The sizes of the expert modes that the experts are counted over.
    """

    samples: Tensor
    values: Tensor
    ids: Tensor
    grid: tuple[int, ...]

    def columns(self) -> dict[str, list[Any]]:
        """One row for each expert and sample."""
        experts, kept = self.samples.shape
        there = (self.samples >= 0).reshape(-1)
        table: dict[str, list[Any]] = dict(expert_columns(self.grid, repeat=kept))
        table["rank"] = list(range(kept)) * experts
        for name, tensor in {"sample": self.samples, "id": self.ids, "coefficient": self.values}.items():
            table[name] = tensor.reshape(-1).tolist()
        return {
            name: [x for x, kept in zip(column, there.tolist(), strict=True) if kept] for name, column in table.items()
        }


def find_top_samples(recording: Recording, k: int = 10, *, layer: str | None = None, mode: Mode = 0) -> TopSamples:
    """Find for each expert the samples with its largest coefficients; of equal ones those recorded earlier.

    Args:
        recording: The recording.
        k: How many samples to keep for each expert.
        layer: The layer's name; may be left out if there is one layer only.
        mode: The number of an expert mode, or ``"product"`` for the experts of the whole grid.

    Raises:
        TypeError: If ``k`` is not an int.
        ValueError: If it is not positive, a coefficient is not finite, or there is no such layer or mode.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> from factorized_moe.interpret import record
        >>> layer = CPMuMoE(8, 3, [2], rank=2)
        >>> with record(layer) as log:
        ...     y = layer(torch.randn(6, 8))
        >>> find_top_samples(log.recording, k=3).samples.tolist()  # the gate of a new layer mixes uniformly
        [[0, 1, 2], [0, 1, 2]]
    """
    k = check_size("k", k)
    check_kind("recording", recording, Recording)
    grid = recording.grid(layer, mode)
    experts = math.prod(grid)
    samples = torch.full((experts, k), -1)
    values = torch.zeros(experts, k, dtype=recording.dtype)
    for start, rows in finite_rows(recording, layer, mode):
        sample, expert, value = rows.entries()
        better = value > values[expert, -1]
        sample, expert, value = sample[better] + start, expert[better], value[better]
        if not len(expert):
            continue
        # What was kept so far comes first, so that a stable sort prefers it among equals.
        changed, place = expert.unique(return_inverse=True)
        owner = torch.cat([torch.arange(len(changed)).repeat_interleave(k), place])
        all_values = torch.cat([values[changed].reshape(-1), value])
        all_samples = torch.cat([samples[changed].reshape(-1), sample])
        order = all_values.argsort(descending=True, stable=True)
        order = order[owner[order].argsort(stable=True)]
        counts = torch.bincount(owner, minlength=len(changed))  # k and more
        best = order[(counts.cumsum(0) - counts)[:, None] + torch.arange(k)]
        samples[changed], values[changed] = all_samples[best], all_values[best]
    return TopSamples(samples, values, torch.where(samples < 0, -1, _ids(recording)[samples]), grid)


@dataclass(frozen=True, eq=False)
class TopExperts(Measurement):
    """For each sample the experts with the largest coefficients, the largest first.

    Attributes:
        experts: The experts, ``(n, k)``, int64; -1 where fewer have a coefficient above 0.
        values: Their coefficients, ``(n, k)``; 0 where there is no expert.
        ids: The samples' ids, ``(n,)``, int64.
    """

    experts: Tensor
    values: Tensor
    ids: Tensor

    def columns(self) -> dict[str, list[Any]]:
        """One row for each sample."""
        table = {"id": self.ids.tolist()}
        for rank in range(self.experts.shape[1]):
            table[f"expert_{rank}"] = self.experts[:, rank].tolist()
            table[f"coefficient_{rank}"] = self.values[:, rank].tolist()
        return table


def find_top_experts(recording: Recording, k: int = 5, *, layer: str | None = None, mode: Mode = 0) -> TopExperts:
    """Find for each sample the experts with the largest coefficients; of equal ones those of lower number.

    Args:
        recording: The recording.
        k: How many experts to keep for each sample.
        layer: The layer's name; may be left out if there is one layer only.
        mode: The number of an expert mode, or ``"product"`` for the experts of the whole grid.

    Raises:
        TypeError: If ``k`` is not an int.
        ValueError: If it is not positive, a coefficient is not finite, or there is no such layer or mode.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> from factorized_moe.interpret import record
        >>> layer = CPMuMoE(8, 3, [4], rank=2)
        >>> with record(layer) as log:
        ...     y = layer(torch.randn(2, 8))
        >>> find_top_experts(log.recording, k=2).experts.tolist()
        [[0, 1], [0, 1]]
    """
    k = check_size("k", k)
    check_kind("recording", recording, Recording)
    recording.grid(layer, mode)
    experts = torch.full((recording.num_samples, k), -1)
    values = torch.zeros(recording.num_samples, k, dtype=recording.dtype)
    for start, rows in finite_rows(recording, layer, mode):
        sample, expert, value = rows.entries()
        positive = value > 0
        sample, expert, value = sample[positive], expert[positive], value[positive]
        order = value.argsort(descending=True, stable=True)
        order = order[sample[order].argsort(stable=True)]
        counts = torch.bincount(sample, minlength=len(rows))
        row = sample[order]
        rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[row]
        kept = rank < k
        experts[start + row[kept], rank[kept]] = expert[order][kept]
        values[start + row[kept], rank[kept]] = value[order][kept]
    return TopExperts(experts, values, recording.ids)


def _ids(recording: Recording) -> Tensor:
    """The samples' ids with one more entry, so that a sample of -1 can be looked up in an empty recording too."""
    return torch.cat([recording.ids, torch.tensor([-1])])
