"""From a network and a request to a plan: a fixed list of pairwise steps, each lowered to one operation.

A request says which per-sample vectors are contracted with the network and which labels the result keeps: the
forward pass, the dense tensor and one expert's matrix are three requests on the same network. `orders` finds the order
of the steps, here they become operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

from factorized_moe.contraction.lowering import Draft, lower
from factorized_moe.contraction.orders import TermOrders
from factorized_moe.contraction.plan import ContractionPlan, Request, check_batch_size
from factorized_moe.contraction.search import MOVED, SCANNED, Operand, Pairs
from factorized_moe.network import BATCH, Node, TensorNetwork

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "LimitError",
    "candidate_plans",
    "dense_request",
    "forward_request",
    "make_plan",
    "plan_in_order",
    "term_orders",
]

DEFAULT_BATCH_SIZE = 64
"""Samples that costs are reported for, and that a request is planned for, if nothing else is said."""


def forward_request(network: TensorNetwork, bias: bool, sparse: bool = False) -> Request:
    """The request of a forward pass: contract the input ``(B, I)`` and one vector ``(B, N_k)`` for each expert mode."""
    vectors = (network.in_labels, *((label,) for label in network.expert_labels))
    return Request(vectors, network.out_labels, append_one=bias, sparse=sparse)


def dense_request(network: TensorNetwork, fixed: Iterable[str] = ()) -> Request:
    """The request for the dense tensor, or for the slice of it at fixed expert labels."""
    gone = frozenset(fixed)
    return Request((), tuple(label for label in network.external_labels if label not in gone), fixed=gone)


class LimitError(ValueError):
    """No order keeps to a memory limit, or in a network of many operands none was found.

    Args:
        limit: The limit, in elements.
        batch_size: The number of samples it was given for.
        smallest: The smallest limit that an order keeps to.
        exact: Whether all orders were tried, so that no smaller limit is possible.
    """

    def __init__(self, limit: int, batch_size: int, smallest: int, exact: bool) -> None:
        self.smallest = smallest
        self.word = "possible" if exact else "found"
        super().__init__(
            f"no order keeps every intermediate within {limit:,} elements at batch size {batch_size:,}; "
            f"the smallest {self.word} is {smallest:,}"
        )


@dataclass(frozen=True)
class Strategy:
    """How an order and its operations are chosen; candidates differ in it.

    Attributes:
        absorb: Whether a vector and a node that share labels with nothing else have to be contracted first.
        moved: The cost of an element moved, in FLOPs.
        limit: The most elements that an intermediate may have.
        smallest: Whether the largest intermediate counts before the cost.
        multiply: Whether small products per sample are lowered to a multiplication and a sum.
        scanned: The cost of looking at a coefficient for whether it is zero, in FLOPs.
    """

    absorb: bool = False
    moved: float = MOVED
    limit: int | None = None
    smallest: bool = False
    multiply: bool = False
    scanned: float = SCANNED


@lru_cache(maxsize=4096)
def make_plan(
    network: TensorNetwork, request: Request, batch_size: int = DEFAULT_BATCH_SIZE, memory_limit: int | None = None
) -> ContractionPlan:
    """Find the cheapest plan for a request: deterministic, and cached.

    Args:
        network: The network.
        request: What is asked of it.
        batch_size: The number of samples to plan and report costs for.
        memory_limit: The most elements that any value made by a step may have at that number of samples.

    Returns:
        The plan, valid for every batch size.

    Raises:
        ValueError: If the batch size is not a positive int.
        LimitError: If no order keeps to the memory limit.

    Examples:
        >>> from factorized_moe.decompositions import get_decomposition
        >>> network = get_decomposition("cp").network((8,), 16, 32, rank=4)
        >>> make_plan(network, forward_request(network, bias=False), batch_size=1)
        ContractionPlan for 3 nodes, batch size 1
          452 FLOPs; elements: 304 moved, 32 in the largest intermediate, 36 saved for training
          step                             operation  FLOPs  elements
          in, in rank -> rank              MatMul       128         4
          expert_0, expert_0 rank -> rank  MatMul        64         4
          rank, rank -> rank               Multiply       4         4
          rank, rank out -> out            MatMul       256        32
    """
    batch_size = check_batch_size(batch_size)
    plan = _plan(network, request, batch_size, Strategy())
    if memory_limit is None or (plan is not None and plan.largest_intermediate <= memory_limit):
        assert plan is not None  # without a limit there is always an order
        return plan
    tries = [
        _plan(network, request, batch_size, Strategy(limit=memory_limit, smallest=smallest))
        for smallest in (False, True)
    ]
    fitting = [p for p in tries if p is not None and p.largest_intermediate <= memory_limit]
    if not fitting:
        least = _plan(network, request, batch_size, Strategy(smallest=True))
        assert least is not None
        exact = all(term.exhaustive for term in term_orders(network, request))
        raise LimitError(memory_limit, batch_size, least.largest_intermediate, exact)
    return min(fitting, key=lambda p: p.flops)


def candidate_plans(
    network: TensorNetwork, request: Request, batch_size: int = DEFAULT_BATCH_SIZE, memory_limit: int | None = None
) -> tuple[ContractionPlan, ...]:
    """Plans worth timing, the default one first: other orders, and other operations for the same order.

    Args:
        network: The network.
        request: What is asked of it.
        batch_size: The number of samples to plan for.
        memory_limit: As for `make_plan`.

    Returns:
        Plans that differ in their steps.

    Raises:
        ValueError: As ``make_plan`` does.
    """
    plans = [make_plan(network, request, batch_size, memory_limit)]
    scans = (SCANNED, 0, math.inf) if request.sparse else (SCANNED,)  # zeros looked for where it pays, everywhere, not
    for moved, absorb, multiply, scanned in product((0, MOVED, 8 * MOVED), (True, False), (False, True), scans):
        plan = _plan(network, request, batch_size, Strategy(absorb, moved, memory_limit, False, multiply, scanned))
        if plan is not None and (memory_limit is None or plan.largest_intermediate <= memory_limit):
            plans.append(plan)
    return tuple({plan.steps: plan for plan in plans}.values())


@lru_cache(maxsize=1)  # the largest hold 50 MB, and are asked for again at once or never
def term_orders(network: TensorNetwork, request: Request, moved: float = MOVED) -> tuple[TermOrders, ...]:
    """For each term of a network the orders of its nodes and the request's vectors.

    Args:
        network: The network.
        request: What is asked of it.
        moved: The cost of an element moved, in FLOPs.
    """
    output = frozenset((*_batch(request), *request.output))
    return tuple(
        TermOrders([_operand(labels, is_node) for labels, is_node in leaves.values()], output, network.sizes, moved)
        for leaves in _leaves(network, request)
    )


@lru_cache(maxsize=4096)
def _plan(network: TensorNetwork, request: Request, batch_size: int, strategy: Strategy) -> ContractionPlan | None:
    """The plan of one strategy, or ``None`` if the search finds no order within the strategy's limit."""
    orders: list[Pairs] = []
    for term in term_orders(network, request, strategy.moved):
        if strategy.absorb:
            found = term.absorbed(batch_size, strategy.limit, strategy.smallest)
        else:
            found = (term.smallest if strategy.smallest else term.cheapest)(batch_size, strategy.limit)
        if found is None:
            return None
        orders.append(found)
    return plan_in_order(network, request, orders, batch_size, strategy.multiply, strategy.scanned)


def plan_in_order(
    network: TensorNetwork,
    request: Request,
    orders: Sequence[Sequence[tuple[int, int]]],
    batch_size: int = DEFAULT_BATCH_SIZE,
    multiply: bool = False,
    scanned: float = SCANNED,
) -> ContractionPlan:
    """The plan that contracts each term in a given order.

    Args:
        network: The network.
        request: What is asked of it.
        orders: For each term the pairs, the term's nodes numbered first, then the vectors.
        batch_size: The number of samples to report costs for.
        multiply: Whether small products per sample are lowered to a multiplication and a sum.
        scanned: The cost of looking at a coefficient for whether it is zero, in FLOPs.
    """
    sizes = network.sizes | {BATCH: batch_size}
    output = (*_batch(request), *request.output)
    first_vector = len(network.nodes)
    first_result = first_vector + len(request.vectors)
    drafts: list[Draft] = []
    answers: list[int] = []
    for leaves, pairs in zip(_leaves(network, request), orders, strict=True):
        labels = {position: leaf for position, (leaf, _) in leaves.items()}
        drafts += _number(pairs, labels, output, first_result + len(drafts))
        answers.append(first_result + len(drafts) - 1)
    padded = first_vector if request.append_one else None
    sparse = frozenset(range(first_vector + 1, first_result)) if request.sparse else frozenset()
    lowered = lower(
        drafts,
        answers,
        output,
        sizes,
        padded=padded,
        zeros=network.in_padding,
        first_free=first_result,
        multiply=multiply,
        sparse=sparse,
        scanned=scanned,
    )
    last_use = {p: k for k, step in enumerate(lowered) for p in step.operands if p >= first_result}
    frees = [tuple(p for p, last in last_use.items() if last == k) for k in range(len(lowered))]
    steps = tuple(replace(step, frees=freed) for step, freed in zip(lowered, frees, strict=True))
    return ContractionPlan(network, request, batch_size, steps)


def _batch(request: Request) -> tuple[str, ...]:
    return (BATCH,) if request.vectors else ()


def _operand(labels: tuple[str, ...], is_node: bool) -> Operand:
    return Operand(frozenset(labels), labels if is_node else None)


def _leaves(network: TensorNetwork, request: Request) -> list[dict[int, tuple[tuple[str, ...], bool]]]:
    """For each term its operands' positions, each with its labels and whether it is a node."""
    number = {node.name: position for position, node in enumerate(network.nodes)}
    vectors = {len(number) + k: ((*_batch(request), *labels), False) for k, labels in enumerate(request.vectors)}

    def of(term: tuple[Node, ...]) -> dict[int, tuple[tuple[str, ...], bool]]:
        return {number[n.name]: (tuple(x for x in n.labels if x not in request.fixed), True) for n in term}

    return [of(term) | vectors for term in network.terms]


def _number(
    pairs: Sequence[tuple[int, int]], leaves: dict[int, tuple[str, ...]], output: tuple[str, ...], next_value: int
) -> list[Draft]:
    """Drafts of a term's steps with their final positions, closed by one that arranges the answer."""
    place = list(leaves)  # of each operand, then of each step's result
    labels = {position: frozenset(names) for position, names in leaves.items()}
    waiting = set(leaves)
    drafts: list[Draft] = []
    for count, (one, two) in enumerate(pairs):
        left, right, made = place[one], place[two], next_value + count
        waiting -= {left, right}
        kept = frozenset(output).union(*(labels[p] for p in waiting))
        drafts.append(Draft((left, right), {p: leaves.get(p) for p in (left, right)}, kept))
        labels[made] = (labels[left] | labels[right]) & kept
        place.append(made)
        waiting.add(made)
    (last,) = waiting
    drafts.append(Draft((last,), {last: leaves.get(last)}, frozenset(output)))
    return drafts
