"""The outputs of a model's last layer without each of its experts, from the factors.

Legend: ``r`` predictions, ``p`` pairs of a prediction and an expert, ``C`` classes, ``O`` the layer's out_features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from factorized_moe._bars import if_slow
from factorized_moe.interpret.interventions.tally import Tally
from factorized_moe.interpret.measures.contributions import ExpertsOfMode, Pairs
from factorized_moe.layers import ExpertLayer

__all__ = ["LastLayer"]

MOST_ELEMENTS = 2**24
"""Elements of the outputs without an expert that are gathered: 64 MiB in float32, if they were all there at once."""

GROUP_ELEMENTS = 2**18
"""Elements of those that are computed at a time: a MiB, which stays in the processor's cache."""

LEFT = 0.25
"""The share of an output's size that has to be left without an expert; where it is less, the rest is computed anew.

A difference of two numbers is off by the rounding of the larger one: by four times that of its own size at most here.
"""

CLOSE = 64
"""Roundings of the largest entry of an output by which its two largest may be apart for it to be computed anew.

A run with the expert's coefficient 0 adds the same numbers up in another order, and might predict the other class.
"""


class LastLayer:
    """Gathers batches until there is enough to do, then subtracts each expert's contribution from the outputs.

    Args:
        layer: A layer of one tensor of experts, whose output is theirs.
        mode: The expert mode.
        chosen: The experts that are taken out.
        after: What follows the layer.
        tally: What takes the counts.
    """

    def __init__(
        self,
        layer: ExpertLayer,
        mode: int,
        chosen: Tensor,
        after: Callable[[Tensor], Tensor] | None,
        tally: Tally,
    ) -> None:
        self._layer, self._mode, self._after, self._tally = layer, mode, after, tally
        self._chosen, self._numbers = chosen, chosen.tolist()
        self._single: ExpertsOfMode | None = None
        self._gathered: list[tuple[Pairs, list[Tensor]]] = []
        self._elements = 0

    def add(
        self,
        x: Tensor,
        coefficients: Sequence[Tensor],
        y: Tensor,
        outputs: Tensor,
        labels: Tensor | None,
        counted: Tensor | None = None,
    ) -> None:
        """Gather one batch.

        Args:
            x: The experts' input, ``(*batch, I)``.
            coefficients: For each expert mode ``(*batch, N_k)``.
            y: The layer's output, ``(*batch, O)``.
            outputs: The model's, ``(*batch, C)``.
            labels: ``(*batch)``, or ``None``.
            counted: Which predictions count, ``(*batch)``, bool; all by default.
        """
        columns = [*(a.flatten(0, -2) for a in coefficients), *(t.flatten(0, -2) for t in (x, y, outputs))]
        columns += [] if labels is None else [labels.flatten()]
        if counted is not None:
            columns = [column[counted.flatten()] for column in columns]
        modes = len(coefficients)
        x, y, outputs = columns[modes : modes + 3]
        if self._after is not None:
            self._check_after(self._after(y), outputs)
        if self._single is None:
            (experts,) = self._layer.expert_tensors.values()  # a layer of several is not linear in its coefficients
            self._single = ExpertsOfMode(experts, self._mode)
        pairs = Pairs.of(columns[self._mode].index_select(-1, self._chosen))
        columns.insert(modes + 1, self._single.state(x))
        self._gathered.append((pairs, columns))
        self._elements += len(pairs.inputs) * outputs.shape[-1]
        if self._elements >= MOST_ELEMENTS:
            self.finish()

    def finish(self) -> None:
        """Do what has been gathered."""
        if not self._gathered or self._single is None:
            return
        batches, self._gathered, self._elements = self._gathered, [], 0
        columns = [torch.cat(column) for column in zip(*(columns for _, columns in batches), strict=True)]
        pairs = Pairs.joined([pairs for pairs, _ in batches], [len(columns[0]) for _, columns in batches])
        labels = columns.pop() if self._tally.labelled else None
        *coefficients, x, state, y, outputs = columns
        predicted = outputs.argmax(dim=-1)
        others = [a for mode, a in enumerate(coefficients) if mode != self._mode]
        # Where an expert is the only one, nothing remains: 0 to the bit, where a difference would leave its rounding.
        alone = (coefficients[self._mode] != 0).sum(dim=-1) == 1
        sizes = y.abs().amax(dim=-1) * LEFT
        with if_slow("predictions without an expert", len(pairs.inputs), "prediction") as bar:
            for uses in _pieces(pairs, max(1, GROUP_ELEMENTS // max(y.shape[-1], outputs.shape[-1])), len(y)):
                single = [
                    self._single(self._numbers[expert], state[rows], [a[rows] for a in others])
                    for expert, _, rows in uses
                ]
                part = slice(uses[0][1].start, uses[-1][1].stop)
                values = single[0] if len(uses) == 1 else torch.cat(single)
                rows = uses[0][2] if len(uses) == 1 else pairs.inputs[part]
                without = y[rows] - values * pairs.coefficients[part, None]
                without.masked_fill_(alone[rows, None], 0.0)
                little = (without.abs().amax(dim=-1) < sizes[rows]) & ~alone[rows]
                if little.any():
                    without[little] = self._anew(pairs, part, little, x, coefficients)
                if self._after is not None:
                    without = self._after(without)
                close = _is_close(without) & ~little & ~alone[rows]
                if close.any():
                    anew = self._anew(pairs, part, close, x, coefficients)
                    without[close] = anew if self._after is None else self._after(anew)
                mine = None if labels is None else labels[rows]
                if len(uses) == 1:
                    self._tally.add_expert(uses[0][0], outputs[rows], predicted[rows], without, mine)
                else:
                    self._tally.add_pairs(pairs.experts[part], outputs[rows], predicted[rows], without, mine)
                bar.update(part.stop - part.start)

    def _anew(self, pairs: Pairs, part: slice, little: Tensor, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        """The layer's outputs of some pairs, each with its expert's coefficient 0."""
        rows, experts = pairs.inputs[part][little], self._chosen[pairs.experts[part][little]]
        changed = [a[rows] for a in coefficients]
        changed[self._mode] = changed[self._mode].scatter(-1, experts[:, None], 0.0)
        (tensor,) = self._layer.expert_tensors.values()
        found: Tensor = tensor.forward(x[rows], changed)  # past the hooks, which have seen the call that this is of
        return found

    def _check_after(self, expected: Tensor, outputs: Tensor) -> None:
        if expected.shape != outputs.shape:
            raise ValueError(
                f"counterfactuals: after makes {tuple(expected.shape)} of the layer's output, the model's is "
                f"{tuple(outputs.shape)}; it has to be what follows the layer, for each position alone"
            )
        if not torch.allclose(expected, outputs, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise ValueError(
                "counterfactuals: after of the layer's output is not the model's output, they differ by up to "
                f"{float((expected - outputs).abs().max()):.3g}; it has to be all that follows the layer"
            )


def _is_close(outputs: Tensor) -> Tensor:
    """Which rows have two largest entries so near to each other that rounding decides between them, ``(p,)``."""
    least, best = outputs.aminmax(dim=-1)
    size = torch.maximum(best.abs(), least.abs())
    reached = outputs >= (best - size * (CLOSE * torch.finfo(outputs.dtype).eps))[:, None]
    return reached.sum(dim=-1) > 1


Use = tuple[int, slice, slice | Tensor]
"""An expert (its place among the chosen), a slice of its pairs, and the predictions that they are of."""


def _pieces(pairs: Pairs, most: int, predictions: int) -> Iterator[list[Use]]:
    """Pairs some at a time, no more than ``most``: of several experts, or some of one expert's.

    An expert that all predictions use has them in order: their rows are a slice, and nothing of them is copied.
    """
    for group in pairs.groups(most):
        if len(group) > 1 and all(mine.stop - mine.start < predictions for _, mine in group):
            yield [(expert, mine, pairs.inputs[mine]) for expert, mine in group]
            continue
        for expert, mine in group:
            everywhere = mine.stop - mine.start == predictions
            for first in range(mine.start, mine.stop, most):
                some = slice(first, min(first + most, mine.stop))
                rows = slice(first - mine.start, some.stop - mine.start) if everywhere else pairs.inputs[some]
                yield [(expert, some, rows)]
