"""Tensor-ring decomposition: a closed chain of cores, each joined to the next by one bond."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from tensorly.tr_tensor import TRTensor
from torch import Tensor

from factorized_moe.decompositions.base import Decomposition, Rank
from factorized_moe.decompositions.initialisation import balanced, variance_preserving
from factorized_moe.decompositions.registry import register
from factorized_moe.network import TensorNetwork

__all__ = ["TensorRing"]


def replicate_with_noise(network: TensorNetwork, tensors: Mapping[str, Tensor]) -> None:
    """The uMoE paper's initialisation: every expert starts as a noisy copy of one matrix.

    Each expert's slice of an expert core is the identity, its diagonal N(1, 1) in the first expert mode and 1 in
    further ones; the input core is uniform within ``1/sqrt(I)``, the output core within ``1/sqrt`` of the product of
    its bonds (Oldfield et al. 2024, released code).

    Experts of further modes are equal, so their rows get equal gradients and their gate none: only the first mode
    learns. `balanced`, the default, has noise in every mode.
    """
    for mode in range(len(network.expert_dims)):
        core = tensors[f"expert_{mode}"]  # (N_k, left, right)
        core.copy_(torch.eye(*core.shape[1:], dtype=core.dtype, device=core.device))
        if mode == 0:
            core.mul_(torch.randn_like(core).add_(1.0))
    bounds = {"input": tensors["input"].shape[0], "output": tensors["output"][..., 0].numel()}
    for name, fan_in in bounds.items():
        torch.nn.init.uniform_(tensors[name], -(fan_in**-0.5), fan_in**-0.5)


class TensorRing(Decomposition):
    """A closed chain of cores (Zhao et al. 2016; uMoE paper Eq. 3).

    ``W[n, .., i, o] = trace(G_0[n] .. G_in[i] G_out[o])``.

    The rank is one int for each bond, first and last included and equal: ``(r_0, r_1, .., r_0)``, or one int for all.
    Parameters ``sum r_k d_k r_(k+1)`` over the modes. A core keeps its mode first in memory, the output core last and
    with the ring's closing bond before its other one, so that no product copies a parameter.
    """

    initialisations = MappingProxyType(
        {"balanced": balanced, "paper": replicate_with_noise, "variance_preserving": variance_preserving}
    )
    tensorly_algorithm = "tensor_ring_als"
    tensorly_starts = (MappingProxyType({"random_state": 0}),)

    def check_rank(self, rank: Rank, shape: tuple[int, ...]) -> Rank:
        ranks = (rank,) * (len(shape) + 1) if isinstance(rank, int) else rank
        if len(ranks) != len(shape) + 1:
            raise ValueError(
                f"rank of TensorRing is one int for each of the {len(shape) + 1} bonds of {shape}, "
                f"first and last included, got {ranks}"
            )
        if ranks[0] != ranks[-1]:
            raise ValueError(f"first and last rank of TensorRing are the same bond and must be equal, got {ranks}")
        return ranks

    def network(
        self, expert_dims: tuple[int, ...], in_features: int, out_features: int, rank: tuple[int, ...]
    ) -> TensorNetwork:
        modes = {**{f"expert_{k}": f"expert_{k}" for k in range(len(expert_dims))}, "input": "in"}
        nodes = {name: (label, f"bond_{k}", f"bond_{k + 1}") for k, (name, label) in enumerate(modes.items())}
        nodes["output"] = ("bond_0", f"bond_{len(modes)}", "out")
        bonds = {f"bond_{k}": size for k, size in enumerate(rank[:-1])}
        return TensorNetwork.from_modes(expert_dims, in_features, out_features, nodes=nodes, bonds=bonds)

    def to_tensorly(self, tensors: Mapping[str, Tensor]) -> TRTensor:
        *cores, last = tensors.values()
        return TRTensor([*(core.transpose(0, 1) for core in cores), last.permute(1, 2, 0)])

    def from_tensorly(self, value: Any) -> dict[str, Tensor]:
        *cores, last = value
        names = [f"expert_{k}" for k in range(len(cores) - 1)]
        first = dict(zip([*names, "input"], (core.transpose(0, 1) for core in cores), strict=True))
        return {**first, "output": last.permute(2, 0, 1)}


register("tr", TensorRing(), aliases=("tensor_ring",))
