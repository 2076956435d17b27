"""The plan that a layer has from its description beside the fastest of the plans that ``optimize="measure"`` times."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks.measuring import Call, Effort, measure_ratio
from benchmarks.random_networks import network
from factorized_moe import FactorizedExpertTensor
from factorized_moe.contraction import ContractionPlan, candidate_plans, execute, fastest_plan, forward_request

__all__ = ["NETWORKS", "SAMPLES", "TITLE", "call_of", "compare", "markdown"]

TITLE = "The default plan beside the fastest that was timed"

NETWORKS = 20

SAMPLES = (1, 64, 1024)


@dataclass(frozen=True)
class Comparison:
    """One random network at one batch size.

    Attributes:
        operands: Its nodes and vectors.
        samples: The batch size.
        ratio: The default plan's time over that of the fastest candidate, 1 if they are the same.
    """

    operands: int
    samples: int
    ratio: float


def compare(effort: Effort, networks: int = NETWORKS) -> Iterator[Comparison]:
    """Random networks of 4 to 13 operands at three batch sizes, forward, in float32."""
    for seed in range(networks):
        operands = 4 + seed % 10
        weight = FactorizedExpertTensor(network=network(1000 + seed, operands))
        request = forward_request(weight.network, bias=False)
        for samples in SAMPLES:
            default = weight.plan(samples)
            plans = [default, *candidate_plans(weight.network, request, samples)]
            fastest = fastest_plan(
                list({plan.steps: plan for plan in plans}.values()), weight.weight.operands, [samples]
            )
            ratio = 1.0
            if fastest.steps != default.steps:
                calls = [call_of(weight, plan, samples) for plan in (default, fastest)]
                ratio = measure_ratio(calls[0], calls[1], effort).median
            yield Comparison(operands, samples, ratio)


def markdown(comparisons: Sequence[Comparison]) -> str:
    """A row for each batch size."""
    lines = ["| samples | networks | same plan | median | largest |", "|---:|---:|---:|---:|---:|"]
    for samples in dict.fromkeys(c.samples for c in comparisons):
        ratios = [c.ratio for c in comparisons if c.samples == samples]
        cells = len(ratios), ratios.count(1.0), f"{statistics.median(ratios):.2f}", f"{max(ratios):.2f}"
        lines.append(f"| {samples:,} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def call_of(weight: FactorizedExpertTensor, plan: ContractionPlan, samples: int) -> Call:
    """A plan's forward pass on a layer's parameters and random vectors, without gradients."""
    vectors = [torch.rand(samples, plan.network.size_of(labels)) for labels in plan.request.vectors]

    def call() -> torch.Tensor:
        with torch.no_grad():
            return execute(plan, (*weight.weight.operands, *vectors))

    return call
