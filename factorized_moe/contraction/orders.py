"""The order in which one term of a network is contracted with a request's vectors, at any batch size.

Up to `EXHAUSTIVE` operands all orders are tried. Above, orders are collected from several simple ways and improved in
parts: a vector that shares its label with one node only is contracted with that node and what remains is searched,
exhaustively if it is little enough; pairs are merged by rules; and where the term is loosely connected, opt_einsum's
dynamic programming is fast. The cheapest is taken.

This is the only module that imports opt_einsum, and nothing of it runs in a forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from opt_einsum.paths import DynamicProgramming

from factorized_moe.contraction.exhaustive import EXHAUSTIVE, AllOrders, search_order
from factorized_moe.contraction.large import DRAWN, search_large
from factorized_moe.contraction.search import MOVED, Operand, Pairs, merged_operand
from factorized_moe.contraction.steps import Steps
from factorized_moe.network import BATCH

__all__ = ["CONNECTED_SETS", "TermOrders"]

CONNECTED_SETS = 1500
"""Up to so many sets of connected operands, opt_einsum's dynamic programming, which visits their pairs, takes no time.

A chain of 50 cores has 1,275. A Tucker core with 20 vectors has a million, and so have 20 factors that share CP's rank.
"""


class TermOrders:
    """The orders of one term.

    Args:
        operands: The term's nodes, then the vectors.
        output: The labels that the result keeps.
        sizes: The size of every label but the batch's.
        moved: The cost of an element moved, in FLOPs.
    """

    def __init__(
        self, operands: Sequence[Operand], output: frozenset[str], sizes: dict[str, int], moved: float = MOVED
    ) -> None:
        self.operands = tuple(operands)
        self.output = output
        self._sizes = sizes
        self._moved = moved
        self._steps: dict[int, Steps] = {}

    @property
    def exhaustive(self) -> bool:
        """Whether all orders are tried."""
        return len(self.operands) <= EXHAUSTIVE

    @cached_property
    def _all(self) -> AllOrders:
        return AllOrders(self.operands, self.output, self._sizes, self._moved)

    def cheapest(
        self, batch_size: int, limit: int | None = None, known: Sequence[tuple[int, int]] = ()
    ) -> Pairs | None:
        """The cheapest order, or of many operands a good one.

        Args:
            batch_size: The number of samples.
            limit: The most elements that any intermediate may have.
            known: A good order at another batch size: of many operands little more is tried than to improve it.

        Returns:
            The order, or ``None`` if none is found within the limit.
        """
        if self.exhaustive:
            found = self._all.cheapest(batch_size, limit)
            return None if found is None else self._vectors_first(found[1])
        return self._of_many(batch_size, limit, smallest=False, nearby=known)

    def smallest(self, batch_size: int, limit: int | None = None) -> Pairs | None:
        """The order whose largest intermediate is smallest; the cost decides between equals."""
        if self.exhaustive:
            least = self._all.smallest(batch_size)
            found = self._all.cheapest(batch_size, least) if limit is None or least <= limit else None
            return None if found is None else self._vectors_first(found[1])
        return self._of_many(batch_size, limit, smallest=True)

    def balanced(self, batch_size: int) -> Pairs:
        """Of the orders that cost nearly the least, the one with the smallest largest intermediate.

        Of many operands it is the cheapest that was found.
        """
        if self.exhaustive:
            return self._vectors_first(self._all.balanced(batch_size)[1])
        found = self.cheapest(batch_size)
        assert found is not None  # without a limit there is always an order
        return found

    def folded(self, batch_size: int) -> Pairs | None:
        """The cheapest order if results of parameters alone are stored; ``None`` of many operands.

        None of these results that meets samples has more elements than the parameters it is made of.
        """
        found = self._all.cheapest(batch_size, folded=True) if self.exhaustive else None
        return None if found is None else found[1]

    def absorbed(self, batch_size: int, limit: int | None = None, smallest: bool = False) -> Pairs | None:
        """The best order that begins with every vector meeting the one node that it shares its label with.

        Of what then remains, if it is too much for all orders, only connected operands are contracted.

        Returns:
            The order, or ``None`` if there is none within the limit, or what remains is too much for that as well.
        """
        sizes = self._sizes | {BATCH: batch_size}
        pairs = list(self._absorbed_pairs)
        names, left = list(self._remaining), list(self._remaining.values())
        found: Pairs | None = None
        if len(left) <= EXHAUSTIVE:
            found = search_order(left, self.output, sizes, moved=self._moved, limit=limit, smallest=smallest)
        elif self._remains_loosely_connected:
            found = _dynamic_programming(left, self.output, sizes, limit, smallest)
        if found is None:
            return None
        for one, two in found:
            pairs.append((names[one], names[two]))
            names.append(len(self.operands) + len(pairs) - 1)
        return pairs

    def cost(self, pairs: Sequence[tuple[int, int]], batch_size: int) -> float:
        """What an order costs."""
        return self._steps_at(batch_size).cost(pairs)[1]

    def largest(self, pairs: Sequence[tuple[int, int]], batch_size: int) -> int:
        """The elements of an order's largest intermediate."""
        return self._steps_at(batch_size).cost(pairs)[0]

    def _steps_at(self, batch_size: int) -> Steps:
        """The costs of steps at a batch size: the orders that are compared have many in common."""
        if batch_size not in self._steps:
            self._steps[batch_size] = Steps(self.operands, self.output, self._sizes | {BATCH: batch_size}, self._moved)
        return self._steps[batch_size]

    @cached_property
    def _absorbed_pairs(self) -> Pairs:
        nodes = [p for p, operand in enumerate(self.operands) if operand.memory is not None]
        vectors = [p for p, operand in enumerate(self.operands) if operand.memory is None]
        labels = [operand.labels - {BATCH} for operand in self.operands]
        partners = {v: [n for n in nodes if labels[n] & labels[v]] for v in vectors}
        # Only where vector and node have each other alone.
        return [
            (vector, mine[0])
            for vector, mine in partners.items()
            if len(mine) == 1 and all(mine[0] not in theirs for v, theirs in partners.items() if v != vector)
        ]

    @cached_property
    def _remaining(self) -> dict[int, Operand]:
        """What is left after the pairs that are absorbed, by position."""
        live = dict(enumerate(self.operands))
        for count, (one, two) in enumerate(self._absorbed_pairs):
            made = merged_operand(live.pop(one), live.pop(two), self.output, live.values())
            live[len(self.operands) + count] = made
        return live

    @cached_property
    def _remains_loosely_connected(self) -> bool:
        return _is_loosely_connected(list(self._remaining.values()), self.output)

    @cached_property
    def _loosely_connected(self) -> bool:
        return _is_loosely_connected(self.operands, self.output)

    def _of_many(
        self, batch_size: int, limit: int | None, smallest: bool, nearby: Sequence[tuple[int, int]] = ()
    ) -> Pairs | None:
        sizes = self._sizes | {BATCH: batch_size}
        starts = [self.absorbed(batch_size, limit, smallest)]
        if self._absorbed_pairs and self._loosely_connected:
            starts.append(_dynamic_programming(self.operands, self.output, sizes, limit, smallest))
        known = [pairs for pairs in starts if pairs is not None]
        if self._absorbed_pairs:
            known.append(self._absorbed_pairs)
        found = search_large(
            self.operands,
            self.output,
            sizes,
            moved=self._moved,
            limit=limit,
            smallest=smallest,
            starts=[*known, list(nearby)] if nearby else known,
            drawn=0 if nearby else DRAWN,
        )
        return None if found is None else self._vectors_first(found)

    def _vectors_first(self, pairs: Pairs) -> Pairs:
        """The same tree, its steps on a vector and a node before the others and in the order of the vectors."""
        count = len(self.operands)

        def vector(pair: tuple[int, int]) -> int:
            node, other = min(pair), max(pair)  # nodes are numbered before vectors
            absorbed = other < count and self.operands[node].memory and self.operands[other].memory is None
            return other if absorbed else count

        numbers = sorted(range(len(pairs)), key=lambda k: vector(pairs[k]))  # stable: a step stays behind what it uses
        place = {count + k: count + new for new, k in enumerate(numbers)}
        return [(place.get(one, one), place.get(two, two)) for one, two in (pairs[k] for k in numbers)]


def _dynamic_programming(
    operands: Sequence[Operand], output: frozenset[str], sizes: dict[str, int], limit: int | None, smallest: bool
) -> Pairs | None:
    """The order of fewest FLOPs, or of the smallest intermediates, without outer products."""
    # Labels on one operand only are summed within the step that uses it. Ints instead of strings, because the
    # iteration order of string sets, and with it the choice among equals, differs from process to process.
    number = {label: k for k, label in enumerate(sizes)}
    carried = [x for operand in operands for x in operand.labels]
    kept = [frozenset(number[x] for x in o.labels if x in output or carried.count(x) > 1) for o in operands]
    search = DynamicProgramming(minimize="size" if smallest else "flops")
    try:
        path = search(kept, frozenset(number[x] for x in output), dict(enumerate(sizes.values())), limit)
    except RuntimeError:  # opt_einsum's word for "no contraction within the limit"
        return None
    live, pairs = list(range(len(operands))), []
    for pair in path:
        pairs.append((live[pair[0]], live[pair[1]]))
        live = [p for k, p in enumerate(live) if k not in pair] + [len(operands) + len(pairs) - 1]
    return pairs


def _is_loosely_connected(operands: Sequence[Operand], output: frozenset[str]) -> bool:
    """Whether few sets of operands are connected by labels to be summed: those of a chain, not of a star."""
    summed = [operand.labels - output for operand in operands]
    beside = [sum(1 << k for k, other in enumerate(summed) if other & mine and other is not mine) for mine in summed]
    seen = {1 << k for k in range(len(operands))}
    waiting = list(seen)
    while waiting:
        members = waiting.pop()
        around = 0
        for k, neighbours in enumerate(beside):
            if members >> k & 1:
                around |= neighbours
        for k in range(len(operands)):
            larger = members | 1 << k
            if around >> k & 1 and larger not in seen:
                seen.add(larger)
                waiting.append(larger)
        if len(seen) > CONNECTED_SETS:
            return False
    return True
