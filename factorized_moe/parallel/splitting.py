"""A contraction plan over several ranks: where every value lies, what is sent between steps, and what that costs.

Each step of a plan acts on two values at most, with named labels. So a step can be done piecewise along any of its
labels: its operands are cut along the label, or used as they are where they lack it, and the result is a piece, or a
summand where the label is contracted. Dynamic programming over the plan's tree takes the cheapest layouts.

Legend: ``p`` ranks, ``B`` samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from factorized_moe.contraction import ContractionPlan, Step
from factorized_moe.contraction.operations import Add, AppendConstants
from factorized_moe.network import BATCH
from factorized_moe.parallel.machine import Machine
from factorized_moe.parallel.placing import COPY, SUMMAND, WHOLE, Layout, collectives, share, split_along

__all__ = ["SplitPlan", "Use", "single_label", "split_plan"]


@dataclass(frozen=True)
class Use:
    """How a step uses an operand: the value's layout where it was made, and the one that the step needs.

    ``realigned`` says that a node's input rows are first exchanged between ranks so that they fit an input that comes
    cut without the bias's constant 1.
    """

    position: int
    source: Layout
    target: Layout
    realigned: bool = False


@dataclass(frozen=True)
class SplitPlan:
    """A contraction plan over several ranks: where each value lies and what is sent. It holds no tensors.

    Attributes:
        plan: The plan; its batch size is the one that costs are reported for.
        ranks: ``p``.
        stored: For each parameter the label that it is cut along, or ``None`` where every rank holds all of it.
        uses: For each step, how it uses its operands.
        layouts: The layout of each value, as it is made.
        answer: The layout that the answer is brought to.
        fractions: For each step the part of its FLOPs that the rank with most of them does.
    """

    plan: ContractionPlan
    ranks: int
    stored: tuple[tuple[str, str | None], ...]
    uses: tuple[tuple[Use, ...], ...]
    layouts: tuple[Layout, ...]
    answer: Layout
    fractions: tuple[float, ...]

    @property
    def input_layout(self) -> Layout:
        """How the input comes: whole, or split along its label."""
        return self.layouts[len(self.plan.network.nodes)]

    @property
    def flops(self) -> int:
        """FLOPs of a forward pass on the rank that does most."""
        return round(sum(s.flops * f for s, f in zip(self.plan.steps, self.fractions, strict=True)))

    @property
    def parameters(self) -> int:
        """Parameters on the rank that holds most."""
        return self.parameters_of(0)

    def parameters_of(self, rank: int) -> int:
        """Parameters that a rank holds."""
        sizes, shapes = self.plan.network.sizes, self.plan.network.parameter_shapes
        labels = {node.parameter: node.labels for node in self.plan.network.nodes}
        total = 0
        for name, label in self.stored:
            count = 1
            for axis, size in zip(labels[name], shapes[name], strict=True):
                count *= share(sizes[label], self.ranks, rank) if axis == label and label is not None else size
            total += count
        return total

    def traffic(self, *, backward: bool = False) -> list[tuple[str, int]]:
        """The collectives of a forward pass, or of its backward pass where every operand needs its gradient.

        Returns:
            For each its name, and the elements that a rank sends in it (a ring's, for large tensors).
        """
        found, entered = [], 0
        for position in sorted(self.entered):
            entered += self._elements(position)
        if backward and entered:
            found.append(("all_reduce", entered))
        for use in self._moves():
            pair = collectives(use.source, use.target)
            assert pair is not None  # the planner takes no other
            if use.realigned:
                found.append(("all_to_all", self._elements(use.position) // self._input_size))
            elif not (use.source == WHOLE and use.target == COPY and use.position in self.entered):
                found.append((pair[backward], self._elements(use.position)))
        return [(kind, _sent(kind, elements, self.ranks)) for kind, elements in found if _is_sent(kind)]

    @property
    def entered(self) -> frozenset[int]:
        """The positions of nodes and vectors that every rank holds, and whose gradients are added up together."""
        leaves = len(self.plan.network.nodes) + len(self.plan.request.vectors)
        uses = [use for step in self.uses for use in step if use.position < leaves]
        return frozenset(use.position for use in uses if (use.source, use.target) == (WHOLE, COPY))

    def seconds(self, machine: Machine, *, training: bool = True) -> float:
        """The time of a forward pass, and if ``training`` of its backward pass, which does twice the FLOPs."""
        sent = self.traffic() + (self.traffic(backward=True) if training else [])
        flops = self.flops * (3 if training else 1)
        moved = sum(elements for _, elements in sent) * machine.bytes_per_element
        return flops / machine.flops_per_second + moved / machine.bytes_per_second + len(sent) * machine.latency

    def _moves(self) -> Iterator[Use]:
        for uses in self.uses:
            yield from uses
        last = len(self.layouts) - 1
        yield Use(last, self.layouts[last], self.answer)

    def _elements(self, position: int) -> int:
        return _elements(self.plan, position)

    @property
    def _input_size(self) -> int:
        return self.plan.network.size_of(self.plan.network.in_labels)


def single_label(plan: ContractionPlan, label: str) -> dict[str, str | None]:
    """Every parameter that has the label cut along it, the others whole.

    Raises:
        ValueError: If no node has the label.
    """
    if not any(label in node.labels for node in plan.network.nodes):
        known = list(plan.network.sizes)
        raise ValueError(f"label {label!r} is on no node of the network; its labels are {known}")
    return {node.parameter: label if label in node.labels else None for node in plan.network.nodes}


def split_plan(
    plan: ContractionPlan,
    ranks: int,
    stored: Mapping[str, str | None] | None = None,
    *,
    input_split: bool = False,
    output_split: bool = False,
    machine: Machine | None = None,
) -> SplitPlan | None:
    """Find the cheapest way to run a plan over several ranks: the layout of every value.

    Args:
        plan: The plan of a forward pass, at the batch size to weigh costs for.
        ranks: ``p``.
        stored: For each parameter the label that it is cut along, ``None`` for none; the cheapest ones by default.
        input_split: Whether the input comes cut along its label, and its gradient leaves so.
        output_split: Whether the output is left cut along its label.
        machine: What costs are weighed by.

    Returns:
        The plan, or ``None`` where the input or the output cannot be split.

    Raises:
        ValueError: If the network has fixed nodes, which cannot be cut.

    Examples:
        >>> from factorized_moe import FactorizedExpertTensor
        >>> w = FactorizedExpertTensor((8,), 16, 32, "cp", rank=4)
        >>> split = split_plan(w.plan(), 2, single_label(w.plan(), "rank"))
        >>> split.traffic(), split.parameters
        ([('all_reduce', 2048)], 112)
    """
    network = plan.network
    if fixed := [node.name for node in network.nodes if node.fixed is not None]:
        raise ValueError(f"nodes {fixed} are fixed, and a tensor with fixed nodes cannot be sharded")
    if input_split and (len(network.in_labels) > 1 or network.in_padding):
        return None
    if output_split and len(network.out_labels) > 1:
        return None
    search = _Search(plan, ranks, stored, input_split, machine or Machine())
    return search.solve(split_along(network.out_labels[0]) if output_split else WHOLE)


Table = dict[Layout, tuple[float, tuple[Use, ...], float]]
"""For each layout that a value can be made in: the cost so far, the uses of operands, the part of the FLOPs."""


class _Search:
    """Dynamic programming over a plan's values: what each costs in each layout."""

    def __init__(
        self,
        plan: ContractionPlan,
        ranks: int,
        stored: Mapping[str, str | None] | None,
        input_split: bool,
        machine: Machine,
    ) -> None:
        self.plan, self.ranks, self.machine = plan, ranks, machine
        self.nodes = len(plan.network.nodes)
        self.input_split = input_split
        self.labels = _labels(plan)
        first = self.nodes + len(plan.request.vectors)
        appended = [first + k for k, step in enumerate(plan.steps) if isinstance(step.operation, AppendConstants)]
        # A group of input labels comes as one axis, and stays one until a step takes it apart.
        self.flat = {self.nodes, *appended} if len(plan.network.in_labels) > 1 else set()
        self.tables: list[Table] = [self._node(k, stored) for k in range(self.nodes)]
        vectors = len(plan.request.vectors)
        source = split_along(plan.network.in_labels[0]) if input_split else WHOLE
        self.tables += [{source if k == 0 else WHOLE: (0.0, (), 0.0)} for k in range(vectors)]
        for step in plan.steps:
            self.tables.append(self._step(step))

    def solve(self, answer: Layout) -> SplitPlan | None:
        last = len(self.tables) - 1
        best = self._reach(last, answer)
        if best is None:
            return None
        layouts: dict[int, Layout] = {}
        uses: dict[int, tuple[Use, ...]] = {}
        fractions: dict[int, float] = {}
        pending = [(last, best[1].source)]
        while pending:
            position, layout = pending.pop()
            layouts[position] = layout
            _, used, fraction = self.tables[position][layout]
            uses[position], fractions[position] = used, fraction
            pending += [(use.position, use.source) for use in used]
        for position, table in enumerate(self.tables):  # a vector that no step reads
            layouts.setdefault(position, next(iter(table)))
        first = self.nodes + len(self.plan.request.vectors)
        steps = range(first, len(self.tables))
        stored = {n.parameter: layouts[k].label or None for k, n in enumerate(self.plan.network.nodes)}
        return SplitPlan(
            plan=self.plan,
            ranks=self.ranks,
            stored=tuple(stored.items()),
            uses=tuple(uses[k] for k in steps),
            layouts=tuple(layouts[k] for k in range(len(self.tables))),
            answer=answer,
            fractions=tuple(fractions[k] for k in steps),
        )

    def _node(self, position: int, stored: Mapping[str, str | None] | None) -> Table:
        node = self.plan.network.nodes[position]
        if stored is not None:
            label = stored[node.parameter]
            return {split_along(label) if label else WHOLE: (0.0, (), 0.0)}
        # A parameter that every rank holds is also updated by every rank: some 50 FLOPs' time for each entry.
        table: Table = {WHOLE: (50.0 * _elements(self.plan, position) / self.machine.flops_per_second, (), 0.0)}
        shared = sum(other.parameter == node.parameter for other in self.plan.network.nodes) > 1
        if not shared:  # a shared one would have to be cut alike for all its nodes
            table |= {split_along(label): (0.0, (), 0.0) for label in node.labels if self._size(label) > 1}
        return table

    def _size(self, label: str) -> int:
        return self.plan.network.sizes[label]

    def _reach(self, position: int, target: Layout, *, realigned: bool = False) -> tuple[float, Use] | None:
        """The least cost of a value in a layout."""
        best = None
        for source, (cost, _, _) in self.tables[position].items():
            pair = collectives(source, target)
            if pair is None or (realigned and source != target) or not self._allowed(position, source, target):
                continue
            elements = _elements(self.plan, position)
            for kind in pair:
                if _is_sent(kind):
                    sent = _sent(kind, elements, self.ranks) * self.machine.bytes_per_element
                    cost += self.machine.latency + sent / self.machine.bytes_per_second
            if realigned:
                cost += 2 * self.machine.latency
            if best is None or cost < best[0]:
                best = cost, Use(position, source, target, realigned)
        return best

    def _allowed(self, position: int, source: Layout, target: Layout) -> bool:
        if position < self.nodes:  # parameters stay where they are, so a rank's memory is what the report says
            return source in (target, WHOLE)
        if position in self.flat and target.kind == "split":
            return False
        # As a summand, an input would meet the bias's row, which waits for a constant 1, on every rank.
        return position != self.nodes or target != SUMMAND or not self.plan.request.append_one

    def _step(self, step: Step) -> Table:
        table: Table = {}
        for targets, result, label in self._ways(step):
            realigned = self._realigned(step, targets)
            if realigned is None:
                continue
            found = [
                self._reach(position, target, realigned=flag)
                for position, target, flag in zip(step.operands, targets, realigned, strict=True)
            ]
            reached = [x for x in found if x is not None]
            if len(reached) < len(found):
                continue
            size = self._size(label) if label else 1
            fraction = share(size, self.ranks) / size if label else 1.0
            cost = sum(x[0] for x in reached) + 3 * step.flops * fraction / self.machine.flops_per_second
            if result not in table or cost < table[result][0]:
                table[result] = cost, tuple(x[1] for x in reached), fraction
        return table

    def _ways(self, step: Step) -> Iterator[tuple[tuple[Layout, ...], Layout, str | None]]:
        """Layouts of the operands that a step can be done with, its result's, and the label that work is cut along."""
        count = len(step.operands)
        yield (WHOLE,) * count, WHOLE, None
        if isinstance(step.operation, AppendConstants):
            return
        mine = [self.labels[position] for position in step.operands]
        every = [label for label in dict.fromkeys(x for labels in mine for x in labels) if label != BATCH]
        if isinstance(step.operation, Add):
            yield (SUMMAND, SUMMAND), SUMMAND, None
            for label in every:
                yield (split_along(label),) * 2, split_along(label), label
            return
        if count == 1:
            yield (SUMMAND,), SUMMAND, None
        else:
            yield (SUMMAND, COPY), SUMMAND, None
            yield (COPY, SUMMAND), SUMMAND, None
        for label in every:
            targets = tuple(split_along(label) if label in labels else COPY for labels in mine)
            yield targets, split_along(label) if label in step.labels else SUMMAND, label

    def _realigned(self, step: Step, targets: tuple[Layout, ...]) -> tuple[bool, ...] | None:
        """Which operand's input rows are exchanged, if the input comes split; ``None`` where that cannot be done."""
        nothing = (False,) * len(targets)
        if not self.input_split or self.nodes not in step.operands:
            return nothing
        target = targets[step.operands.index(self.nodes)]
        if target.kind != "split":
            # Put together, the input is as wide as it was, without the constant 1.
            return None
        if len(step.operands) != 2 or target != split_along(self.plan.network.in_labels[0]):
            return None
        other = 1 - step.operands.index(self.nodes)
        if step.operands[other] >= self.nodes:
            return None
        return tuple(k == other and self.plan.request.append_one for k in range(2))


def _labels(plan: ContractionPlan) -> list[tuple[str, ...]]:
    """The labels of every value, in the order of its axes."""
    found = [node.labels for node in plan.network.nodes]
    found += [(BATCH, *labels) for labels in plan.request.vectors]
    return found + [step.labels for step in plan.steps]


def _elements(plan: ContractionPlan, position: int) -> int:
    labels = _labels(plan)[position]
    count = plan.network.size_of(label for label in labels if label != BATCH) * (
        plan.batch_size if BATCH in labels else 1
    )
    if position == len(plan.network.nodes):
        count -= plan.batch_size * (plan.request.append_one + plan.network.in_padding)
    return count


def _is_sent(kind: str) -> bool:
    return kind not in ("keep", "cut", "first")


def _sent(kind: str, elements: int, ranks: int) -> int:
    """What a rank sends of a value, in a ring."""
    whole = elements * (ranks - 1)
    if kind == "all_reduce":
        return -(-2 * whole // ranks)
    return -(-whole // ranks**2) if kind == "all_to_all" else -(-whole // ranks)
