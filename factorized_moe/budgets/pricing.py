"""What a layer or a block of given sizes costs at a rank, without making one.

Legend: ``N_k`` experts of mode k, ``I`` in_features, ``H`` hidden_features, ``O`` out_features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from factorized_moe.contraction import ContractionPlan, forward_request, num_parameters, plan_layer
from factorized_moe.contraction.cuts import rank_bound
from factorized_moe.contraction.planning import DEFAULT_BATCH_SIZE
from factorized_moe.decompositions import Decomposition
from factorized_moe.decompositions.base import Rank
from factorized_moe.network import TensorNetwork

__all__ = ["LayerCosts", "Matrix", "bounded_matrices"]


@dataclass(frozen=True)
class Matrix:
    """A matrix that a network's dense tensor is arranged to, and that has a bound.

    Attributes:
        rows: The labels of its rows.
        columns: Those of its columns.
        side: The smaller of its sides, without padding.
    """

    rows: frozenset[str]
    columns: frozenset[str]
    side: int


def bounded_matrices(network: TensorNetwork) -> tuple[Matrix, Matrix]:
    """One expert's matrix, and the matrix of all experts: one row for each."""
    inputs, outputs, experts = map(frozenset, (network.in_labels, network.out_labels, network.expert_labels))
    rows, columns = network.shape[-2:]
    return (
        Matrix(inputs, outputs, min(rows, columns)),
        Matrix(experts, inputs | outputs, min(network.size_of(experts), network.size_of(inputs | outputs))),
    )


@dataclass(frozen=True)
class LayerCosts:
    """The costs of one layer with its gate, or of a block of several that share one, as functions of the rank.

    Attributes:
        expert_dims: The number of experts ``N_k`` of each expert mode.
        linears: ``(I, O)`` of each layer: ``((I, O),)``, or ``((I, H), (H, O))`` for a block, whose layers have the
            same rank.
        decomposition: The decomposition.
        bias: Whether every expert has a bias.
        count_gate: Whether the gate's projection counts, ``I sum(N_k)`` parameters.
        count_bias: Whether the experts' biases count; without, costs are those of a layer that has none.
        count_input_norm: Whether a LayerNorm of the input counts, ``2 I`` parameters.
        gate_parameters: Those of a gate that is none of the library's, in place of the projection's.
        gate_rank: The rank ``r`` of the gate's weight, where it is made of two: ``r (I + sum(N_k))`` parameters.

    Examples:
        >>> from factorized_moe.decompositions import get_decomposition
        >>> layer = LayerCosts((256,), ((768, 1000),), get_decomposition("cp"))
        >>> layer.parameters(283), layer.expert_rank_bound(283)
        (769683, 283)
        >>> block = LayerCosts((256,), ((768, 3072), (3072, 768)), get_decomposition("tr"))
        >>> block.parameters((4, 4, 149, 4))  # 2 * 16 * 256 + 4 * 149 * (769 + 3072 + 3073 + 768) + 256 * 768
        4783272
    """

    expert_dims: tuple[int, ...]
    linears: tuple[tuple[int, int], ...]
    decomposition: Decomposition
    bias: bool = True
    count_gate: bool = True
    count_bias: bool = True
    count_input_norm: bool = False
    gate_parameters: int | None = None
    gate_rank: int | None = None

    def parameters(self, rank: Rank) -> int:
        """The number of parameters that count."""
        gate = self._projection if self.gate_parameters is None else self.gate_parameters
        norm = 2 * self.linears[0][0] if self.count_input_norm else 0
        return gate * self.count_gate + norm + sum(num_parameters(n) for n in self._networks(rank, self._counted_bias))

    def flops(self, rank: Rank) -> int:
        """Multiplications and additions for one sample in a batch of 64, rounded up; a multiply-add counts as two.

        Those of the contractions, and of the gate's projection if the gate counts.
        """
        gate = 2 * self._projection if self.count_gate else 0
        return gate + math.ceil(sum(plan.flops for plan in self._plans(rank)) / DEFAULT_BATCH_SIZE)

    def largest_intermediate(self, rank: Rank) -> int:
        """Elements for one sample, in a batch of 64, of the largest value that any step makes, rounded up."""
        return math.ceil(max(plan.largest_intermediate for plan in self._plans(rank)) / DEFAULT_BATCH_SIZE)

    def expert_rank_bound(self, rank: Rank) -> int:
        """The bound on the rank of each expert's matrix; of a block, the smaller one of its layers'."""
        return self.rank_bounds(rank)[0]

    def independent_experts(self, rank: Rank) -> int:
        """A bound on how many of the experts' matrices can be linearly independent; of a block, the smaller one."""
        return self.rank_bounds(rank)[1]

    def rank_bounds(self, rank: Rank) -> tuple[int, int]:
        """Both bounds, `expert_rank_bound` and `independent_experts`: the smallest cuts of the network."""
        networks = self.networks(rank)
        found = [[min(m.side, rank_bound(n, m.rows, m.columns)) for m in bounded_matrices(n)] for n in networks]
        one, every = map(min, zip(*found, strict=True))
        return one, every

    def networks(self, rank: Rank) -> list[TensorNetwork]:
        """The network of each layer at a rank, with the bias if there is one."""
        return self._networks(rank, self.bias)

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The dense shape of each layer's weight, ``(*expert_dims, I (+1), O)``."""
        return tuple((*self.expert_dims, inputs + self.bias, outputs) for inputs, outputs in self.linears)

    @property
    def _projection(self) -> int:
        """The parameters of the gate's weight, which each sample is multiplied by once."""
        inputs, experts = self.linears[0][0], sum(self.expert_dims)
        if self.gate_rank is None or not experts:  # without experts a gate has no maps
            return inputs * experts
        return self.gate_rank * (inputs + experts)

    @property
    def _counted_bias(self) -> bool:
        return self.bias and self.count_bias

    def _networks(self, rank: Rank, bias: bool) -> list[TensorNetwork]:
        network, modes = self.decomposition.network, self.expert_dims
        return [network(modes, inputs + bias, outputs, rank) for inputs, outputs in self.linears]

    def _plans(self, rank: Rank) -> list[ContractionPlan]:
        bias = self._counted_bias
        networks = self._networks(rank, bias)
        return [plan_layer(n, forward_request(n, bias)).at(DEFAULT_BATCH_SIZE) for n in networks]
