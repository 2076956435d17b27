"""The laws of what a decomposition says about itself: parameters, FLOPs, rank bounds, budgets, variance, fit.

Each law is a function of a decomposition and a structure that raises `AssertionError` if it does not hold.

Legend: `N_k` experts of mode k, `I` in_features, `O` out_features.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import torch
from torch import Tensor

from factorized_moe.budgets import Budget, SizeLike
from factorized_moe.budgets.ranks import rank_of_tensor
from factorized_moe.contraction import forward_request, make_plan
from factorized_moe.contraction.batches import BOUND
from factorized_moe.decompositions import Decomposition
from factorized_moe.decompositions.base import Rank
from factorized_moe.network import BATCH
from factorized_moe.tensor import FactorizedExpertTensor
from factorized_moe.testing.closeness import oracle_dense
from factorized_moe.testing.oracles import count_flops, least_costs, plan_cost
from factorized_moe.testing.strategies import Structure

__all__ = [
    "budget_is_kept",
    "description_is_a_value",
    "fit_recovers",
    "initial_variance",
    "parameter_count",
    "plan_costs_are_exact",
    "plans_are_cheapest",
    "rank_bound_holds",
    "rank_bound_is_met",
]

VARIANCE_DRAWS = 200
"""So many that five standard errors are below half the variance for every built-in decomposition."""

FIT_TOLERANCE = 1e-3
"""Alternating algorithms stop near, not at, an exact fit; from a wrong one the error is of order 1."""

ORACLE_OPERANDS = 9
"""So many operands have 10,000 splits, 0.1 s for each batch size."""

RANK_TOLERANCE = 1e-11
"""Singular values below this share of the largest are zeros."""


def description_is_a_value(decomposition: Decomposition, structure: Structure) -> None:
    """Equal arguments give equal, hashable networks and plans, which survive pickling."""
    network, again = structure.network(decomposition), structure.network(decomposition)
    assert network == again, "two calls of network() with the same arguments differ"
    assert hash(network) == hash(again), "equal networks differ in their hash"
    assert network.shape == structure.shape, f"the network's shape is {network.shape}, asked was {structure.shape}"
    plan = structure.tensor(decomposition).plan()
    for value in (network, plan):
        assert pickle.loads(pickle.dumps(value)) == value, f"{type(value).__name__} differs after pickling"


def parameter_count(decomposition: Decomposition, structure: Structure) -> None:
    """`num_parameters` is the number of elements in the state dict, counted by hand from the nodes too."""
    w = structure.tensor(decomposition)
    stored = sum(tensor.numel() for tensor in w.state_dict().values())
    counted = 0
    for name in {node.parameter for node in w.network.nodes if node.fixed is None}:
        labels = next(node.labels for node in w.network.nodes if node.parameter == name)
        counted += math.prod(dict(w.network.label_sizes)[label] for label in labels)
    message = f"num_parameters is {w.num_parameters}, the state dict has {stored}, the nodes have {counted}"
    assert w.num_parameters == stored == counted, message


def plan_costs_are_exact(decomposition: Decomposition, structure: Structure) -> None:
    """A plan's FLOPs equal a count from its labels, and its steps make as many elements as they say."""
    w = structure.tensor(decomposition)
    for samples in (1, 5):
        plan = w.plan(samples)
        counted = count_flops(plan)
        assert plan.flops == counted, f"the plan says {plan.flops} FLOPs, its labels give {counted}"
        x, coefficients = replace(structure, batch_shape=(samples,)).arguments()
        values: list[Tensor] = [*w.weight.operands, x, *coefficients]
        sizes = w.network.sizes | {BATCH: samples}
        largest = 0
        for step in plan.steps:
            operands = [values[position] for position in step.operands]
            value = step.operation(*operands)
            expected = math.prod(sizes[label] for label in step.labels)
            assert value.numel() == expected, f"{step.formula!r} makes {value.numel()} elements, its labels {expected}"
            view = step.elements == 0 and any(value.data_ptr() == operand.data_ptr() for operand in operands)
            elements = 0 if view else expected
            assert step.elements == elements, f"{step.formula!r} makes {elements} elements, it says {step.elements}"
            largest = max(largest, elements)
            values.append(value)
        assert plan.largest_intermediate == largest, f"largest is {largest}, not {plan.largest_intermediate}"


def plans_are_cheapest(decomposition: Decomposition, structure: Structure) -> None:
    """No order costs less than the plan made for a batch size; what a layer runs costs at most 1.25 times the least.

    The oracle tries all orders, outer products and products of parameters included. Networks of more operands
    than `ORACLE_OPERANDS` are left out: each one more takes three times as long.
    """
    network = structure.network(decomposition)
    request = forward_request(network, structure.bias)
    if max(map(len, network.terms)) + len(request.vectors) > ORACLE_OPERANDS:
        return
    layer = structure.tensor(decomposition)
    for samples in (1, 64, 4096):
        least, _ = least_costs(network, request, samples)
        planned = plan_cost(make_plan(network, request, samples))
        assert planned <= least * (1 + 1e-9), f"the plan for {samples} samples costs {planned}, an order costs {least}"
        runs = plan_cost(layer.plan(samples))
        assert runs <= BOUND * least, f"the layer's plan costs {runs} at {samples} samples, an order costs {least}"


def rank_bound_holds(decomposition: Decomposition, structure: Structure) -> None:
    """No expert's matrix has a rank above `expert_rank_bound`."""
    w = structure.tensor(decomposition)
    found = _largest_expert_rank(w)
    assert found <= w.expert_rank_bound, f"an expert has rank {found}, above the bound {w.expert_rank_bound}"


def rank_bound_is_met(decomposition: Decomposition, structure: Structure) -> None:
    """Some expert with Gaussian parameters has the rank `expert_rank_bound`.

    A minimum cut is met by the decompositions in use, but not by every network (Cui et al. 2016, "Quantum max-flow
    min-cut"): opt out where it is not.
    """
    ranks = [_largest_expert_rank(replace(structure, seed=structure.seed + k).tensor(decomposition)) for k in range(3)]
    bound = structure.tensor(decomposition).expert_rank_bound
    assert max(ranks) == bound, f"Gaussian experts have rank {max(ranks)}, the bound is {bound}"


def _largest_expert_rank(w: FactorizedExpertTensor) -> int:
    return int(torch.linalg.matrix_rank(oracle_dense(w).detach(), rtol=RANK_TOLERANCE).max())


def budget_is_kept(decomposition: Decomposition, structure: Structure) -> None:
    """A budget, a fraction and `"same"` never give more parameters than asked for; too small a budget is refused."""
    shape = structure.shape
    *expert_dims, rows, out_features = shape

    def cost(size: int) -> int:
        return replace(structure, rank=size).tensor(decomposition).num_parameters

    try:
        decomposition.check_rank(1, shape)
    except ValueError:
        return  # ranks of this decomposition are not ints, and budgets look for an int
    dense, smallest = math.prod(shape), cost(1)
    enough = smallest + structure.seed % 50
    budgets: dict[SizeLike, int] = {Budget(parameters=enough): enough, "same": dense, 0.7: int(0.7 * dense)}
    if smallest > 1:
        budgets[Budget(parameters=smallest - 1)] = smallest - 1
    if 1 < smallest <= dense:
        budgets[(smallest - 1) / dense] = smallest - 1
    for asked, budget in budgets.items():
        rank, refusal = _resolved(decomposition, asked, shape)
        if rank is None:
            assert budget < smallest, f"rank {asked!r} of {shape} is refused, though {smallest} are enough: {refusal}"
            continue
        network = decomposition.network(tuple(expert_dims), rows, out_features, rank)
        used = sum(math.prod(sizes) for sizes in network.parameter_shapes.values())
        assert used <= budget, f"rank {asked!r} of {shape} gives {used} parameters, asked were at most {budget}"


def _resolved(decomposition: Decomposition, rank: SizeLike, shape: tuple[int, ...]) -> tuple[Rank | None, str]:
    try:
        return rank_of_tensor(rank, shape, decomposition, bias=False), ""
    except ValueError as refusal:
        return None, str(refusal)


def initial_variance(decomposition: Decomposition, structure: Structure) -> None:
    """Under `"variance_preserving"` an entry of the dense tensor has mean 0 and variance `1 / I` (or `I + 1`).

    Both are estimated, and what fails once is estimated anew, from ten times as many draws, before it is told.
    """
    target = 1.0 / structure.shape[-2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(structure.seed)
        w = FactorizedExpertTensor(
            structure.expert_dims,
            structure.in_features,
            structure.out_features,
            decomposition,
            structure.rank,
            bias=structure.bias,
            init="variance_preserving",
            dtype=torch.float64,
        )
        refusal = _refused_variance(w, target, VARIANCE_DRAWS)
        refusal = refusal and _refused_variance(w, target, 10 * VARIANCE_DRAWS)
    assert not refusal, refusal


def _refused_variance(w: FactorizedExpertTensor, target: float, draws: int) -> str:
    """What is wrong with the mean and the variance of so many fresh tensors, by five standard errors; or nothing."""
    means, squares = [], []
    for _ in range(draws):
        w.reset_parameters()
        dense = oracle_dense(w).detach()
        means.append(dense.mean())
        squares.append(dense.square().mean())
    error = mean = 0.0
    for name, values, expected in (("mean", means, 0.0), ("variance", squares, target)):
        estimate = torch.stack(values)
        error = 5.0 * float(estimate.std()) / draws**0.5
        mean = estimate.mean().item()
        if not abs(mean - expected) <= error:
            return f"initial {name} is {mean:.3e} within {error:.0e}, expected {expected:.3e}"
    if error > 0.5 * target:
        return f"the initial variance varies too much to be measured: {mean:.2e} within {error:.0e}"
    return ""


def fit_recovers(decomposition: Decomposition, structure: Structure) -> None:
    """A dense tensor that the decomposition can represent exactly is fitted, and the error is told truly."""
    dense = oracle_dense(structure.tensor(decomposition)).detach()
    w = FactorizedExpertTensor.from_dense(dense, decomposition, structure.rank, bias=structure.bias)
    error = ((oracle_dense(w) - dense).norm() / dense.norm()).item()
    assert error <= FIT_TOLERANCE, f"an exact tensor is fitted with relative error {error:.1e}, allowed {FIT_TOLERANCE}"
    told = w.relative_error(dense)
    assert abs(told - error) <= 1e-10 + 1e-6 * error, f"relative_error() says {told:.3e}, it is {error:.3e}"
