"""Plans against an oracle that tries every order and shares no search with the planner; and against other libraries."""

import math
import statistics
from dataclasses import dataclass

import cotengra
import opt_einsum
import pytest

from factorized_moe import FactorizedExpertTensor, TensorNetwork
from factorized_moe.contraction import contractions, forward_request, make_plan, plan_along, plan_layer
from factorized_moe.contraction.batches import LARGEST
from factorized_moe.contraction.exhaustive import search_order
from factorized_moe.contraction.planning import plan_in_order
from factorized_moe.contraction.search import Operand
from factorized_moe.network import BATCH
from factorized_moe.testing import least_costs, plan_cost

from .flop_reasons import COPIES, MOVES, SPREAD, fewest_flops, reason
from .order_frontier import best_of_two, order_costs
from .random_networks import random_network

pytestmark = pytest.mark.thorough

BATCH_SIZES = (1, 64, 1024, 16384)

BOUND = 1.25
"""How many times the least cost a layer's plan may cost at any batch size."""

EXAMPLES = {
    "a core mixed beforehand": "core: in out s, mix: s; in=256 out=256 s=16",
    "a core mixed by a mode": "core: expert_0 in out s, mix: expert_1 s; expert_0=16 expert_1=16 in=64 out=64 s=8",
    "two factors mixed beforehand": "core: in out b, mid: expert_0 b c, c2: c; expert_0=64 in=64 out=64 b=32 c=32",
}
"""Networks whose vectors should not be contracted first: the plans once took 2 to 16 times the FLOPs."""


@dataclass(frozen=True)
class Found:
    """A layer's plans of one network, at each of the batch sizes beside the oracle's."""

    plans: int
    costs: list[float]
    flops: list[float]
    reasons: list[str]


def check(network: TensorNetwork) -> Found:
    """Holds a network's plans to the oracle, and says how many times the least cost and the fewest FLOPs they take."""
    request = forward_request(network, bias=False)
    layer = plan_layer(network, request)
    found = Found(len(layer.plans), [], [], [])
    for batch_size in BATCH_SIZES:
        cost, flops = least_costs(network, request, batch_size)
        planned = make_plan(network, request, batch_size)
        assert plan_cost(planned) <= cost * (1 + 1e-12)
        assert planned.flops <= 3 * flops
        default = layer.at(batch_size).at_batch_size(batch_size)
        assert plan_cost(default) <= BOUND * cost
        found.costs.append(plan_cost(default) / cost)
        found.flops.append(default.flops / flops)
        for kind, plan in (("plan", planned), ("layer", default)):
            if plan.flops > 1.5 * flops:
                fewest = fewest_flops(network, request, batch_size)
                assert fewest.flops == flops
                why = reason(plan, fewest)
                assert kind == "layer" or why in (COPIES, MOVES)
                found.reasons.append(why)
                print(f"{kind} at {batch_size:,} samples: {plan.flops / flops:.2f} of the fewest FLOPs, because {why}")  # noqa: T201  # shown by -rP
    return found


@pytest.mark.parametrize("text", EXAMPLES.values(), ids=EXAMPLES)
def test_contractions_of_parameters_alone_are_found(text: str) -> None:
    assert max(check(TensorNetwork.parse(text)).flops) <= 1.1


def test_a_core_is_mixed_once_for_all_samples() -> None:
    w = FactorizedExpertTensor(network=TensorNetwork.parse(EXAMPLES["a core mixed beforehand"]))
    assert w.plan(1024).flops == 2 * 256 * 256 * 16 + 1024 * 2 * 256 * 256


def check_many(seeds: range) -> None:
    """FLOPs above 1.5 times the fewest are spent where fewer elements are moved or copied for it; each is told."""
    found = [check(random_network(seed)) for seed in seeds]
    flops = [ratio for each in found for ratio in each.flops]
    assert sum(ratio > 1.5 for ratio in flops) <= 0.01 * len(flops)
    assert max(flops) <= 3
    assert statistics.median(ratio for each in found for ratio in each.costs) == pytest.approx(1.0, abs=0.005)
    assert max(each.plans for each in found) <= 3
    assert sum(each.plans > 2 for each in found) <= 0.07 * len(found)
    reasons = [why for each in found for why in each.reasons]
    print({why: reasons.count(why) for why in (COPIES, MOVES, SPREAD)}, f"of {8 * len(found):,} plans")  # noqa: T201  # as above


def test_no_order_of_a_random_network_is_cheaper() -> None:
    check_many(range(300))


@pytest.mark.slow
def test_no_order_of_more_random_networks_is_cheaper() -> None:
    check_many(range(2000))


THREE = (11, 96, 204)
"""Some of the networks whose layers have three plans."""


def check_third_plan(seed: int) -> None:
    """Three plans, and no two of all orders would keep to the bound, up to a fiftieth of it."""
    network = random_network(seed)
    request = forward_request(network, bias=False)
    layer = plan_layer(network, request)
    assert len(layer.plans) == 3
    spread = {*range(1, 33), *(round(1.3**k) for k in range(14, 40)), LARGEST}
    around = {start + near for start in layer.starts for near in (-1, 0)}
    assert best_of_two(order_costs(network, request, sorted(spread | around))) > 0.98 * BOUND


@pytest.mark.parametrize("seed", THREE)
def test_a_third_plan_only_where_no_two_orders_are_near_the_best(seed: int) -> None:
    check_third_plan(seed)


@pytest.mark.slow
def test_every_third_plan_is_needed() -> None:
    networks = {seed: random_network(seed) for seed in range(2000)}
    three = [
        seed
        for seed, network in networks.items()
        if len(plan_layer(network, forward_request(network, bias=False)).plans) > 2
    ]
    for seed in three:
        check_third_plan(seed)
    print(f"{len(three)} of {len(networks)} networks have three plans, and none of these could do with two")  # noqa: T201  # as above


@pytest.mark.parametrize("seed", range(0, 300, 20))
def test_the_frontier_of_all_orders_has_the_least_costs(seed: int) -> None:
    network = random_network(seed)
    request = forward_request(network, bias=False)
    costs = order_costs(network, request, list(BATCH_SIZES))
    least = [least_costs(network, request, batch_size)[0] for batch_size in BATCH_SIZES]
    assert costs.min(0).tolist() == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_other_libraries_find_no_order_of_fewer_flops(seed: int) -> None:
    """Planned for FLOPs alone, against exhaustive searches of two libraries, counted by this one."""
    network = random_network(seed)
    request = forward_request(network, bias=False)
    ((inputs, output),) = contractions(network, request)
    sizes = network.sizes | {BATCH: 64}
    theirs = [cotengra.OptimalOptimizer(search_outer=True)(inputs, output, sizes)]
    if all(math.prod(sizes[x] for x in labels) > 1 for labels in inputs):
        symbol = {label: opt_einsum.get_symbol(k) for k, label in enumerate(sizes)}
        words = ["".join(symbol[x] for x in labels) for labels in (*inputs, output)]
        shapes = [tuple(sizes[x] for x in labels) for labels in inputs]
        equation = f"{','.join(words[:-1])}->{words[-1]}"
        theirs.append(opt_einsum.contract_path(equation, *shapes, shapes=True, optimize="optimal")[0])
    ours = search_order([Operand(frozenset(labels)) for labels in inputs], frozenset(output), sizes, moved=0)
    assert ours is not None
    flops = plan_in_order(network, request, [ours], 64).flops
    for path in theirs:
        assert flops <= plan_along(network, request, path, 64).flops
