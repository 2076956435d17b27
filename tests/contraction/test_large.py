"""Orders for more operands than all orders can be tried for: valid, near the best, and within limits."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opt_einsum.paths import DynamicProgramming

from factorized_moe import FactorizedExpertTensor, Node, TensorNetwork
from factorized_moe.contraction import (
    LimitError,
    contractions,
    execute,
    forward_request,
    make_plan,
    orders,
    plan_along,
)
from factorized_moe.contraction.exhaustive import search_order
from factorized_moe.contraction.large import search_large
from factorized_moe.contraction.search import Operand
from factorized_moe.decompositions import available_decompositions, get_decomposition
from factorized_moe.network import BATCH
from factorized_moe.testing import count_flops, plan_cost, structures

from .plain_merging import order_cost

pytestmark = pytest.mark.thorough


def irregular(seed: int, nodes: int, extra: int) -> TensorNetwork:
    """A random tree of nodes with some more bonds between them, its modes on random nodes."""
    rng = random.Random(seed)
    labels: list[list[str]] = [[] for _ in range(nodes)]
    edges = [(rng.randrange(k), k) for k in range(1, nodes)]
    edges += [tuple(rng.sample(range(nodes), 2)) for _ in range(extra)]
    bonds = {f"bond_{k}": rng.choice([1, 2, 3]) for k in range(len(edges))}
    for bond, edge in zip(bonds, edges, strict=True):
        for node in edge:
            labels[node].append(bond)
    for label in ("expert_0", "expert_1", "in", "out"):
        labels[rng.randrange(nodes)].append(label)
    named = [Node(f"node_{k}", tuple(mine)) for k, mine in enumerate(labels)]
    return TensorNetwork.from_modes((3, 2), 4, 3, nodes=named, bonds=bonds)


def operands_of(network: TensorNetwork) -> tuple[list[Operand], frozenset[str], dict[str, int]]:
    request = forward_request(network, bias=False)
    (term,) = network.terms
    operands = [Operand(frozenset(node.labels), node.labels) for node in term]
    operands += [Operand(frozenset((BATCH, *labels))) for labels in request.vectors]
    return operands, frozenset((BATCH, *request.output)), network.sizes | {BATCH: 64}


@pytest.mark.parametrize("name", [name for name in available_decompositions() if name != "shared_private"])
@settings(max_examples=5)
@given(data=st.data())
def test_never_below_the_cheapest_and_close_to_it(name: str, data: st.DataObject) -> None:
    operands, output, sizes = operands_of(data.draw(structures(name, expert_modes=2, largest=16)).network(name))
    found, best = search_large(operands, output, sizes), search_order(operands, output, sizes)
    assert found is not None
    assert best is not None
    assert sorted(position for pair in found for position in pair) == list(range(2 * len(operands) - 2))
    cost = order_cost(best, operands, output, sizes)[1]
    assert cost * (1 - 1e-12) <= order_cost(found, operands, output, sizes)[1] <= 1.5 * cost


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("nodes", [11, 16])
def test_irregular_networks_cost_no_more_than_by_dynamic_programming(seed: int, nodes: int) -> None:
    operands, output, sizes = operands_of(irregular(seed, nodes, extra=3))
    found = search_large(operands, output, sizes)
    other = orders._dynamic_programming(operands, output, sizes, None, smallest=False)
    assert found is not None
    assert other is not None
    cost, theirs = (order_cost(pairs, operands, output, sizes)[1] for pairs in (found, other))
    assert cost <= theirs


@pytest.mark.parametrize("name", ["cp", "tucker", "tt", "tr", "hierarchical_tucker", "kronecker", "block_term"])
def test_no_dearer_than_by_dynamic_programming(name: str) -> None:
    """On 6 expert modes: more operands than all orders are tried of, and opt_einsum's search still ends."""
    dims = (2, 5, 3) * 2
    decomposition = get_decomposition(name)
    network = decomposition.network(dims, 64, 64, decomposition.resolve_rank(2, (*dims, 64, 64)))
    request = forward_request(network, bias=False)
    plan = make_plan(network, request, 64)
    ((inputs, output),) = contractions(network, request)
    number = {label: k for k, label in enumerate((BATCH, *network.sizes))}
    numbered = [frozenset(number[x] for x in labels) for labels in inputs]
    sizes = dict(enumerate((64, *network.sizes.values())))
    path = DynamicProgramming(minimize="flops")(numbered, frozenset(number[x] for x in output), sizes)
    assert plan_cost(plan) <= plan_cost(plan_along(network, request, path, 64))
    assert count_flops(plan) == plan.flops


@pytest.mark.parametrize("seed", range(6))
def test_memory_limits(seed: int) -> None:
    """Kept, with the same answer; and refused with a limit that can be kept."""
    network = irregular(seed, nodes=14, extra=4)
    request = forward_request(network, bias=False)
    plan = make_plan(network, request, 16)
    with pytest.raises(LimitError, match=r"within 1 elements at batch size 16; the smallest found is \d+") as error:
        make_plan(network, request, 16, 1)
    smallest = error.value.smallest
    generator = torch.Generator().manual_seed(seed)
    nodes = [torch.randn([network.sizes[x] for x in node.labels], generator=generator) for node in network.nodes]
    vectors = [torch.randn(5, network.size_of(labels), generator=generator) for labels in request.vectors]
    operands = [tensor.double() for tensor in (*nodes, *vectors)]
    expected = execute(plan, operands)
    for limit in range(smallest, plan.largest_intermediate + 1, math.ceil(plan.largest_intermediate / 4)):
        limited = make_plan(network, request, 16, limit)
        assert limited.largest_intermediate <= limit
        torch.testing.assert_close(execute(limited, operands), expected)


@pytest.mark.parametrize(
    ("name", "rank"),
    [("cp", 3), ("tt", 2), ("tr", 2), ("hierarchical_tucker", 2), ("kronecker", 2), ("block_term", None)],
)
def test_many_expert_modes_are_planned_at_once(name: str, rank: int | None) -> None:
    """A million experts in 20 modes: most of these have more connected orders than any search could go through."""
    if rank is None:  # a core over all expert modes, of ranks of 1 but for two
        rank = (1, 2, 2, *[1] * 18, 2, 2)
    w = FactorizedExpertTensor((2,) * 20, 5, 4, name, rank, bias=True, dtype=torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64)
    indices = torch.randint(2, (3, 20))
    coefficients = [torch.nn.functional.one_hot(n, 2).double() for n in indices.T]
    y = w(x, coefficients)
    for sample, expert in enumerate(indices.tolist()):
        matrix = w.expert(*expert)
        torch.testing.assert_close(y[sample], x[sample] @ matrix[:-1] + matrix[-1])


def test_a_label_on_many_nodes_does_not_mislead_the_planner() -> None:
    """CP with 16 modes: each vector is absorbed, then everything happens on vectors of the rank's length.

    Or the factors of two modes are multiplied beforehand, of two experts each: fewer elements are moved then.
    """
    network = get_decomposition("cp").network((2,) * 16, 9, 8, 4)
    products = 2 * 64 * 4 * (16 * 2 + 9 + 8)
    assert make_plan(network, forward_request(network, bias=False), 64).flops <= 1.005 * (products + 16 * 64 * 4)


def test_parts_without_a_common_label() -> None:
    """Twelve nodes with nothing in common but the answer, and nodes without labels."""
    nodes = [Node(f"scale_{k}", ()) for k in range(12)] + [Node("input", ("in",)), Node("output", ("out",))]
    network = TensorNetwork.from_modes((), 3, 4, nodes=nodes, bonds={})
    plan = make_plan(network, forward_request(network, bias=False))
    scales = [torch.tensor(float(k + 1)) for k in range(12)]
    row, column, x = torch.randn(3), torch.randn(4), torch.randn(5, 3)
    expected = math.factorial(12) * (x @ row)[:, None] * column
    torch.testing.assert_close(execute(plan, [*scales, row, column, x]), expected)
