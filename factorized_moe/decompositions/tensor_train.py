"""Tensor-train decomposition: a chain of cores, each joined to the next by one bond."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from tensorly.tt_tensor import TTTensor
from torch import Tensor

from factorized_moe.decompositions.base import Decomposition, Rank
from factorized_moe.decompositions.initialisation import balanced, variance_preserving
from factorized_moe.decompositions.registry import register
from factorized_moe.network import TensorNetwork

__all__ = ["TensorTrain"]


def replicate_with_noise(network: TensorNetwork, tensors: Mapping[str, Tensor]) -> None:
    """The uMoE paper's initialisation: every expert starts as a noisy copy of one matrix.

    Each expert's slice of an expert core is the identity, its diagonal N(1, 1) in the first expert mode and 1 in
    further ones; the input core is uniform within ``1/sqrt(I)``, the output core within ``1/sqrt`` of its bond.

    Experts of further modes are equal, so their rows get equal gradients and their gate none: only the first mode
    learns. `balanced`, the default, has noise in every mode.
    """
    for mode in range(len(network.expert_dims)):
        core = tensors[f"expert_{mode}"]  # (N_0, r) for the first mode, (N_k, left, right) for further ones
        slices = core.unsqueeze(1) if core.ndim == 2 else core
        slices.copy_(torch.eye(*slices.shape[1:], dtype=core.dtype, device=core.device))
        if mode == 0:
            slices.mul_(torch.randn_like(slices).add_(1.0))
    bounds = {"input": tensors["input"].shape[0], "output": tensors["output"].shape[0]}
    for name, fan_in in bounds.items():
        torch.nn.init.uniform_(tensors[name], -(fan_in**-0.5), fan_in**-0.5)


class TensorTrain(Decomposition):
    """A chain of cores (Oseledets 2011; uMoE v1 Eq. 4).

    ``W[n, .., i, o] = G_0[n] .. G_in[i] G_out[o]``.

    The rank is one int for each bond, first and last included and equal to 1: ``(1, r_1, .., 1)``, or one int for
    all inner bonds. Parameters ``N_0 r_1 + sum r_k N_k r_(k+1) + r I r' + r' O``. A core keeps its mode first in
    memory, the output core last, so that no product copies a parameter.
    """

    initialisations = MappingProxyType(
        {"balanced": balanced, "paper": replicate_with_noise, "variance_preserving": variance_preserving}
    )
    tensorly_algorithm = "tensor_train"
    tltorch_name = "tt"

    def check_rank(self, rank: Rank, shape: tuple[int, ...]) -> Rank:
        ranks = (1, *(rank,) * (len(shape) - 1), 1) if isinstance(rank, int) else rank
        if len(ranks) != len(shape) + 1:
            raise ValueError(
                f"rank of TensorTrain is one int for each of the {len(shape) + 1} bonds of {shape}, "
                f"first and last included, got {ranks}"
            )
        if ranks[0] != 1 or ranks[-1] != 1:
            raise ValueError(f"first and last rank of TensorTrain must be 1, got {ranks}; TensorRing allows others")
        return ranks

    def useful_rank(self, rank: tuple[int, ...], shape: tuple[int, ...]) -> Rank:  # type: ignore[override]
        ranks = [1]
        for k in range(1, len(shape)):
            ranks.append(min(rank[k], ranks[-1] * shape[k - 1], math.prod(shape[k:])))
        return (*ranks, 1)

    def network(
        self, expert_dims: tuple[int, ...], in_features: int, out_features: int, rank: tuple[int, ...]
    ) -> TensorNetwork:
        modes = {**{f"expert_{k}": f"expert_{k}" for k in range(len(expert_dims))}, "input": "in"}
        nodes = {
            name: (label, *((f"bond_{k}",) if k else ()), f"bond_{k + 1}")
            for k, (name, label) in enumerate(modes.items())
        }
        bonds = {f"bond_{k}": size for k, size in enumerate(rank[1:-1], start=1)}
        nodes["output"] = (f"bond_{len(modes)}", "out")
        return TensorNetwork.from_modes(expert_dims, in_features, out_features, nodes=nodes, bonds=bonds)

    def to_tensorly(self, tensors: Mapping[str, Tensor]) -> TTTensor:
        first, *middle, last = tensors.values()
        return TTTensor([first.unsqueeze(0), *(core.transpose(0, 1) for core in middle), last.unsqueeze(2)])

    def from_tensorly(self, value: Any) -> dict[str, Tensor]:
        first, *middle, last = value
        cores = [first.squeeze(0), *(core.transpose(0, 1) for core in middle), last.squeeze(2)]
        names = [*(f"expert_{k}" for k in range(len(cores) - 2)), "input", "output"]
        return dict(zip(names, cores, strict=True))

    def tltorch_arguments(self, value: Any) -> tuple[Any, ...]:
        return (list(value),)


register("tt", TensorTrain(), aliases=("tensor_train",))
