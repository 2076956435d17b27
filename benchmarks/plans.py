"""Orders of contraction beside those of cotengra and opt_einsum, on random networks: ``--only plans``.

All orders are lowered and counted alike. Ours is planned for the planner's own cost, FLOPs and elements moved; the
others search for the fewest FLOPs.
"""

from __future__ import annotations

import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from benchmarks.measuring import Effort
from factorized_moe import Node, TensorNetwork
from factorized_moe.contraction import Request, contractions, forward_request, make_plan, plan_along, plan_layer
from factorized_moe.contraction.plan import ContractionPlan
from factorized_moe.network import BATCH
from factorized_moe.testing import plan_cost

__all__ = ["SIZES", "TITLE", "Sizes", "compare", "markdown", "network"]

TITLE = "Orders beside those of other libraries"

SAMPLES = 64

Find = Callable[[list[tuple[str, ...]], tuple[str, ...], dict[str, int]], Any]


@dataclass(frozen=True)
class Sizes:
    """What is compared.

    Attributes:
        networks: How many random networks.
        groups: Numbers of operands, the smallest and the largest of each row of the table.
        seconds: How long each search may take.
    """

    networks: int = 200
    groups: tuple[tuple[int, int], ...] = ((3, 7), (8, 14), (15, 25), (26, 40))
    seconds: float = 3.0


SIZES = Sizes()


@dataclass(frozen=True)
class Comparison:
    """One network's order beside another library's, by ratios of ours to theirs.

    Attributes:
        operands: The network's nodes and vectors.
        other: The other search.
        flops: FLOPs.
        cost: The planner's cost.
        largest: Elements of the largest intermediate.
        layer_largest: The same of the plan that a layer runs, which may cost a tenth more.
        seconds: How long a layer's plans took.
        other_seconds: How long theirs was searched, without lowering.
    """

    operands: int
    other: str
    flops: float
    cost: float
    largest: float
    layer_largest: float
    seconds: float
    other_seconds: float


def network(seed: int, operands: int) -> TensorNetwork:
    """A random tree of nodes with more bonds on two to four of them, and modes on any, of so many operands."""
    rng = random.Random(seed)
    modes = rng.randint(0, min(6, operands - 3))
    nodes = operands - 1 - modes
    labels: list[list[str]] = [[] for _ in range(nodes)]
    bonds = {}
    for node in range(1, nodes):
        bonds[f"tree_{node}"] = rng.choice((2, 3, 4, 8))
        labels[node].append(f"tree_{node}")
        labels[rng.randrange(node)].append(f"tree_{node}")
    for extra in range(rng.randint(0, nodes // 3)):
        bonds[f"extra_{extra}"] = rng.choice((2, 3, 4, 8))
        for node in rng.sample(range(nodes), min(nodes, rng.choice((2, 3, 4)))):
            labels[node].append(f"extra_{extra}")
    for label in [*(f"expert_{mode}" for mode in range(modes)), "in", "out"]:
        labels[rng.randrange(nodes)].append(label)
    named = [Node(f"node_{number}", tuple(mine)) for number, mine in enumerate(labels)]
    bonds = {bond: size for bond, size in bonds.items() if sum(bond in mine for mine in labels) > 1}
    dims = [rng.choice((2, 4, 8, 16)) for _ in range(modes)]
    features = rng.choice((16, 64, 256)), rng.choice((16, 64, 256))
    return TensorNetwork.from_modes(dims, *features, nodes=named, bonds=bonds)


def compare(effort: Effort, sizes: Sizes = SIZES) -> Iterator[Comparison]:
    """Every network with every search that ends in time; a quick effort waits for two seconds at most."""
    first, last = sizes.groups[0][0], sizes.groups[-1][1]
    seconds_allowed = sizes.seconds if effort.compiled else min(2.0, sizes.seconds)
    for seed in range(sizes.networks):
        operands = first + seed * (last + 1 - first) // sizes.networks
        described = network(seed, operands)
        request = forward_request(described, bias=False)
        start = time.perf_counter()
        layer = plan_layer(described, request).at(SAMPLES).at_batch_size(SAMPLES)
        seconds = time.perf_counter() - start
        ours = make_plan(described, request, SAMPLES)
        for name, find in _searches(operands).items():
            found = _within(seconds_allowed, described, request, find)
            if found is not None:
                theirs, other_seconds = found
                largest = [plan.largest_intermediate / theirs.largest_intermediate for plan in (ours, layer)]
                ratios = ours.flops / theirs.flops, plan_cost(ours) / plan_cost(theirs), *largest
                yield Comparison(operands, name, *ratios, seconds, other_seconds)


def markdown(comparisons: Sequence[Comparison], sizes: Sizes = SIZES) -> str:
    """The table, a row for each number of operands and search, and the networks on which another order costs less."""
    header = ["operands", "search", "ended", "FLOPs", "cost", "largest intermediate", "the layer's"]
    header += ["seconds, a layer's plans", "seconds, theirs"]
    lines = ["| " + " | ".join(header) + " |", "|---|---|" + "---:|" * (len(header) - 2)]
    for low, high in sizes.groups:
        group = [c for c in comparisons if low <= c.operands <= high]
        for other in dict.fromkeys(c.other for c in group):
            mine = [c for c in group if c.other == other]
            cells = [
                _spread([getattr(c, name) for c in mine]) for name in ("flops", "cost", "largest", "layer_largest")
            ]
            times = [[c.seconds for c in mine], [c.other_seconds for c in mine]]
            cells += [f"{statistics.median(each):.3f} (up to {max(each):.2f})" for each in times]
            lines.append("| " + " | ".join((f"{low} to {high}", other, str(len(mine)), *cells)) + " |")
    lost = [c for c in comparisons if c.cost > 1 + 1e-9]
    lines.append("")
    if not lost:
        lines.append("No other order costs less by the planner's account.")
    lines += [f"- {c.operands} operands, {c.other}: {c.cost:.3f} of its cost, {c.flops:.3f} of its FLOPs" for c in lost]
    return "\n".join(lines) + "\n"


def _spread(ratios: Sequence[float]) -> str:
    ordered = sorted(ratios)
    return f"{statistics.median(ordered):.2f} ({ordered[0]:.2f} to {ordered[-1]:.2f})"


def _searches(operands: int) -> dict[str, Find]:
    """The other libraries' searches: exhaustive ones where operands are few."""
    import cotengra
    import opt_einsum

    def dynamic(inputs: list[tuple[str, ...]], output: tuple[str, ...], sizes: dict[str, int]) -> Any:
        number = {label: count for count, label in enumerate(sizes)}
        sets = [frozenset(number[x] for x in labels) for labels in inputs]
        search = opt_einsum.paths.DynamicProgramming(minimize="flops")
        return search(sets, frozenset(number[x] for x in output), dict(enumerate(sizes.values())))

    searches: dict[str, Find] = {
        "opt_einsum, dynamic programming": dynamic,
        "cotengra, greedy": cotengra.GreedyOptimizer(),
    }
    if operands <= 10:
        searches["cotengra, optimal"] = cotengra.OptimalOptimizer(search_outer=True)
    return searches


def _within(
    seconds: float, described: TensorNetwork, request: Request, find: Find
) -> tuple[ContractionPlan, float] | None:
    """The plan along the order that is found and the seconds that took, or ``None`` if it takes too long."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    ((inputs, output),) = contractions(described, request)
    sizes = described.sizes | {BATCH: SAMPLES}
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    start = time.perf_counter()
    try:
        try:
            path = find(inputs, output, sizes)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except TimeoutError:  # in the search, or late, while the timer was being stopped
        return None
    finally:
        signal.signal(signal.SIGALRM, before)
    took = time.perf_counter() - start
    return plan_along(described, request, path, SAMPLES), took
