"""What an element of a parameter that is copied should count for: plans made at several prices, timed in turn.

Random networks of 4 to 9 operands have the cheapest order at each price at each batch size. Where an order differs from
that at the price in use both are timed, forward, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.measured_plans import call_of
from benchmarks.measuring import Effort, measure_ratio
from benchmarks.random_networks import network
from factorized_moe import FactorizedExpertTensor
from factorized_moe.contraction import forward_request
from factorized_moe.contraction.exhaustive import AllOrders
from factorized_moe.contraction.planning import plan_in_order, term_orders

__all__ = ["NETWORKS", "PRICES", "TITLE", "Comparison", "compare", "markdown"]

TITLE = "Plans at other prices of a copied element"

NETWORKS = 100

PRICES = (0, 2, 4, 12, 30, 200)

SAMPLES = (1, 64, 1024)


@dataclass(frozen=True)
class Comparison:
    """A network at one batch size, planned at another price than the one in use.

    Attributes:
        price: The other price of a copied element, in FLOPs.
        samples: The batch size.
        flops: The FLOPs of its plan over those of the plan at the price in use.
        ratio: Its time over the other's.
    """

    price: float
    samples: int
    flops: float
    ratio: float


def compare(effort: Effort, networks: int = NETWORKS) -> Iterator[Comparison]:
    """All plans that differ from those at the price in use."""
    for seed in range(networks):
        weight = FactorizedExpertTensor(network=network(2000 + seed, 4 + seed % 6))
        request = forward_request(weight.network, bias=False)
        (term,) = term_orders(weight.network, request)
        searches = {
            price: AllOrders(term.operands, term.output, weight.network.sizes, copied=price)
            for price in (None, *PRICES)
        }
        for samples in SAMPLES:
            plans = {}
            for price, search in searches.items():
                found = search.cheapest(samples)
                assert found is not None  # without a limit there is always an order
                plans[price] = plan_in_order(weight.network, request, [found[1]], samples)
            used, timed = plans.pop(None), {}
            for price, plan in plans.items():
                if {s.formula for s in plan.steps} == {s.formula for s in used.steps}:
                    continue
                if plan.steps not in timed:
                    calls = [call_of(weight, each, samples) for each in (plan, used)]
                    timed[plan.steps] = measure_ratio(calls[0], calls[1], effort).median
                yield Comparison(price, samples, plan.flops / used.flops, timed[plan.steps])


def markdown(comparisons: Sequence[Comparison]) -> str:
    """A row for each price and batch size."""
    lines = ["| FLOPs for a copied element | samples | plans that differ | their FLOPs | their time |"]
    lines.append("|---:|---:|---:|---:|---:|")
    for price in PRICES:
        for samples in SAMPLES:
            mine = [c for c in comparisons if (c.price, c.samples) == (price, samples)]
            means = [_mean([c.flops for c in mine]), _mean([c.ratio for c in mine])]
            lines.append(f"| {price:g} | {samples:,} | {len(mine)} | " + " | ".join(means) + " |")
    return "\n".join(lines) + "\n"


def _mean(ratios: Sequence[float]) -> str:
    """The geometric mean and the spread."""
    if not ratios:
        return ""
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return f"{mean:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
