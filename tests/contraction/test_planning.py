"""Plans: what they promise about themselves, how good their order is, and memory limits."""

import itertools
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from factorized_moe import FactorizedExpertTensor, Node, TensorNetwork
from factorized_moe.contraction import (
    ContractionPlan,
    LimitError,
    Request,
    candidate_plans,
    dense_request,
    execute,
    forward_request,
    make_plan,
)
from factorized_moe.contraction.exhaustive import search_order
from factorized_moe.contraction.search import Operand, Pairs
from factorized_moe.decompositions import available_decompositions, get_decomposition
from factorized_moe.network import BATCH
from factorized_moe.testing import (
    Structure,
    contract_dense,
    count_flops,
    dense_from_nodes,
    networks,
    structures,
)


def random_operands(plan: ContractionPlan, samples: int = 3) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """A tensor for each node, where those that share a parameter are the same, and a matrix for each vector."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    parameters = {name: draw(*shape) for name, shape in plan.network.parameter_shapes.items()}
    widths = [plan.network.size_of(labels) for labels in plan.request.vectors]
    widths[0] -= plan.request.append_one + plan.network.in_padding
    return [parameters[node.parameter] for node in plan.network.nodes], [draw(samples, width) for width in widths]


Order = list[tuple[frozenset[str], frozenset[str], frozenset[str]]]


def all_orders(operands: list[frozenset[str]], output: frozenset[str]) -> Iterator[Order]:
    """Every pairwise order as a list of steps: the labels of the two that meet, and those that stay."""
    if len(operands) == 1:
        yield []
    for one, two in itertools.combinations(range(len(operands)), 2):
        rest = [labels for k, labels in enumerate(operands) if k not in (one, two)]
        kept = (operands[one] | operands[two]) & output.union(*rest)
        for order in all_orders([*rest, kept], output):
            yield [(operands[one], operands[two], kept), *order]


def order_of(pairs: Pairs, operands: list[frozenset[str]], output: frozenset[str]) -> Order:
    """The order that a list of positions stands for."""
    waiting, order = dict(enumerate(operands)), []
    for one, two in pairs:
        left, right = waiting.pop(one), waiting.pop(two)
        kept = (left | right) & output.union(*waiting.values())
        order.append((left, right, kept))
        waiting[len(operands) + len(order) - 1] = kept
    return order


def step_flops(left: frozenset[str], right: frozenset[str], kept: frozenset[str], sizes: dict[str, int]) -> int:
    """One multiplication for each tuple of indices of the two, and one addition where any of them is summed.

    A label that one operand alone has, and the result has not, is summed beforehand.
    """
    pairs = ((left, right), (right, left))
    summed_first = [mine for mine, other in pairs if size_of(mine - other - kept, sizes) > 1]
    indices = (left & (right | kept)) | (right & (left | kept))
    multiplied = size_of(indices, sizes) * (1 if indices <= kept else 2)
    return multiplied + sum(size_of(mine, sizes) for mine in summed_first)


def size_of(labels: Iterable[str], sizes: dict[str, int]) -> int:
    return math.prod(sizes[label] for label in labels)


def operands_of(term: tuple[Node, ...], request: Request) -> list[frozenset[str]]:
    return [frozenset(node.labels) for node in term] + [frozenset((BATCH, *labels)) for labels in request.vectors]


@pytest.mark.thorough
@pytest.mark.parametrize("name", available_decompositions())
@settings(max_examples=3)
@given(data=st.data())
def test_the_order_is_the_cheapest_of_all(name: str, data: st.DataObject) -> None:
    """By FLOPs alone, and by FLOPs and elements moved: an exhaustive oracle that shares no code with the search."""
    network = data.draw(structures(name, expert_modes=1, largest=64)).network(name)
    request = forward_request(network, bias=False)
    sizes = network.sizes | {BATCH: data.draw(st.sampled_from([1, 64]))}
    output = frozenset((BATCH, *request.output))

    def costs(order: Order) -> tuple[int, int]:
        flops = sum(step_flops(*step, sizes) for step in order)
        return flops, flops + 8 * sum(size_of(labels, sizes) for step in order for labels in step)

    for term in network.terms:
        operands = operands_of(term, request)
        cheapest = [math.inf, math.inf]
        for order in all_orders(operands, output):
            cheapest = [min(pair) for pair in zip(cheapest, costs(order), strict=True)]
        for position, moved in enumerate((0, 8)):
            pairs = search_order([Operand(labels) for labels in operands], output, sizes, moved=moved)
            assert pairs is not None
            assert costs(order_of(pairs, operands, output))[position] == cheapest[position]


@pytest.mark.thorough
@pytest.mark.parametrize("name", available_decompositions())
@settings(max_examples=5)
@given(data=st.data())
def test_smallest_memory_limit_is_exact(name: str, data: st.DataObject) -> None:
    network = data.draw(structures(name, expert_modes=1, largest=9)).network(name)
    request = forward_request(network, bias=False)
    sizes, output = network.sizes | {BATCH: 64}, frozenset((BATCH, *request.output))
    smallest = max(
        min(max(size_of(kept, sizes) for *_, kept in order) for order in all_orders(operands_of(term, request), output))
        for term in network.terms
    )
    if network.in_padding:  # every order starts with the padded input
        smallest = max(smallest, 64 * network.size_of(network.in_labels))
    plan = make_plan(network, request, 64, memory_limit=smallest)
    assert plan.largest_intermediate == smallest
    assert plan.flops == count_flops(plan)
    with pytest.raises(
        LimitError, match=f"within {smallest - 1:,} elements .* smallest possible is {smallest:,}"
    ) as refusal:
        make_plan(network, request, 64, memory_limit=smallest - 1)
    assert refusal.value.smallest == smallest


@pytest.mark.thorough
@settings(max_examples=30)
@given(network=networks(), bias=st.booleans())
def test_every_candidate_gives_the_same_answer(network: TensorNetwork, bias: bool) -> None:
    assume(network.shape[-2] > 1 or not bias)
    request = forward_request(network, bias)
    plans = candidate_plans(network, request)
    assert plans[0] == make_plan(network, request)
    nodes, vectors = random_operands(plans[0])
    parameters = {node.parameter: tensor for node, tensor in zip(network.nodes, nodes, strict=True)}
    expected = contract_dense(dense_from_nodes(network, parameters), vectors[0], vectors[1:], bias)
    for plan in plans:
        answer = execute(plan, [*nodes, *vectors]).reshape(expected.shape)
        torch.testing.assert_close(answer, expected, rtol=1e-9, atol=1e-9)
        assert plan.flops == count_flops(plan)


@settings(max_examples=30)
@given(network=networks(), limit=st.integers(1, 3000))
def test_a_memory_limit_is_kept_or_refused_for_good(network: TensorNetwork, limit: int) -> None:
    request = forward_request(network, bias=False)
    try:
        plan = make_plan(network, request, 64, memory_limit=limit)
    except LimitError as refusal:
        refused, limit = limit, refusal.smallest
        plan = make_plan(network, request, 64, memory_limit=limit)
        assert refused < limit
    assert plan.largest_intermediate <= limit
    nodes, vectors = random_operands(plan)
    usual = execute(make_plan(network, request, 64), [*nodes, *vectors])
    torch.testing.assert_close(execute(plan, [*nodes, *vectors]), usual, rtol=1e-9, atol=1e-9)


@settings(max_examples=20)
@given(network=networks(), sizes=st.tuples(st.integers(1, 50), st.integers(1, 50)))
def test_costs_follow_the_batch_size(network: TensorNetwork, sizes: tuple[int, int]) -> None:
    plan = make_plan(network, forward_request(network, bias=False), sizes[0])
    other = plan.at_batch_size(sizes[1])
    assert other.batch_size == sizes[1]
    assert other.flops == count_flops(other)
    assert [step.operation for step in other.steps] == [step.operation for step in plan.steps]
    assert other.at_batch_size(sizes[0]) == plan


# Those whose steps rearrange no parameter: a copy of one would be saved too.
@pytest.mark.parametrize("name", ["cp", "dense", "hierarchical_tucker", "mixture_of_decoders", "tr", "tt", "tucker"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("expert_dims", [(), (3,), (3, 4), (2, 3, 4)])
def test_saved_activations_are_what_autograd_saves(name: str, expert_dims: tuple[int, ...], bias: bool) -> None:
    structure = Structure(expert_dims, 5, 6, 2, bias, batch_shape=(7,))
    w, (x, coefficients) = structure.tensor(name), structure.arguments()
    own = {parameter.untyped_storage().data_ptr() for parameter in w.parameters()}
    saved: dict[int, int] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if value.untyped_storage().data_ptr() not in own:
            saved[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes() // value.element_size()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        y = w(x, coefficients)
    assert sum(saved.values()) == w.plan(7).saved_activations
    assert y.requires_grad


@given(network=networks())
@settings(max_examples=20)
def test_a_plan_is_a_value(network: TensorNetwork) -> None:
    for request in (forward_request(network, bias=False), dense_request(network)):
        plan = make_plan(network, request)
        assert make_plan(network, request) is plan  # planned once
        assert pickle.loads(pickle.dumps(plan)) == plan
        assert hash(plan) == hash(pickle.loads(pickle.dumps(plan)))


@pytest.mark.thorough
def test_plans_do_not_depend_on_the_process() -> None:
    """Sets of strings have another order in every process; plans must not."""
    script = (
        "from factorized_moe import FactorizedExpertTensor as W\n"
        "print(*(W((4, 4, 4), 4, 4, name, 4).plan() for name in ('cp', 'tucker', 'tt', 'tr')), sep='\\n')\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    here = [str(FactorizedExpertTensor((4, 4, 4), 4, 4, name, 4).plan()) for name in ("cp", "tucker", "tt", "tr")]
    assert other == "\n".join(here) + "\n"


@pytest.mark.thorough
def test_a_large_network_is_planned_too() -> None:
    """More operands than the exhaustive search takes: 14 expert modes, each absorbed, then a chain of 15 matrices."""
    dims = (3,) * 14
    network = get_decomposition("tr").network(dims, 8, 8, (2,) * 17)
    request = forward_request(network, bias=False)
    plan = make_plan(network, request, 64)
    assert plan.flops == count_flops(plan)
    assert plan.flops <= 64 * 2 * (14 * 3 * 4 + 8 * 4 + 8 * 4 + 14 * 8)
    nodes, vectors = random_operands(plan)
    matrices = [torch.einsum("bn,nlr->blr", a, g) for a, g in zip([*vectors[1:], vectors[0]], nodes, strict=False)]
    product = matrices[0]
    for matrix in matrices[1:]:
        product = product @ matrix
    labels = network.nodes[-1].labels
    output = nodes[-1].permute([labels.index(x) for x in ("bond_0", "bond_15", "out")])
    expected = torch.einsum("blr,lro->bo", product, output)
    torch.testing.assert_close(execute(plan, [*nodes, *vectors]), expected, rtol=1e-9, atol=1e-9)


def test_a_single_node_and_a_scalar() -> None:
    """The smallest networks: nothing to contract but the input, and a node without labels."""
    whole = TensorNetwork.from_modes((), 3, 4, nodes={"whole": "in out"}, bonds={})
    assert len(make_plan(whole, forward_request(whole, bias=True)).steps) == 1
    scaled = TensorNetwork.from_modes((), 3, 4, nodes=[Node("scale", ()), Node("whole", ("in", "out"))], bonds={})
    plan = make_plan(scaled, forward_request(scaled, bias=False))
    scale, matrix = torch.tensor(2.0), torch.randn(3, 4)
    x = torch.randn(5, 3)
    torch.testing.assert_close(execute(plan, [scale, matrix, x]), 2.0 * x @ matrix)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, None])
def test_refused_batch_size(batch_size: int) -> None:
    network = get_decomposition("cp").network((3,), 4, 5, 2)
    request = forward_request(network, bias=False)
    with pytest.raises(ValueError, match=f"batch_size must be a positive int, got {batch_size!r}"):
        make_plan(network, request, batch_size)
    with pytest.raises(ValueError, match=f"batch_size must be a positive int, got {batch_size!r}"):
        make_plan(network, request).at_batch_size(batch_size)
