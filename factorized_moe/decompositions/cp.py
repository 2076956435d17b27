"""CP (canonical polyadic) decomposition: one bond, the rank, joins a factor for each mode."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from tensorly.cp_tensor import CPTensor
from torch import Tensor

from factorized_moe.decompositions.base import Decomposition
from factorized_moe.decompositions.initialisation import balanced, variance_preserving
from factorized_moe.decompositions.registry import register
from factorized_moe.network import TensorNetwork

__all__ = ["CP"]


def replicate_with_noise(network: TensorNetwork, tensors: Mapping[str, Tensor]) -> None:
    """The uMoE paper's initialisation: every expert starts as a noisy copy of one matrix.

    The first expert factor is N(1, 1), further ones are all ones; the input factor is uniform within
    ``1/sqrt(I)``, the output factor within ``1/sqrt(R)`` (Oldfield et al. 2024, released code, where ``I`` does not
    count the bias row; here it does).

    Experts of further modes are equal, so their rows get equal gradients and their gate none: only the first mode
    learns. `balanced`, the default, has noise in every mode.
    """
    rank = network.sizes["rank"]
    inputs = tensors["input"].shape[0]
    for mode in range(len(network.expert_dims)):
        factor = tensors[f"expert_{mode}"]  # (N_k, R)
        factor.normal_(1.0, 1.0) if mode == 0 else factor.fill_(1.0)
    torch.nn.init.uniform_(tensors["input"], -(inputs**-0.5), inputs**-0.5)
    torch.nn.init.uniform_(tensors["output"], -(rank**-0.5), rank**-0.5)


class CP(Decomposition):
    """A sum of outer products of vectors (Hitchcock 1927; uMoE paper Eq. 2).

    ``W[n, .., i, o] = sum_r A_0[n, r] .. B[i, r] C[o, r]``.

    The rank is one int R; parameters ``R (sum N_k + I + O)``. TensorLy's weights are folded into a factor.
    """

    initialisations = MappingProxyType(
        {"balanced": balanced, "paper": replicate_with_noise, "variance_preserving": variance_preserving}
    )
    tensorly_algorithm = "parafac"
    tensorly_starts = (MappingProxyType({"init": "svd", "random_state": 0}),)
    tltorch_name = "cp"

    def network(self, expert_dims: tuple[int, ...], in_features: int, out_features: int, rank: int) -> TensorNetwork:
        experts = {f"expert_{k}": f"expert_{k} rank" for k in range(len(expert_dims))}
        nodes = {**experts, "input": "in rank", "output": "rank out"}
        return TensorNetwork.from_modes(expert_dims, in_features, out_features, nodes=nodes, bonds={"rank": rank})

    def to_tensorly(self, tensors: Mapping[str, Tensor]) -> CPTensor:
        *factors, output = tensors.values()
        return CPTensor((None, [*factors, output.t()]))

    def from_tensorly(self, value: Any) -> dict[str, Tensor]:
        weights, factors = value
        first = factors[0] if weights is None else factors[0] * weights
        experts = {f"expert_{k}": factor for k, factor in enumerate([first, *factors[1:]][:-2])}
        inputs, outputs = [first, *factors[1:]][-2:]
        return {**experts, "input": inputs, "output": outputs.t()}

    def tltorch_arguments(self, value: Any) -> tuple[Any, ...]:
        weights, factors = value
        return factors[0].new_ones(factors[0].shape[1]) if weights is None else weights, factors


register("cp", CP(), aliases=("candecomp_parafac", "parafac", "canonical_polyadic"))
