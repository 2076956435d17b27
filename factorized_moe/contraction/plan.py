"""A request, what to compute from a network, and its contraction plan: hashable objects that hold no tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace

from factorized_moe._scalars import is_whole
from factorized_moe._text_tables import html_table, text_table
from factorized_moe.contraction.operations import Add, Operation
from factorized_moe.network import BATCH, TensorNetwork

__all__ = ["ContractionPlan", "Request", "Step", "check_batch_size"]


@dataclass(frozen=True)
class Request:
    """What to compute from a network: which vectors it is contracted with, and which labels the result keeps.

    Args:
        vectors: For each per-sample operand, its labels (without the batch's).
        output: The labels that the result keeps, in order (without the batch's).
        fixed: Labels that every operand has been sliced at; they are gone from the nodes.
        append_one: Whether the first vector lacks the last entry of its label, a constant 1: the bias row.
        sparse: Whether the vectors after the first, the coefficients, are mostly zeros: then only the parameters' rows
            of non-zero entries are read where that pays, and a zero entry receives no gradient there.
    """

    vectors: tuple[tuple[str, ...], ...]
    output: tuple[str, ...]
    fixed: frozenset[str] = frozenset()
    append_one: bool = False
    sparse: bool = False


@dataclass(frozen=True)
class Step:
    """One step of a plan: the contraction of two values, or an operation on one.

    Attributes:
        operands: The positions of its one or two operands among the values so far.
        operation: What is done with them.
        labels: The labels of the result, in memory order.
        formula: The step in words, ``in, in rank -> rank``.
        flops: Multiplications and additions at the plan's batch size.
        elements: Elements of the result at the plan's batch size.
        read: Elements of the operands that grow with the batch, at the plan's batch size.
        read_fixed: Elements of the other operands, the parameters.
        frees: Earlier steps' values that no later step needs.
    """

    operands: tuple[int, ...]
    operation: Operation
    labels: tuple[str, ...]
    formula: str
    flops: int
    elements: int
    read: int
    read_fixed: int
    frees: tuple[int, ...] = ()


@dataclass(frozen=True)
class ContractionPlan:
    """A contraction order with its costs: a fixed list of pairwise steps, such as those of a forward pass.

    The values are numbered: first the network's nodes, then the request's vectors, then each step's result. The last
    value is the answer. A plan holds no tensors; it is hashable and pickles, and is valid for every batch size.

    Attributes:
        network: The network that is contracted.
        request: What is asked of it.
        batch_size: The samples for which costs are reported.
        steps: The steps, in order.
        runs_from: The smallest batch size at which a layer runs this plan; more than 1 if it has another for fewer.
        runs_until: The largest one, or ``None``.
    """

    network: TensorNetwork
    request: Request
    batch_size: int
    steps: tuple[Step, ...]
    runs_from: int = 1
    runs_until: int | None = None

    @property
    def flops(self) -> int:
        """Multiplications and additions at the plan's batch size; a multiply-add counts as two."""
        return sum(step.flops for step in self.steps)

    @property
    def largest_intermediate(self) -> int:
        """Elements of the largest value that any step makes, the result included, at the plan's batch size."""
        return max((step.elements for step in self.steps), default=0)

    @property
    def elements_moved(self) -> int:
        """Elements that the steps read and write, parameters included, at the plan's batch size."""
        return sum(step.read + step.read_fixed + step.elements for step in self.steps)

    @property
    def saved_activations(self) -> int:
        """Elements that training keeps for the backward pass, at the plan's batch size.

        A product keeps the operand that the other's gradient needs, so these are all operands of products. Parameters
        are left out, and so are copies of them where a step has to rearrange one.
        """
        nodes = len(self.network.nodes)
        sizes = [self.network.size_of(labels) * self.batch_size for labels in self.request.vectors]
        if sizes:  # the input is kept as it came, without the constant 1 and the padding
            sizes[0] -= self.batch_size * (self.request.append_one + self.network.in_padding)
        sizes += [step.elements for step in self.steps]
        first_result = nodes + len(self.request.vectors)
        views = {first_result + k: step.operands[0] for k, step in enumerate(self.steps) if not step.elements}
        products = [step for step in self.steps if len(step.operands) == 2 and not isinstance(step.operation, Add)]
        used = {views.get(position, position) for step in products for position in step.operands}
        return sum(sizes[position - nodes] for position in used if position >= nodes)

    def at_batch_size(self, batch_size: int) -> ContractionPlan:
        """The same steps, with their costs for another number of samples.

        Args:
            batch_size: The number of samples.

        Raises:
            ValueError: If it is not a positive int.
        """
        batch_size = check_batch_size(batch_size)

        def rescaled(step: Step) -> Step:
            if BATCH not in step.labels:
                return step
            grown = [count // self.batch_size * batch_size for count in (step.flops, step.elements, step.read)]
            return replace(step, flops=grown[0], elements=grown[1], read=grown[2])

        return replace(self, batch_size=batch_size, steps=tuple(rescaled(step) for step in self.steps))

    def __repr__(self) -> str:
        return "\n".join([self._heading, f"  {self._costs}", text_table(self._rows, indent="  ")])

    def _repr_html_(self) -> str:
        return html_table(self._rows, self._heading, left=2, more=self._costs)

    @property
    def _rows(self) -> list[tuple[str, str, str, str]]:
        rows = [("step", "operation", "FLOPs", "elements")]
        rows += [(s.formula, type(s.operation).__name__, f"{s.flops:,}", f"{s.elements:,}") for s in self.steps]
        return rows

    @property
    def _heading(self) -> str:
        other = ""
        if self.runs_from > 1:
            other = f"; from {self.runs_from:,} samples on, another plan runs for fewer"
        elif self.runs_until is not None:
            other = f"; up to {self.runs_until:,} samples, another plan runs for more"
        return f"ContractionPlan for {len(self.network.nodes)} nodes, batch size {self.batch_size:,}{other}"

    @property
    def _costs(self) -> str:
        return (
            f"{self.flops:,} FLOPs; elements: {self.elements_moved:,} moved, "
            f"{self.largest_intermediate:,} in the largest intermediate, {self.saved_activations:,} saved for training"
        )


def check_batch_size(batch_size: int) -> int:
    """A number of samples as an int; refused if it is not a positive one."""
    if not is_whole(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive int, got {batch_size!r}")
    return int(batch_size)
