"""Costs from the network alone: parameters, and the bound on an expert's rank by a minimum cut."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings

from factorized_moe import Node, TensorNetwork
from factorized_moe.contraction import expert_rank_bound, num_parameters
from factorized_moe.testing import dense_from_nodes, networks


def smallest_cut(network: TensorNetwork, term: tuple[Node, ...]) -> int:
    """The cheapest set of labels whose removal separates input from output labels, by trying all sets."""
    labels = sorted({x for node in term for x in node.labels} - set(network.expert_labels))
    best = math.inf
    for count in range(len(labels) + 1):
        for cut in itertools.combinations(labels, count):
            reached = set(network.in_labels) - set(cut)
            for _ in labels:
                for node in term:
                    if reached & set(node.labels):
                        reached |= set(node.labels) - set(cut) - set(network.expert_labels)
            if not reached & set(network.out_labels):
                best = min(best, network.size_of(cut))
    return int(best)


@settings(max_examples=60)
@given(networks(largest=4))
def test_rank_bound_is_the_smallest_cut(network: TensorNetwork) -> None:
    total = sum(smallest_cut(network, term) for term in network.terms)
    sides = network.shape[-2:]
    assert expert_rank_bound(network) == min(total, *sides)


@settings(max_examples=60)
@given(networks(largest=4))
def test_no_expert_exceeds_the_bound(network: TensorNetwork) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in network.parameter_shapes.items()
    }
    ranks = torch.linalg.matrix_rank(dense_from_nodes(network, tensors), rtol=1e-11)
    assert int(ranks.max()) <= expert_rank_bound(network)


@pytest.mark.parametrize(
    ("nodes", "bonds", "bound"),
    [
        # Block-diagonal: a bond on three nodes is cut once, not once for each pair.
        ({"gate": "expert_0 b", "input": "in b", "output": "b out"}, {"b": 3}, 3),
        # Two ways from input to output, of 2 and 3.
        ({"a": "in b c", "x": "expert_0 b d", "o": "c d out"}, {"b": 2, "c": 3, "d": 5}, 6),
        # The node in the middle carries both: nothing to cut but the sides.
        ({"all": "expert_0 in out"}, {}, 8),
        # A shared label of input and output factor (a diagonal).
        ({"a": "expert_0 in b", "o": "b out"}, {"b": 7}, 7),
        # Not connected: an outer product.
        ({"a": "expert_0 in", "o": "out"}, {}, 1),
    ],
)
def test_rank_bound_by_hand(nodes: dict[str, str], bonds: dict[str, int], bound: int) -> None:
    network = TensorNetwork.from_modes((4,), 8, 9, nodes=nodes, bonds=bonds)
    assert expert_rank_bound(network) == bound


def test_bounds_of_a_sum_add_up() -> None:
    low = TensorNetwork.from_modes((), 8, 9, nodes={"input": "in b", "output": "b out"}, bonds={"b": 2})
    other = TensorNetwork.from_modes((), 8, 9, nodes={"left": "in c", "right": "c out"}, bonds={"c": 3})
    assert expert_rank_bound(low + other) == 5
    assert num_parameters(low + other) == 5 * 17


def test_a_shared_parameter_counts_once() -> None:
    tied = [Node("one", ("in", "b"), parameter="factor"), Node("two", ("out", "b"), parameter="factor")]
    network = TensorNetwork.from_modes((), 8, 8, nodes=tied, bonds={"b": 2})
    assert num_parameters(network) == 16
