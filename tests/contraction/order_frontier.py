"""What all orders of a network cost at several batch sizes at once, without any of the planner's searches."""

from collections.abc import Iterator
from itertools import combinations
from math import prod

import numpy as np
from numpy.typing import NDArray

from factorized_moe import TensorNetwork
from factorized_moe.contraction import Request
from factorized_moe.contraction.search import MOVED, Operand, step_cost
from factorized_moe.network import BATCH

Costs = NDArray[np.float64]


def order_costs(network: TensorNetwork, request: Request, batch_sizes: list[int]) -> Costs:
    """A row for each order of a network of one term, a column for each batch size.

    Left out are orders that another one undercuts at every batch size.
    """
    (term,) = network.terms
    operands = [Operand(frozenset(node.labels), node.labels) for node in term]
    operands += [Operand(frozenset((BATCH, *labels))) for labels in request.vectors]
    output = frozenset((BATCH, *request.output))
    everyone = frozenset(range(len(operands)))
    known: dict[frozenset[int], tuple[Operand, Costs]] = {
        frozenset((k,)): (operand, np.zeros((1, len(batch_sizes)))) for k, operand in enumerate(operands)
    }
    for size in range(2, len(operands) + 1):
        for group in map(frozenset, combinations(everyone, size)):
            outside = output.union(*(operands[k].labels for k in everyone - group))
            kept = frozenset().union(*(operands[k].labels for k in group)) & outside
            found = []
            for part in _halves(group):
                (left, costs), (right, others) = known[part], known[group - part]
                step = [_step(network, left, right, kept, batch_size) for batch_size in batch_sizes]
                found.append((costs[:, None] + others[None] + np.array(step)).reshape(-1, len(batch_sizes)))
            known[group] = Operand(kept), _undominated(np.concatenate(found))
    return known[everyone][1]


def best_of_two(costs: Costs) -> float:
    """How many times the least cost the best two orders cost where they are worst, the second from a batch size on.

    Args:
        costs: What `order_costs` gives, batch sizes ascending.
    """
    ratios = costs / costs.min(0)
    first = np.maximum.accumulate(ratios, axis=1).min(0)
    second = np.maximum.accumulate(ratios[:, ::-1], axis=1)[:, ::-1].min(0)
    return float(np.maximum(first[:-1], second[1:]).min())


def _step(network: TensorNetwork, left: Operand, right: Operand, kept: frozenset[str], batch_size: int) -> float:
    sizes = network.sizes | {BATCH: batch_size}
    return step_cost(left, right, kept, lambda labels: prod(sizes[label] for label in labels), MOVED)


def _halves(group: frozenset[int]) -> Iterator[frozenset[int]]:
    """One of the two parts of every split."""
    first, *rest = sorted(group)
    for size in range(len(rest)):
        for some in combinations(rest, size):
            yield frozenset((first, *some))


def _undominated(costs: Costs) -> Costs:
    kept: list[int] = []
    for row in np.argsort(costs.sum(1), kind="stable"):
        if not (costs[kept] <= costs[row] * (1 + 1e-12)).all(1).any():
            kept.append(int(row))
    return costs[kept]
