"""Contraction plans: in which order the tensors of a network are multiplied, found once and replayed at every call."""

from factorized_moe.contraction.batches import LayerPlans, plan_layer
from factorized_moe.contraction.costs import expert_rank_bound, num_parameters
from factorized_moe.contraction.densify import dense_tensor
from factorized_moe.contraction.execution import execute, recompute
from factorized_moe.contraction.measuring import choose_plan, fastest_plan
from factorized_moe.contraction.paths import Path, contractions, paths_of, plan_along
from factorized_moe.contraction.plan import ContractionPlan, Request, Step
from factorized_moe.contraction.planning import LimitError, candidate_plans, dense_request, forward_request, make_plan

__all__ = [
    "ContractionPlan",
    "LayerPlans",
    "LimitError",
    "Path",
    "Request",
    "Step",
    "candidate_plans",
    "choose_plan",
    "contractions",
    "dense_request",
    "dense_tensor",
    "execute",
    "expert_rank_bound",
    "fastest_plan",
    "forward_request",
    "make_plan",
    "num_parameters",
    "paths_of",
    "plan_along",
    "plan_layer",
    "recompute",
]
