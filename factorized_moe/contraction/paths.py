"""Orders as other libraries write them: opt_einsum's linear format, which cotengra's trees give as well.

A path is a list of pairs of positions in a list of operands. The two are taken out of the list, and what they make is
put at its end. The operands are a term's nodes, in order, then the input and the coefficients of each expert mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from factorized_moe._scalars import is_whole
from factorized_moe.contraction.operations import Add
from factorized_moe.contraction.plan import ContractionPlan, Request
from factorized_moe.contraction.planning import plan_in_order
from factorized_moe.contraction.search import Pairs
from factorized_moe.network import BATCH, TensorNetwork

__all__ = ["Path", "contractions", "paths_of", "plan_along"]

Path = Sequence[tuple[int, int]]
"""A contraction order in opt_einsum's linear format: pairs of positions in the list of operands."""


def contractions(network: TensorNetwork, request: Request) -> list[tuple[list[tuple[str, ...]], tuple[str, ...]]]:
    """The labels of a contraction's operands and of its result, term by term, for another library's search of an order.

    Args:
        network: The network; ``network.sizes`` has the sizes of its labels, and ``"batch"`` is that of the samples.
        request: What is asked of it.

    Examples:
        >>> from factorized_moe.contraction import forward_request
        >>> network = TensorNetwork.parse("in a, a b, b out; in=4 out=5 a=2 b=3")
        >>> contractions(network, forward_request(network, bias=False))
        [([('in', 'a'), ('a', 'b'), ('b', 'out'), ('batch', 'in')], ('batch', 'out'))]
    """
    batch = (BATCH,) if request.vectors else ()
    vectors = [(*batch, *labels) for labels in request.vectors]
    return [
        (
            [tuple(x for x in node.labels if x not in request.fixed) for node in term] + vectors,
            (*batch, *request.output),
        )
        for term in network.terms
    ]


def plan_along(
    network: TensorNetwork, request: Request, path: Path | Sequence[Path], batch_size: int
) -> ContractionPlan:
    """Make the plan of a given contraction order, such as opt_einsum or cotengra find.

    Args:
        network: The network.
        request: What is asked of it.
        path: The path; of a sum of several terms, one for each.
        batch_size: The number of samples to report costs for.

    Raises:
        TypeError: If it is no such sequence of pairs of ints.
        ValueError: If it does not contract all operands to one; the message says at which pair.

    Examples:
        >>> from factorized_moe.contraction import forward_request
        >>> network = TensorNetwork.parse("in a, a b, b out; in=4 out=5 a=2 b=3")
        >>> plan = plan_along(network, forward_request(network, bias=False), [(0, 3), (0, 2), (0, 1)], 64)
        >>> [step.formula for step in plan.steps]
        ['in, in a -> a', 'a, a b -> b', 'b, b out -> out']
    """
    terms = network.terms
    if isinstance(path, str) or not isinstance(path, Sequence):
        raise TypeError(f"path is a sequence of pairs of positions such as [(0, 2), (0, 1)], got {path!r}")
    paths: Sequence[Any] = [path] if len(terms) == 1 and not _is_nested(path) else path
    if len(paths) != len(terms):
        raise ValueError(f"path has {len(paths)} entries, expected {len(terms)}: one path for each term of the network")
    orders = [
        _checked(mine, len(term) + len(request.vectors), f"path of term {number}" if len(terms) > 1 else "path")
        for number, (mine, term) in enumerate(zip(paths, terms, strict=True))
    ]
    return plan_in_order(network, request, orders, batch_size)


def paths_of(plan: ContractionPlan) -> list[list[tuple[int, int]]]:
    """A plan's contraction order in opt_einsum's linear format, one path for each term of its network.

    Args:
        plan: The plan.

    Examples:
        >>> from factorized_moe.contraction import forward_request
        >>> network = TensorNetwork.parse("in a, a b, b out; in=4 out=5 a=2 b=3")
        >>> plan = plan_along(network, forward_request(network, bias=False), [(0, 3), (0, 2), (0, 1)], 64)
        >>> paths_of(plan)
        [[(0, 3), (0, 2), (0, 1)]]
    """
    first = len(plan.network.nodes)
    first_result = first + len(plan.request.vectors)
    values = first_result + len(plan.steps)
    answers = [values - 1]
    while answers[0] >= first_result and isinstance(plan.steps[answers[0] - first_result].operation, Add):
        answers[:1] = plan.steps[answers[0] - first_result].operands
    paths, start = [], 0
    for term, answer in zip(plan.network.terms, answers, strict=True):
        members, waiting = set(), [answer]
        while waiting:  # the steps that this term's answer is made by
            value = waiting.pop()
            if value >= first_result and value not in members:
                members.add(value)
                waiting += plan.steps[value - first_result].operands
        live = [*range(start, start + len(term)), *range(first, first_result)]
        alias = {value: value for value in live}
        path = []
        for value in sorted(members):
            mine = [alias[operand] for operand in plan.steps[value - first_result].operands]
            alias[value] = mine[0] if len(mine) == 1 else value
            if len(mine) == 2:
                path.append((live.index(mine[0]), live.index(mine[1])))
                live = [other for other in live if other not in mine] + [value]
        paths.append([(min(pair), max(pair)) for pair in path])
        start += len(term)
    return paths


def _is_nested(path: Sequence[Any]) -> bool:
    """Whether a path is a list of paths: its first entry's first entry is a pair."""
    first = path[0] if path else None
    return isinstance(first, Sequence) and bool(first) and not isinstance(first[0], Integral)


def _checked(path: Any, count: int, what: str) -> Pairs:
    """A path as positions that go on counting."""
    if isinstance(path, str) or not isinstance(path, Sequence):
        raise TypeError(f"{what} is a sequence of pairs of positions such as [(0, 2), (0, 1)], got {path!r}")
    live, pairs = list(range(count)), []
    for number, pair in enumerate(path):
        if isinstance(pair, tuple | list) and len(pair) == 1 and pair[0] in range(len(live)):
            live.append(live.pop(pair[0]))  # a step on one operand, as some searches write: it moves to the end
            continue
        whole = isinstance(pair, Sequence) and not isinstance(pair, str)
        if not whole or any(not is_whole(p) for p in pair):
            raise TypeError(f"{what}: step {number} is {pair!r}, expected two positions, as in (0, 2)")
        if len(pair) != 2 or pair[0] == pair[1]:
            raise ValueError(
                f"{what}: step {number} is {tuple(pair)}, expected two different positions: plans contract in pairs"
            )
        if not all(0 <= p < len(live) for p in pair):
            raise ValueError(
                f"{what}: step {number} is {tuple(pair)}, but {len(live)} operands are left, numbered from 0; "
                f"the {count} operands are the nodes, the input and the coefficients of each expert mode"
            )
        one, two = (live[int(p)] for p in pair)
        pairs.append((one, two))
        live = [p for p in live if p not in (one, two)] + [count + len(pairs) - 1]
    if len(live) > 1:
        raise ValueError(
            f"{what} has {len(pairs)} steps and leaves {len(live)} operands, expected {count - 1} steps for the "
            f"{count} operands: the nodes, the input and the coefficients of each expert mode"
        )
    return pairs
