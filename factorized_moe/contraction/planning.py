"""From a network and a request to a plan: a fixed list of pairwise steps, each lowered to one operation.

A request says which per-sample vectors are contracted with the network and which labels the result keeps: the
forward pass, the dense tensor and one expert's matrix are three requests on the same network. The order of the steps
is found in two stages: a vector that shares its labels with one node only is absorbed into that node first; the few
operands that remain are searched exhaustively by opt_einsum's dynamic programming. (A search over all operands is
misled by labels that join more than two of them, and takes 100 times longer; see docs/architecture.md.)

This is the only module that imports opt_einsum, and nothing of it runs in a forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from opt_einsum.paths import DynamicProgramming

from factorized_moe.contraction.lowering import Draft, lower
from factorized_moe.contraction.operations import Operation
from factorized_moe.network import BATCH, Node, TensorNetwork

__all__ = ["ContractionPlan", "Request", "Step", "dense_request", "forward_request", "make_plan"]

DEFAULT_BATCH_SIZE = 64
"""Samples assumed when a plan's order is chosen. The choice hardly matters: over 1 to 32,768 samples the best order
changes the FLOPs by at most 7%, so a layer is planned once, at construction."""

EXHAUSTIVE_OPERANDS = 9
"""Up to so many operands the search also tries outer products; 3**n splits are tried."""


@dataclass(frozen=True)
class Request:
    """What is asked of a network.

    Args:
        vectors: For each per-sample operand, its labels (without the batch's).
        output: The labels that the result keeps, in order (without the batch's).
        fixed: Labels that every operand has been sliced at; they are gone from the nodes.
        append_one: Whether the first vector lacks the last entry of its label, a constant 1: the bias row.
    """

    vectors: tuple[tuple[str, ...], ...]
    output: tuple[str, ...]
    fixed: frozenset[str] = frozenset()
    append_one: bool = False


def forward_request(network: TensorNetwork, bias: bool) -> Request:
    """The forward pass: contract the input ``(B, I)`` and one vector ``(B, N_k)`` for each expert mode."""
    vectors = (network.in_labels, *((label,) for label in network.expert_labels))
    return Request(vectors, network.out_labels, append_one=bias)


def dense_request(network: TensorNetwork, fixed: Iterable[str] = ()) -> Request:
    """The dense tensor, or the slice of it at fixed expert labels."""
    gone = frozenset(fixed)
    return Request((), tuple(label for label in network.external_labels if label not in gone), fixed=gone)


@dataclass(frozen=True)
class Step:
    """One step of a plan.

    Attributes:
        operands: The positions of its one or two operands among the values so far.
        operation: What is done with them.
        labels: The labels of the result, in memory order.
        formula: The step in words, ``in, in rank -> rank``.
        flops: Multiplications and additions at the plan's batch size.
        elements: Elements of the result at the plan's batch size.
        frees: Earlier steps' values that no later step needs.
    """

    operands: tuple[int, ...]
    operation: Operation
    labels: tuple[str, ...]
    formula: str
    flops: int
    elements: int
    frees: tuple[int, ...] = ()


@dataclass(frozen=True)
class ContractionPlan:
    """A fixed list of pairwise steps that answers one request on one network.

    The values are numbered: first the network's nodes, then the request's vectors, then each step's result. The last
    value is the answer. A plan holds no tensors; it is hashable and pickles, and is valid for every batch size.

    Attributes:
        network: The network that is contracted.
        request: What is asked of it.
        batch_size: The samples for which costs are reported.
        steps: The steps, in order.
    """

    network: TensorNetwork
    request: Request
    batch_size: int
    steps: tuple[Step, ...]

    @property
    def flops(self) -> int:
        """Multiplications and additions at the plan's batch size; a multiply-add counts as two."""
        return sum(step.flops for step in self.steps)

    @property
    def largest_intermediate(self) -> int:
        """Elements of the largest value that any step makes, the result included, at the plan's batch size."""
        return max((step.elements for step in self.steps), default=0)

    def __repr__(self) -> str:
        rows = [(s.formula, type(s.operation).__name__, f"{s.flops:,}", f"{s.elements:,}") for s in self.steps]
        rows = [("step", "operation", "FLOPs", "elements"), *rows]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            f"ContractionPlan for {len(self.network.nodes)} nodes, batch size {self.batch_size:,}: "
            f"{self.flops:,} FLOPs, largest intermediate {self.largest_intermediate:,} elements"
        ]
        for row in rows:
            left = "  ".join(cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False))
            right = "  ".join(cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))
            lines.append(f"  {left}  {right}")
        return "\n".join(lines)


@lru_cache(maxsize=4096)
def make_plan(network: TensorNetwork, request: Request, batch_size: int = DEFAULT_BATCH_SIZE) -> ContractionPlan:
    """Plan a request: a cached, deterministic, pure function of the description.

    Args:
        network: The network.
        request: What is asked of it.
        batch_size: The number of samples to plan and report costs for.

    Returns:
        The plan, valid for every batch size.

    Raises:
        ValueError: If the batch size is not a positive int.

    Example:
        >>> from factorized_moe.decompositions import get_decomposition
        >>> network = get_decomposition("cp").network((8,), 16, 32, rank=4)
        >>> make_plan(network, forward_request(network, bias=False), batch_size=1)
        ContractionPlan for 3 nodes, batch size 1: 452 FLOPs, largest intermediate 32 elements
          step                             operation  FLOPs  elements
          in, in rank -> rank              MatMul       128         4
          expert_0, expert_0 rank -> rank  MatMul        64         4
          rank, rank -> rank               Multiply       4         4
          rank, out rank -> out            MatMul       256        32
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive int, got {batch_size!r}")
    sizes = network.sizes | {BATCH: batch_size}
    batch = (BATCH,) if request.vectors else ()
    vectors = [(*batch, *labels) for labels in request.vectors]
    output = (*batch, *request.output)
    position = {node.name: number for number, node in enumerate(network.nodes)}
    first_vector = len(position)

    drafts: list[Draft] = []
    answers: list[int] = []
    next_value = first_vector + len(vectors)
    for term in network.terms:
        leaves = {position[n.name]: tuple(x for x in n.labels if x not in request.fixed) for n in term}
        leaves |= {first_vector + k: labels for k, labels in enumerate(vectors)}
        pairs = _contraction_order(term, leaves, first_vector, frozenset(output), sizes)
        term_drafts = _number(pairs, leaves, output, next_value)
        drafts += term_drafts
        next_value += len(term_drafts)
        answers.append(next_value - 1)
    padded = first_vector if request.append_one else None
    first_result = first_vector + len(vectors)
    lowered = lower(drafts, answers, output, sizes, padded=padded, first_free=first_result)
    last_use = {p: k for k, (operands, *_) in enumerate(lowered) for p in operands if p >= first_result}
    frees = [tuple(p for p, last in last_use.items() if last == k) for k in range(len(lowered))]
    steps = tuple(Step(*step, frees=freed) for step, freed in zip(lowered, frees, strict=True))
    return ContractionPlan(network, request, batch_size, steps)


def _contraction_order(
    term: tuple[Node, ...],
    leaves: dict[int, tuple[str, ...]],
    first_vector: int,
    output: frozenset[str],
    sizes: dict[str, int],
) -> list[tuple[int, int]]:
    """Pairs of positions to contract, counting on from the leaves: a merged pair takes the next negative number."""
    values = {position: frozenset(labels) for position, labels in leaves.items()}
    pairs: list[tuple[int, int]] = []

    def merge(left: int, right: int) -> None:
        union = values.pop(left) | values.pop(right)
        kept = output.union(*values.values())
        pairs.append((left, right))
        values[-len(pairs)] = union & kept

    nodes = [position for position in leaves if position < first_vector]
    vectors = [position for position in leaves if position >= first_vector]
    partner = {v: [n for n in nodes if values[n] & (values[v] - {BATCH})] for v in vectors}
    for vector in vectors:
        mine = partner[vector]
        # Only where vector and node have each other alone; anything else is left to the search.
        if len(mine) == 1 and [mine] == [partner[v] for v in vectors if mine[0] in partner[v]]:
            merge(vector, mine[0])
    remaining = list(values)
    for left, right in _search([values[p] for p in remaining], output, sizes):
        first, second = remaining[left], remaining[right]
        merge(first, second)
        remaining = [p for p in remaining if p not in (first, second)] + [-len(pairs)]
    return pairs


def _search(operands: list[frozenset[str]], output: frozenset[str], sizes: dict[str, int]) -> list[tuple[int, int]]:
    """The order of fewest FLOPs for a few operands, as positions in the shrinking list of operands."""
    if len(operands) < 2:
        return []
    # Labels on one operand only are summed within the step that uses it. Ints instead of strings, because the
    # iteration order of string sets, and with it the choice among equals, differs from process to process.
    number = {label: k for k, label in enumerate(sizes)}
    counts: dict[str, int] = {}
    for operand in operands:
        for label in operand:
            counts[label] = counts.get(label, 0) + 1
    inputs = [frozenset(number[x] for x in operand if x in output or counts[x] > 1) for operand in operands]
    search = DynamicProgramming(minimize="flops", search_outer=len(operands) <= EXHAUSTIVE_OPERANDS)
    path = search(
        inputs,
        frozenset(number[x] for x in output),
        {number[x]: size for x, size in sizes.items()},
    )
    return [(pair[0], pair[1]) for pair in path]


def _number(
    pairs: list[tuple[int, int]], leaves: dict[int, tuple[str, ...]], output: tuple[str, ...], next_value: int
) -> list[Draft]:
    """Drafts of a term's steps with their final positions, closed by one that arranges the answer."""
    labels = {position: frozenset(names) for position, names in leaves.items()}
    place = {position: position for position in leaves}
    waiting = set(leaves)
    drafts: list[Draft] = []
    for count, (left, right) in enumerate(pairs, start=1):
        waiting -= {left, right}
        kept = frozenset(output).union(*(labels[p] for p in waiting))
        drafts.append(Draft((place[left], place[right]), {place[p]: leaves.get(p) for p in (left, right)}, kept))
        labels[-count] = (labels[left] | labels[right]) & kept
        place[-count] = next_value + count - 1
        waiting.add(-count)
    (last,) = waiting
    drafts.append(Draft((place[last],), {place[last]: leaves.get(last)}, frozenset(output)))
    return drafts
