"""From a request on a network to its result: plan once (:mod:`.planning`), replay fast (:mod:`.execution`)."""

from factorized_moe.contraction.costs import expert_rank_bound, num_parameters
from factorized_moe.contraction.execution import execute
from factorized_moe.contraction.planning import (
    ContractionPlan,
    Request,
    Step,
    dense_request,
    forward_request,
    make_plan,
)

__all__ = [
    "ContractionPlan",
    "Request",
    "Step",
    "dense_request",
    "execute",
    "expert_rank_bound",
    "forward_request",
    "make_plan",
    "num_parameters",
]
