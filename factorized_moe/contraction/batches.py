"""The plan or the plans of a layer that is built once and used at any batch size.

A step on parameters alone costs the same for every number of samples, any other step a multiple of it. So an order's
cost is a straight line over the number of samples, and the least cost is the lower envelope of all orders' lines. If
one order is best at both ends it is best everywhere between. If not, an order is looked for that is near the best at
all batch sizes; if there is none, two are taken and a batch size from which on the second runs. Seldom, where the
envelope has several flights that lie far apart, two are not enough to stay near it, and there is a third.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, product
from operator import itemgetter

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from factorized_moe.contraction.orders import TermOrders
from factorized_moe.contraction.plan import ContractionPlan, Request
from factorized_moe.contraction.planning import DEFAULT_BATCH_SIZE, plan_in_order, term_orders
from factorized_moe.contraction.search import Pairs
from factorized_moe.network import TensorNetwork

__all__ = ["BOUND", "LARGEST", "LayerPlans", "plan_layer"]

LARGEST = 32768
"""Plans are near the best from one sample to so many; above, the last plan goes on."""

NEAR = 1.1
"""One plan is enough if it nowhere costs more than so many times the least."""

BOUND = 1.25
"""Two plans are enough if they nowhere cost more than so many times the least."""

LATER = 1.05
"""The next plan runs from where the one before costs so many times as much.
"""

SEARCHES = 8
"""At most so many batch sizes at which the cheapest order is searched; three for many operands, where it takes long."""

SAMPLES = (2, *(4**k for k in range(8)), LARGEST)
"""Batch sizes at which plans are compared, beside those where the cheapest order changes."""


@dataclass(frozen=True)
class LayerPlans:
    """The plans of a forward pass: mostly one for all batch sizes, sometimes another for large ones.

    Attributes:
        plans: The plans, the one for the fewest samples first; mostly one.
        starts: The batch sizes from which on the second and further ones run.
        unknown: The plan where the number of samples is not known, as in a program that is compiled or exported for
            all of them: the one that costs the least times too much where it is worst.
    """

    plans: tuple[ContractionPlan, ...]
    starts: tuple[int, ...]
    unknown: ContractionPlan

    def at(self, batch_size: int) -> ContractionPlan:
        """The plan that runs at a batch size; while a program is traced that may be a symbol, little known."""
        if not torch.compiler.is_compiling():
            return self.plans[bisect_right(self.starts, batch_size)]
        for plan, start, stop in zip(self.plans, (1, *self.starts), (*self.starts, None), strict=True):
            # Neither question guards, so that no program is compiled again for another batch size.
            if statically_known_true(batch_size >= start) and (
                stop is None or statically_known_true(batch_size < stop)
            ):
                return plan
        return self.unknown


@dataclass(frozen=True)
class _Candidate:
    """An order for each term.

    Attributes:
        orders: The orders.
        fixed: What they cost whatever the number of samples.
        grown: What each sample adds.
        few: The cost at the smallest batch sizes, where copies count for less and it is below the line.
    """

    orders: tuple[tuple[tuple[int, int], ...], ...]
    fixed: float
    grown: float
    few: tuple[float, ...] = ()

    def cost(self, batch_size: int) -> float:
        return self.few[batch_size - 1] if batch_size <= len(self.few) else self.fixed + self.grown * batch_size


@lru_cache(maxsize=4096)
def plan_layer(network: TensorNetwork, request: Request) -> LayerPlans:
    """Make the plan, or the few plans, that serve a request at every batch size; no tensor is needed.

    Args:
        network: The network.
        request: What is asked of it; it has a vector.

    Examples:
        >>> from factorized_moe.contraction import forward_request
        >>> network = TensorNetwork.parse("core: in out s, mix: s; in=256 out=256 s=16")
        >>> plans = plan_layer(network, forward_request(network, bias=False))
        >>> [step.formula for step in plans.at(1024).steps]
        ['in out s, s -> in out', 'in, in out -> out']
    """
    terms = term_orders(network, request)
    cheapest = _envelope(terms)
    samples = sorted({*SAMPLES, *_crossings(cheapest)})
    least = {b: min(candidate.cost(b) for candidate in cheapest) for b in samples}

    def worst(candidate: _Candidate, start: int = 1, stop: int = LARGEST) -> float:
        return max(candidate.cost(b) / least[b] for b in samples if start <= b <= stop)

    near = [
        candidate
        for candidate in (*_measured(terms), *_balanced(terms, 1, LARGEST), *cheapest)
        if worst(candidate) <= NEAR
    ]
    if near:
        plan = _plan(network, request, min(near, key=lambda one: _largest(terms, one, samples)))  # the first of equals
        return LayerPlans((plan,), (), plan)
    choices: list[tuple[float, tuple[_Candidate, ...], tuple[int, ...]]] = []  # where it is worst, orders, starts
    # The later change of plans first: a plan that was timed is kept where it is near enough.
    for count, change in product(range(2, len(cheapest) + 1), (_change, _crossing)):
        for some in combinations(cheapest, count):
            starts = (1, *map(change, some, some[1:]))
            stops = (*(start - 1 for start in starts[1:]), LARGEST)
            if all(start <= stop for start, stop in zip(starts, stops, strict=True)):
                choices.append((max(map(worst, some, starts, stops)), some, starts))
        if choices and min(choices, key=itemgetter(0))[0] <= BOUND:
            break
    _, chosen, starts = min(choices, key=itemgetter(0))
    unknown = chosen.index(min(chosen, key=worst))
    plans = []
    for candidate, start, later in zip(chosen, starts, (*starts[1:], None), strict=True):
        until = None if later is None else later - 1
        smaller = _smaller(terms, candidate, least, start, until or LARGEST)
        plans.append(replace(_plan(network, request, smaller), runs_from=start, runs_until=until))
    return LayerPlans(tuple(plans), starts[1:], plans[unknown])


def _plan(network: TensorNetwork, request: Request, candidate: _Candidate) -> ContractionPlan:
    return plan_in_order(network, request, candidate.orders, DEFAULT_BATCH_SIZE)


def _candidate(terms: Sequence[TermOrders], orders: Sequence[Pairs]) -> _Candidate:
    one, two, *line = (sum(t.cost(p, samples) for t, p in zip(terms, orders, strict=True)) for samples in (1, 2, 3, 4))
    return _Candidate(tuple(map(tuple, orders)), 4 * line[0] - 3 * line[1], line[1] - line[0], (one, two))


def _envelope(terms: Sequence[TermOrders]) -> list[_Candidate]:
    """The orders that are cheapest at some batch size, those for few samples first."""

    def cheapest(batch_size: int, known: _Candidate | None = None) -> _Candidate:
        nearby = [()] * len(terms) if known is None else known.orders
        found = [term.cheapest(batch_size, known=pairs) for term, pairs in zip(terms, nearby, strict=True)]
        return _candidate(terms, [pairs for pairs in found if pairs is not None])

    if not all(term.exhaustive for term in terms):
        middle = cheapest(DEFAULT_BATCH_SIZE)
        found = [cheapest(1, middle), middle, cheapest(LARGEST, middle)]
        return sorted(found, key=lambda candidate: -candidate.grown)
    found = [cheapest(1), cheapest(LARGEST)]
    waiting, searches = [tuple(found)], 2
    while waiting and searches < SEARCHES:
        few, many = waiting.pop(0)
        between = _crossing(few, many)
        if few.grown <= many.grown or not 1 < between < LARGEST:
            continue  # one of the two is the best at both ends
        middle, searches = cheapest(between), searches + 1
        if middle.cost(between) < min(few.cost(between), many.cost(between)) * (1 - 1e-9):
            found.append(middle)
            waiting += [(few, middle), (middle, many)]
    return sorted(found, key=lambda candidate: -candidate.grown)


def _crossing(few: _Candidate, many: _Candidate) -> int:
    """The batch size from which on the second order costs less than the first."""
    if few.grown <= many.grown:
        return LARGEST
    return min(LARGEST, max(2, math.ceil((many.fixed - few.fixed) / (few.grown - many.grown))))


def _change(few: _Candidate, many: _Candidate) -> int:
    """The batch size from which on the second order costs so much less that it runs."""
    return _crossing(few, replace(many, fixed=LATER * many.fixed, grown=LATER * many.grown))


def _crossings(candidates: Sequence[_Candidate]) -> set[int]:
    pairs = list(combinations(candidates, 2))
    starts = {_crossing(one, two) for one, two in pairs} | {_change(one, two) for one, two in pairs}
    return starts | {start - 1 for start in starts}


def _measured(terms: Sequence[TermOrders]) -> list[_Candidate]:
    """The order that begins with every vector meeting its own node: the one that the built-in forms were timed with."""
    found = [term.absorbed(DEFAULT_BATCH_SIZE) for term in terms]
    orders = [pairs for pairs in found if pairs is not None]
    return [_candidate(terms, orders)] if len(orders) == len(terms) else []


def _balanced(terms: Sequence[TermOrders], low: int, high: int) -> list[_Candidate]:
    """The order of small intermediates and nearly the least cost, for the middle of a range of batch sizes."""
    if not all(term.exhaustive for term in terms):
        return []
    middle = round(math.sqrt(low * high))
    return [_candidate(terms, [term.balanced(middle) for term in terms])]


def _smaller(
    terms: Sequence[TermOrders], candidate: _Candidate, least: dict[int, float], low: int, high: int
) -> _Candidate:
    """An order of smaller intermediates in a range of batch sizes, if there is one that costs nearly the least."""
    samples = [batch_size for batch_size in least if low <= batch_size <= high]
    near = [
        other
        for other in _balanced(terms, low, high)
        if all(other.cost(b) <= max(NEAR * least[b], candidate.cost(b)) for b in samples)
    ]
    return min((candidate, *near), key=lambda order: _largest(terms, order, samples))


def _largest(terms: Sequence[TermOrders], candidate: _Candidate, samples: Sequence[int]) -> float:
    """How large the largest intermediate is over some batch sizes: the mean of its logarithm."""
    sizes = [
        max(term.largest(pairs, batch_size) for term, pairs in zip(terms, candidate.orders, strict=True))
        for batch_size in samples
    ]
    return round(sum(map(math.log, sizes)) / len(sizes), 9)
