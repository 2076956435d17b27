"""Why a plan takes more FLOPs than the order of the fewest."""

import math

from factorized_moe import TensorNetwork
from factorized_moe.contraction import ContractionPlan, Request
from factorized_moe.contraction.exhaustive import AllOrders
from factorized_moe.contraction.planning import plan_in_order
from factorized_moe.contraction.search import MOVED, Operand, step_cost
from factorized_moe.network import BATCH

COPIES = "a parameter is copied less"
MOVES = "fewer elements are moved"
SPREAD = "it is near the best at every batch size, or its intermediates are smaller"


def fewest_flops(network: TensorNetwork, request: Request, batch_size: int) -> ContractionPlan:
    """The plan of the fewest FLOPs, of a network of one term: what is moved or copied costs nothing."""
    (term,) = network.terms
    operands = [Operand(frozenset(node.labels), node.labels) for node in term]
    operands += [Operand(frozenset((BATCH, *labels))) for labels in request.vectors]
    orders = AllOrders(operands, frozenset((BATCH, *request.output)), network.sizes, moved=0, copied=0)
    found = orders.cheapest(batch_size)
    assert found is not None
    return plan_in_order(network, request, [found[1]], batch_size)


def reason(plan: ContractionPlan, fewest: ContractionPlan) -> str:
    """What a plan gains for its FLOPs beside the plan of the fewest."""
    (flops, moved, copied), (fewest_of_all, more_moved, more_copied) = _parts(plan), _parts(fewest)
    if flops + moved + copied >= fewest_of_all + more_moved + more_copied:
        return SPREAD
    return COPIES if more_copied - copied > more_moved - moved else MOVES


def _parts(plan: ContractionPlan) -> tuple[float, float, float]:
    """What a plan's cost is made of, in FLOPs: arithmetic, elements moved, elements of parameters copied."""
    sizes = plan.network.sizes | {BATCH: plan.batch_size}
    values = [Operand(frozenset(node.labels), node.labels) for node in plan.network.nodes]
    values += [Operand(frozenset((BATCH, *labels))) for labels in plan.request.vectors]

    def size_of(labels: frozenset[str]) -> int:
        return math.prod(sizes[label] for label in labels)

    whole = unmoved = 0.0
    for step in plan.steps:
        made = Operand(frozenset(step.labels))
        if len(step.operands) == 2:
            left, right = (values[position] for position in step.operands)
            whole += step_cost(left, right, made.labels, size_of, MOVED)
            unmoved += step_cost(left, right, made.labels, size_of, 0)
        values.append(values[step.operands[0]] if len(step.operands) == 1 else made)
    return plan.flops, whole - unmoved, unmoved - plan.flops
