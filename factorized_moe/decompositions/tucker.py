"""Tucker decomposition: a core with one bond for each mode, and a factor on each bond."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tensorly.tucker_tensor import TuckerTensor
from torch import Tensor

from factorized_moe.decompositions.base import Decomposition, Rank
from factorized_moe.decompositions.initialisation import balanced, variance_preserving
from factorized_moe.decompositions.registry import register
from factorized_moe.network import TensorNetwork

__all__ = ["Tucker"]


def replicate_with_noise(network: TensorNetwork, tensors: Mapping[str, Tensor]) -> None:
    """The uMoE authors' first released initialisation: every expert starts as a noisy copy of one matrix.

    The first expert factor is N(1, 1), further ones are all ones; the rows of the input and output factors and the
    whole core are Gaussian of unit length.

    Experts of further modes are equal, so their rows get equal gradients and their gate none: only the first mode
    learns. `balanced`, the default, has noise in every mode.
    """
    for mode in range(len(network.expert_dims)):
        factor = tensors[f"expert_{mode}"]  # (N_k, R_k)
        factor.normal_(1.0, 1.0) if mode == 0 else factor.fill_(1.0)
    for name, bond_axis in (("input", 1), ("output", 0)):
        factor = tensors[name].normal_()
        factor.div_(factor.norm(dim=bond_axis, keepdim=True))
    core = tensors["core"].normal_()
    core.div_(core.norm())


class Tucker(Decomposition):
    """A core and a factor for each mode (Tucker 1966; uMoE v1 Eq. 3).

    ``W[n, .., i, o] = sum G[a, .., b, c] A_0[n, a] .. B[i, b] C[o, c]``.

    The rank is one int for each mode, ``(R_0, .., R_in, R_out)``, or one int for all. Parameters
    ``sum N_k R_k + I R_in + O R_out + prod R``.
    """

    initialisations = MappingProxyType(
        {"balanced": balanced, "paper": replicate_with_noise, "variance_preserving": variance_preserving}
    )
    tensorly_algorithm = "tucker"
    tensorly_starts = ({"n_iter_max": 200, "tol": 1e-12, "init": "svd", "random_state": 0},)
    tltorch_name = "tucker"

    def check_rank(self, rank: Rank, shape: tuple[int, ...]) -> Rank:
        ranks = (rank,) * len(shape) if isinstance(rank, int) else rank
        if len(ranks) != len(shape):
            raise ValueError(f"rank of Tucker is one int for each of the {len(shape)} modes {shape}, got {ranks}")
        return ranks

    def useful_rank(self, rank: tuple[int, ...], shape: tuple[int, ...]) -> Rank:  # type: ignore[override]
        return tuple(min(size, mode) for size, mode in zip(rank, shape, strict=True))

    def network(
        self, expert_dims: tuple[int, ...], in_features: int, out_features: int, rank: tuple[int, ...]
    ) -> TensorNetwork:
        names = [f"expert_{k}" for k in range(len(expert_dims))]
        bonds = [f"rank_{name}" for name in [*names, "in", "out"]]
        experts = {name: f"{name} rank_{name}" for name in names}
        nodes = {**experts, "input": "in rank_in", "output": "rank_out out", "core": bonds}
        return TensorNetwork.from_modes(
            expert_dims, in_features, out_features, nodes=nodes, bonds=dict(zip(bonds, rank, strict=True))
        )

    def to_tensorly(self, tensors: Mapping[str, Tensor]) -> TuckerTensor:
        *factors, output, core = tensors.values()
        return TuckerTensor((core, [*factors, output.t()]))

    def from_tensorly(self, value: Any) -> dict[str, Tensor]:
        core, factors = value
        *experts, inputs, outputs = factors
        named = {f"expert_{k}": factor for k, factor in enumerate(experts)}
        return {**named, "input": inputs, "output": outputs.t(), "core": core}


register("tucker", Tucker())
