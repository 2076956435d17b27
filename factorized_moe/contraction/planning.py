"""From a network and a request to a plan: a fixed list of pairwise steps, each lowered to one operation.

A request says which per-sample vectors are contracted with the network and which labels the result keeps: the
forward pass, the dense tensor and one expert's matrix are three requests on the same network. The order of the steps
is found in two stages: a vector that shares its labels with one node only is absorbed into that node first; the few
operands that remain are searched exhaustively. (A search over all operands gains nothing and takes 100 times longer;
see docs/architecture.md.) In a network too large for that, pairs are merged and the order then improved in parts; if it
is loosely connected, opt_einsum's dynamic programming is fast too, and the cheaper order of the two is taken.

This is the only module that imports opt_einsum, and nothing of it runs in a forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from opt_einsum.paths import DynamicProgramming

from factorized_moe.contraction.large import search_large
from factorized_moe.contraction.lowering import Draft, lower
from factorized_moe.contraction.plan import ContractionPlan, Request, Step, check_batch_size
from factorized_moe.contraction.search import (
    EXHAUSTIVE,
    MOVED,
    SCANNED,
    Operand,
    Pairs,
    order_cost,
    search_order,
)
from factorized_moe.network import BATCH, TensorNetwork

__all__ = ["DEFAULT_BATCH_SIZE", "LimitError", "candidate_plans", "dense_request", "forward_request", "make_plan"]

DEFAULT_BATCH_SIZE = 64
"""Samples assumed when a plan's order is chosen. The choice hardly matters: over 1 to 32,768 samples the best order
changes the FLOPs by at most 7%, so a layer is planned once, at construction."""

CONNECTED_SETS = 1500
"""Up to so many sets of connected operands, opt_einsum's dynamic programming, which visits their pairs, takes no time.

A chain of 50 cores has 1,275. A Tucker core with 20 vectors has a million, and so have 20 factors that share CP's rank.
"""


def forward_request(network: TensorNetwork, bias: bool, sparse: bool = False) -> Request:
    """The forward pass: contract the input ``(B, I)`` and one vector ``(B, N_k)`` for each expert mode."""
    vectors = (network.in_labels, *((label,) for label in network.expert_labels))
    return Request(vectors, network.out_labels, append_one=bias, sparse=sparse)


def dense_request(network: TensorNetwork, fixed: Iterable[str] = ()) -> Request:
    """The dense tensor, or the slice of it at fixed expert labels."""
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
        absorb: Whether a vector and a node that share labels with nothing else are contracted first.
        moved: The cost of an element moved, in FLOPs.
        limit: The most elements that an intermediate may have.
        smallest: Whether the largest intermediate counts before the cost.
        multiply: Whether small products per sample are lowered to a multiplication and a sum.
        scanned: The cost of looking at a coefficient for whether it is zero, in FLOPs.
    """

    absorb: bool = True
    moved: float = MOVED
    limit: int | None = None
    smallest: bool = False
    multiply: bool = False
    scanned: float = SCANNED


@lru_cache(maxsize=4096)
def make_plan(
    network: TensorNetwork, request: Request, batch_size: int = DEFAULT_BATCH_SIZE, memory_limit: int | None = None
) -> ContractionPlan:
    """Plan a request: a cached, deterministic, pure function of the description.

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
        _plan(network, request, batch_size, Strategy(absorb, limit=memory_limit, smallest=smallest))
        for smallest in (False, True)
        for absorb in (True, False)
    ]
    fitting = [p for p in tries if p is not None and p.largest_intermediate <= memory_limit]
    if not fitting:
        least = [_plan(network, request, batch_size, Strategy(absorb, smallest=True)) for absorb in (True, False)]
        smallest = min(p.largest_intermediate for p in least if p is not None)
        most = max(len(term) for term in network.terms) + len(request.vectors)
        raise LimitError(memory_limit, batch_size, smallest, exact=most <= EXHAUSTIVE)
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
    for absorb, moved, multiply, scanned in product((True, False), (0, MOVED, 8 * MOVED), (False, True), scans):
        plan = _plan(network, request, batch_size, Strategy(absorb, moved, memory_limit, False, multiply, scanned))
        if plan is not None and (memory_limit is None or plan.largest_intermediate <= memory_limit):
            plans.append(plan)
    return tuple({plan.steps: plan for plan in plans}.values())


@lru_cache(maxsize=4096)
def _plan(network: TensorNetwork, request: Request, batch_size: int, strategy: Strategy) -> ContractionPlan | None:
    """The plan of one strategy, or ``None`` if the search finds no order within the strategy's limit."""
    sizes = network.sizes | {BATCH: batch_size}
    batch = (BATCH,) if request.vectors else ()
    vectors = [(*batch, *labels) for labels in request.vectors]
    output = (*batch, *request.output)
    position = {node.name: number for number, node in enumerate(network.nodes)}
    first_vector = len(position)
    first_result = first_vector + len(vectors)

    drafts: list[Draft] = []
    answers: list[int] = []
    for term in network.terms:
        leaves = {position[n.name]: tuple(x for x in n.labels if x not in request.fixed) for n in term}
        leaves |= {first_vector + k: labels for k, labels in enumerate(vectors)}
        pairs = _contraction_order(leaves, first_vector, frozenset(output), sizes, strategy)
        if pairs is None:
            return None
        drafts += _number(pairs, leaves, output, first_result + len(drafts))
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
        multiply=strategy.multiply,
        sparse=sparse,
        scanned=strategy.scanned,
    )
    last_use = {p: k for k, (operands, *_) in enumerate(lowered) for p in operands if p >= first_result}
    frees = [tuple(p for p, last in last_use.items() if last == k) for k in range(len(lowered))]
    steps = tuple(Step(*step, frees=freed) for step, freed in zip(lowered, frees, strict=True))
    return ContractionPlan(network, request, batch_size, steps)


def _contraction_order(
    leaves: dict[int, tuple[str, ...]],
    first_vector: int,
    output: frozenset[str],
    sizes: dict[str, int],
    strategy: Strategy,
) -> Pairs | None:
    """Pairs of positions to contract, counting on from the leaves: a merged pair takes the next negative number."""
    values = {position: frozenset(labels) for position, labels in leaves.items()}
    pairs: Pairs = []

    def merge(left: int, right: int) -> None:
        union = values.pop(left) | values.pop(right)
        kept = output.union(*values.values())
        pairs.append((left, right))
        values[-len(pairs)] = union & kept

    nodes = [position for position in leaves if position < first_vector]
    vectors = [position for position in leaves if position >= first_vector]
    partner = {v: [n for n in nodes if values[n] & (values[v] - {BATCH})] for v in vectors}
    for vector in vectors:
        mine = partner[vector] if strategy.absorb else []
        # Only where vector and node have each other alone; anything else is left to the search.
        if len(mine) == 1 and [mine] == [partner[v] for v in vectors if mine[0] in partner[v]]:
            merge(vector, mine[0])
    remaining = list(values)
    operands = [Operand(values[p], leaves[p] if 0 <= p < first_vector else None) for p in remaining]
    found = _search(operands, output, sizes, strategy)
    if found is None:
        return None
    for left, right in found:
        merge(remaining[left], remaining[right])
        remaining.append(-len(pairs))
    return pairs


def _search(
    operands: Sequence[Operand], output: frozenset[str], sizes: dict[str, int], strategy: Strategy
) -> Pairs | None:
    if len(operands) < 2:
        return []
    moved, limit, smallest = strategy.moved, strategy.limit, strategy.smallest
    if len(operands) <= EXHAUSTIVE:
        return search_order(operands, output, sizes, moved=moved, limit=limit, smallest=smallest)
    found = [search_large(operands, output, sizes, moved=moved, limit=limit, smallest=smallest)]
    if _is_loosely_connected(operands, output):
        found.append(_dynamic_programming(operands, output, sizes, limit, smallest))

    def cost(pairs: Pairs) -> tuple[int, float]:
        largest, cost = order_cost(pairs, operands, output, sizes, moved)
        return (largest if smallest else 0), cost

    return min((pairs for pairs in found if pairs is not None), key=cost, default=None)


def _dynamic_programming(
    operands: Sequence[Operand], output: frozenset[str], sizes: dict[str, int], limit: int | None, smallest: bool
) -> Pairs | None:
    """The order of fewest FLOPs, or of the smallest intermediates, without outer products."""
    # Labels on one operand only are summed within the step that uses it. Ints instead of strings, because the
    # iteration order of string sets, and with it the choice among equals, differs from process to process.
    number = {label: k for k, label in enumerate(sizes)}
    carried = [x for operand in operands for x in operand.labels]
    kept = [frozenset(number[x] for x in o.labels if x in output or carried.count(x) > 1) for o in operands]
    search = DynamicProgramming(minimize="size" if smallest else "flops")
    try:
        path = search(kept, frozenset(number[x] for x in output), dict(enumerate(sizes.values())), limit)
    except RuntimeError:  # opt_einsum's word for "no contraction within the limit"
        return None
    live, pairs = list(range(len(operands))), []
    for pair in path:
        pairs.append((live[pair[0]], live[pair[1]]))
        live = [p for k, p in enumerate(live) if k not in pair] + [len(operands) + len(pairs) - 1]
    return pairs


def _is_loosely_connected(operands: Sequence[Operand], output: frozenset[str]) -> bool:
    """Whether few sets of operands are connected by labels to be summed: those of a chain, not of a star."""
    summed = [operand.labels - output for operand in operands]
    beside = [sum(1 << k for k, other in enumerate(summed) if other & mine and other is not mine) for mine in summed]
    seen = {1 << k for k in range(len(operands))}
    waiting = list(seen)
    while waiting:
        members = waiting.pop()
        around = 0
        for k, neighbours in enumerate(beside):
            if members >> k & 1:
                around |= neighbours
        for k in range(len(operands)):
            larger = members | 1 << k
            if around >> k & 1 and larger not in seen:
                seen.add(larger)
                waiting.append(larger)
        if len(seen) > CONNECTED_SETS:
            return False
    return True


def _number(pairs: Pairs, leaves: dict[int, tuple[str, ...]], output: tuple[str, ...], next_value: int) -> list[Draft]:
    """Drafts of a term's steps with their final positions, closed by one that arranges the answer."""
    labels = {position: frozenset(names) for position, names in leaves.items()}
    place = {position: position for position in leaves}
    waiting = set(leaves)
    drafts: list[Draft] = []
    for count, (left, right) in enumerate(pairs, start=1):
        waiting -= {left, right}
        kept = frozenset(output).union(*(labels[p] for p in waiting))
        drafts.append(Draft((place[left], place[right]), {place[p]: leaves.get(p) for p in (left, right)}, kept))
        labels[-count] = (labels[left] | labels[right]) & kept
        place[-count] = next_value + count - 1
        waiting.add(-count)
    (last,) = waiting
    drafts.append(Draft((place[last],), {place[last]: leaves.get(last)}, frozenset(output)))
    return drafts
