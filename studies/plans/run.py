"""Orders beside those of other libraries: ``python -m studies plans [--quick] [--page]``; one to two hours of one core.

Every network is a line of a file, so a stopped command goes on where it was. The page is written anew at the end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.random_networks import network
from factorized_moe._writing import write_files
from factorized_moe.contraction import contractions, forward_request, make_plan, plan_along, plan_layer
from factorized_moe.network import BATCH
from factorized_moe.testing import plan_cost
from studies.common.command import command_of, folder_of
from studies.common.runs import finish, read
from studies.plans.page import GROUPS, page
from studies.plans.searches import searches, within

__all__ = ["main", "run"]

NAME = "plans"
NETWORKS = 200
SAMPLES = 64
MANY = 22
SECONDS, SECONDS_OF_MANY = 60.0, 10.0
"""How long each search may take, for up to so many operands and for more."""
QUICK = {"networks": 6, "most": 12}


def run(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plan one network, and search its order with every other search that ends in time.

    Args:
        settings: As a line of the file holds them.

    Returns:
        The processor seconds in which the layer's plans were made, and by search ``None`` or its seconds and ratios of
        ours to theirs: FLOPs, planner's cost and largest intermediate of the plan for this batch size, and the
        largest intermediate of the plan that a layer runs, which may cost a tenth more.
    """
    described = network(settings["seed"], settings["operands"])
    request = forward_request(described, bias=False)
    start = time.process_time()
    layer = plan_layer(described, request).at(SAMPLES).at_batch_size(SAMPLES)
    seconds = time.process_time() - start
    ours = make_plan(described, request, SAMPLES)
    ((inputs, output),) = contractions(described, request)
    sizes = described.sizes | {BATCH: SAMPLES}
    others: dict[str, dict[str, float] | None] = {}
    for name, find in searches(settings["operands"]).items():
        found = within(settings["seconds"], lambda find=find: find(inputs, output, sizes))  # type: ignore[misc]
        others[name] = None
        if found is not None:
            theirs = plan_along(described, request, found[0], SAMPLES)
            others[name] = {
                "flops": ours.flops / theirs.flops,
                "cost": plan_cost(ours) / plan_cost(theirs),
                "largest": ours.largest_intermediate / theirs.largest_intermediate,
                "layer_largest": layer.largest_intermediate / theirs.largest_intermediate,
                "seconds": found[1],
            }
    return {"seconds": seconds, "others": others}


def main(arguments: list[str] | None = None) -> None:
    """Do what is missing, and write the page.

    Args:
        arguments: Those of the command line.
    """
    parser = command_of("plans", __doc__, quick="six networks of few operands, for tests")
    options = parser.parse_args(arguments)
    out = folder_of(options)
    file = out / f"{NAME}.jsonl"
    torch.set_num_threads(1)
    first, last = GROUPS[0][0], GROUPS[-1][1]
    count = NETWORKS
    if options.quick:
        count, last = QUICK["networks"], QUICK["most"]
    if not options.page:
        operands = [first + seed * (last + 1 - first) // count for seed in range(count)]
        wanted = [
            {"seed": seed, "operands": some, "seconds": SECONDS if some <= MANY else SECONDS_OF_MANY}
            for seed, some in enumerate(operands)
        ]
        finish(file, wanted, run)
    write_files(out, {f"{NAME}.md": page(read(file)).encode()})
