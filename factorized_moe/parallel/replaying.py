"""Replays a split plan on one rank: products of what the rank holds, and the collectives between them.

Legend: ``B`` samples; a *piece* is what a rank holds of a label.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from factorized_moe.contraction import Step
from factorized_moe.contraction.named_axes import contract_named
from factorized_moe.contraction.operations import Add, AppendConstants, SparseMatMul
from factorized_moe.network import BATCH
from factorized_moe.parallel.moves import Group, Transfer, enter, exchange_rows, move
from factorized_moe.parallel.placing import COPY, WHOLE, Layout, collectives, share, start
from factorized_moe.parallel.splitting import SplitPlan, Use

__all__ = ["execute_split"]

Labels = tuple[str, ...]


def execute_split(split: SplitPlan, operands: Sequence[Tensor], group: Group) -> Tensor:
    """Run a split plan's steps on one rank.

    Args:
        split: The plan.
        operands: What the rank holds of each node, then of each vector, as `factorized_moe.contraction.execute` takes
            them; the input is a piece if the plan says so, the coefficients are whole.
        group: The ranks.

    Returns:
        The answer ``(B, *output)``, or this rank's piece of it.
    """
    return _Run(split, group).answer(operands)


class _Run:
    def __init__(self, split: SplitPlan, group: Group) -> None:
        self.split, self.group = split, group
        self.network, self.plan = split.plan.network, split.plan
        self.nodes = len(self.network.nodes)
        self.labels: list[Labels] = [node.labels for node in self.network.nodes]
        self.labels += [(BATCH, *labels) for labels in self.plan.request.vectors]

    def answer(self, operands: Sequence[Tensor]) -> Tensor:
        values: list[Tensor | None] = list(operands)
        entered = self._enter(operands)
        for step, uses in zip(self.plan.steps, self.split.uses, strict=True):
            brought = []
            for use in uses:
                if use.position in entered and (use.source, use.target) == (WHOLE, COPY):
                    brought.append(entered[use.position])
                else:
                    value = values[use.position]
                    assert value is not None  # freed after its last use only
                    brought.append(self._bring(value, use))
            values.append(self._apply(step, uses, brought))
            self.labels.append(step.labels)
            for position in step.frees:
                values[position] = None
        last = values[-1]
        assert last is not None  # the last value has no consumer
        return self._bring(last, Use(len(values) - 1, self.split.layouts[-1], self.split.answer))

    def _enter(self, operands: Sequence[Tensor]) -> dict[int, Tensor]:
        positions = sorted(p for p in self.split.entered if operands[p].requires_grad)
        found = {p: operands[p] for p in self.split.entered}
        by_type: dict[torch.dtype, list[int]] = {}
        for position in positions:
            by_type.setdefault(operands[position].dtype, []).append(position)
        for together in by_type.values():
            found |= dict(zip(together, enter([operands[p] for p in together], self.group), strict=True))
        return found

    def _bring(self, value: Tensor, use: Use) -> Tensor:
        labels = self.labels[use.position]
        if use.realigned:
            return self._realign(value, labels)
        pair = collectives(use.source, use.target)
        assert pair is not None  # the planner takes no other
        if pair == ("keep", "keep"):
            return value
        lacking = int(use.position == self.nodes and self.plan.request.append_one)
        return move(
            value,
            self._transfer(pair[0], labels, use.source, use.target, lacking),
            self._transfer(pair[1], labels, use.target, use.source, lacking),
            self.group,
        )

    def _transfer(self, kind: str, labels: Labels, source: Layout, target: Layout, lacking: int) -> Transfer:
        if kind == "all_to_all":
            axes = labels.index(source.label), labels.index(target.label)
            return Transfer(kind, axes[0], self._size(source.label), axes[1], self._size(target.label))
        label = source.label or target.label
        if not label:
            return Transfer(kind)
        return Transfer(kind, labels.index(label), self._size(label), lacking=lacking)

    def _size(self, label: str) -> int:
        return self.network.sizes[label]

    def _realign(self, node: Tensor, labels: Labels) -> Tensor:
        """The rows that meet this rank's piece of the input; the last rank's have the bias's row behind them."""
        label, ranks = self.network.in_labels[0], self.group.ranks
        rows = self._size(label)
        have = [(start(rows, ranks, r), start(rows, ranks, r + 1)) for r in range(ranks)]
        want = [(start(rows - 1, ranks, r), start(rows - 1, ranks, r + 1)) for r in range(ranks)]
        want[-1] = want[-1][0], rows
        return exchange_rows(node, labels.index(label), have, want, self.group)

    def _apply(self, step: Step, uses: Sequence[Use], values: list[Tensor]) -> Tensor:
        operation = step.operation
        if isinstance(operation, AppendConstants):
            return operation(values[0])
        if isinstance(operation, Add):
            return values[0] + values[1]
        labels = [self.labels[use.position] for use in uses]
        if len(values) == 1:
            return self._rearranged(step, uses[0], values[0], labels[0])
        row = None
        for k, use in enumerate(uses):
            if use.position == self.nodes and self._lacks_one(labels[k]):
                values[k], values[1 - k], row = self._without_bias(values[k], values[1 - k], labels[1 - k], uses, k)
        if isinstance(operation, SparseMatMul) and row is None:
            return self._sparse(values, labels, step.labels)
        product = contract_named(list(zip(labels, values, strict=True)), step.labels)
        if row is None:
            return product
        node = next(labels[k] for k, use in enumerate(uses) if use.position != self.nodes)
        kept = tuple(x for x in node if x != self.network.in_labels[0])
        # Under autocast the product is narrower; only some ranks add the row, and all must send one type.
        return product + self._aligned(row.to(product.dtype), kept, step.labels)

    def _lacks_one(self, labels: Labels) -> bool:
        """Whether an input is used as it came, without the constant 1 that its label counts."""
        return self.plan.request.append_one and len(labels) == 2

    def _without_bias(
        self, x: Tensor, node: Tensor, labels: Labels, uses: Sequence[Use], position: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The input and the node's rows that meet it, and the bias's row on the rank that adds it."""
        label = self.network.in_labels[0]
        axis, ranks, rank = labels.index(label), self.group.ranks, self.group.rank
        use = uses[position]
        if use.target.kind != "split":
            last = True
        elif use.source.kind == "split":  # the node's rows have been exchanged
            last = rank == ranks - 1
        else:
            size = self._size(label)
            first, length = start(size, ranks, rank), share(size, ranks, rank)
            last = length > 0 and first + length == size
        if not last:
            return x, node, None
        count = node.shape[axis] - 1
        return x, node.narrow(axis, 0, count), node.select(axis, count)

    def _rearranged(self, step: Step, use: Use, value: Tensor, labels: Labels) -> Tensor:
        """Sum labels away, split a flat group, permute, and repeat along labels that are missing."""
        if value.ndim < len(labels):  # a group that comes as one axis
            return value.reshape(-1, *(self._size(x) for x in step.labels[1:]))
        present = tuple(x for x in step.labels if x in labels)
        value = contract_named([(labels, value)], present)
        if present == step.labels:
            return value
        for axis, x in enumerate(step.labels):
            if x not in labels:
                value = value.unsqueeze(axis)
        return value.expand([-1 if x in labels else self._size(x) for x in step.labels])

    def _sparse(self, values: Sequence[Tensor], labels: Sequence[Labels], result: Labels) -> Tensor:
        left = next(k for k in range(2) if BATCH in labels[k])
        coefficients, node = values[left], values[1 - left]
        (label,) = labels[left][1:]
        rest = tuple(x for x in labels[1 - left] if x != label)
        rows = node.movedim(labels[1 - left].index(label), 0)
        if rows.numel() == 0 or coefficients.shape[-1] == 0:  # nothing to look for
            return contract_named(list(zip(labels, values, strict=True)), result)
        product = SparseMatMul(None, None)(coefficients, rows.reshape(rows.shape[0], -1))
        whole = product.reshape(-1, *rows.shape[1:])
        return whole.permute([(BATCH, *rest).index(x) for x in result])

    def _aligned(self, row: Tensor, labels: Labels, result: Labels) -> Tensor:
        row = row.permute([labels.index(x) for x in result if x in labels])
        return row.reshape(
            [row.shape[[x for x in result if x in labels].index(x)] if x in labels else 1 for x in result]
        )
