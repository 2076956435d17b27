"""What single experts add to a layer's output, straight from the factors.

A layer is linear in the coefficients of each expert mode, so its output is the sum over the experts ``n`` of one mode
of ``a_n * (x^T W_n)``, the other modes contracted. Without expert ``n`` the output is what is left of the sum. Only
experts with a coefficient other than 0 have a term, and with a sparse gate they are few.

Legend: ``B`` inputs, ``p`` of them, ``N_k`` experts of mode k, ``I`` in_features, ``O`` out_features, ``S`` the size of
what the input's node makes of an input (CP: the rank).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from factorized_moe._scalars import is_whole
from factorized_moe._validation import check_call, check_kind
from factorized_moe.contraction import Request, execute, make_plan
from factorized_moe.network import Node, TensorNetwork
from factorized_moe.spread import whole
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["Contribution", "ExpertsOfMode", "Pairs", "expert_contributions"]


class Contribution(NamedTuple):
    """What one expert adds to the outputs of the inputs that use it.

    Attributes:
        expert: The expert's number.
        inputs: The numbers of the inputs with a coefficient other than 0, ``(p,)``.
        values: What it adds to their outputs, ``(p, O)``.
    """

    expert: int
    inputs: Tensor
    values: Tensor


@torch.no_grad()
def expert_contributions(
    experts: FactorizedExpertTensor, x: Tensor, coefficients: Sequence[Tensor], mode: int = 0
) -> Iterator[Contribution]:
    """Yield what each expert adds to the output, ``a_n * (x^T W_n)``, for the inputs with ``a_n`` other than 0.

    Args:
        experts: The experts: ``layer.experts``.
        x: The experts' input, ``(B, I)``.
        coefficients: For each expert mode the gate's output, ``(B, N_k)``.
        mode: The expert mode whose experts are told apart.

    Yields:
        One contribution for each expert that an input uses, in order of the experts. Their sum is the output.

    Raises:
        TypeError: If dtypes or devices differ.
        ValueError: If there is no such mode, or a shape does not fit.

    Examples:
        >>> w = FactorizedExpertTensor((3,), 8, 2, decomposition="cp", rank=4)
        >>> x, a = torch.randn(2, 8), torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.0, 1.0]])
        >>> [(found.expert, found.inputs.tolist()) for found in expert_contributions(w, x, [a])]
        [(0, [0]), (2, [0, 1])]
        >>> y = torch.zeros(2, 2)
        >>> for found in expert_contributions(w, x, [a]):
        ...     y = y.index_add(0, found.inputs, found.values)
        >>> torch.allclose(y, w(x, [a]), atol=1e-6)
        True
    """
    check_kind("experts", experts, FactorizedExpertTensor)
    if not is_whole(mode) or not 0 <= mode < len(experts.expert_dims):
        raise ValueError(f"mode {mode} is not one of the {len(experts.expert_dims)} expert modes, counted from 0")
    check_call(x, coefficients, experts.in_features, experts.expert_dims, experts.weight().operands[0])
    if x.ndim != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, {experts.in_features}): one row for each input")
    single = ExpertsOfMode(experts, mode)
    pairs = Pairs.of(coefficients[mode])
    state, others = single.state(x), [a for k, a in enumerate(coefficients) if k != mode]
    for expert, part in pairs.by_expert():
        inputs = pairs.inputs[part]
        values = single(expert, state[inputs], [a[inputs] for a in others])
        yield Contribution(expert, inputs, values * pairs.coefficients[part, None])


class Pairs(NamedTuple):
    """Pairs of an input and an expert that it uses (its coefficient is not 0), sorted by expert.

    Attributes:
        inputs: The input of each pair, ``(p,)``.
        experts: Its expert, ``(p,)``, ascending.
        coefficients: Its coefficient, ``(p,)``.
    """

    inputs: Tensor
    experts: Tensor
    coefficients: Tensor

    @classmethod
    def of(cls, coefficients: Tensor) -> Pairs:
        """The pairs of a matrix of coefficients, ``(B, N)``.

        Examples:
            >>> Pairs.of(torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.0, 1.0]])).inputs
            tensor([0, 0, 1])
        """
        # NumPy finds non-zeros several times as fast as torch; a bool array is of a type that it has.
        used = np.flatnonzero((coefficients != 0).numpy(force=True))
        inputs, experts = np.divmod(used, max(1, coefficients.shape[-1]))
        order = _order(experts)
        rows, columns = (torch.from_numpy(k[order]).to(coefficients.device) for k in (inputs, experts))
        return cls(rows, columns, coefficients[rows, columns])

    @classmethod
    def joined(cls, pieces: Sequence[Pairs], sizes: Sequence[int]) -> Pairs:
        """The pairs of several batches of these sizes, the inputs numbered on from batch to batch."""
        if len(pieces) == 1:
            return pieces[0]
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        inputs = torch.cat([piece.inputs + start for piece, start in zip(pieces, starts, strict=True)])
        experts = torch.cat([piece.experts for piece in pieces])
        order = torch.from_numpy(_order(experts.numpy(force=True))).to(experts.device)
        return cls(inputs[order], experts[order], torch.cat([piece.coefficients for piece in pieces])[order])

    def by_expert(self) -> Iterator[tuple[int, slice]]:
        """The experts that occur, each with the slice of its pairs."""
        experts, counts = self.experts.unique_consecutive(return_counts=True)
        stop = 0
        for expert, count in zip(experts.tolist(), counts.tolist(), strict=True):
            start, stop = stop, stop + count
            yield expert, slice(start, stop)

    def groups(self, most: int) -> Iterator[list[tuple[int, slice]]]:
        """Group the pairs so that no group has more than ``most``; an expert with more is a group of its own."""
        group: list[tuple[int, slice]] = []
        for expert, part in self.by_expert():
            if group and part.stop - group[0][1].start > most:
                yield group
                group = []
            group.append((expert, part))
        if group:
            yield group


def _order(experts: np.ndarray) -> np.ndarray:
    """The order that puts pairs expert after expert; of small numbers NumPy sorts 16 bits in one go."""
    return np.argsort(experts.astype(np.int16) if len(experts) and experts.max() < 2**15 else experts, kind="stable")


class ExpertsOfMode:
    """The experts of one mode, each to be applied on its own with a coefficient of 1.

    Where one node takes the whole input and nothing of the mode, an input goes through it once for all experts.

    Args:
        experts: The experts.
        mode: The expert mode.
    """

    def __init__(self, experts: FactorizedExpertTensor, mode: int) -> None:
        network, operands = experts.network, [whole(operand) for operand in experts.weight().operands]
        node, rest = _without_input_node(network)
        self._bias, self._features, self._outputs = experts.bias, experts.in_features, experts.out_features
        self._label = network.expert_labels[mode]
        self._input: Tensor | None = None
        if node is not None:
            tensor = operands[network.nodes.index(node)]
            axes = [node.labels.index(label) for label in (*network.in_labels, *rest.in_labels)]
            self._input = tensor.permute(axes).reshape(network.size_of(network.in_labels), -1)  # (I (+1, padding), S)
        self._operands = [operand for mine, operand in zip(network.nodes, operands, strict=True) if mine is not node]
        self._labels = [mine.labels for mine in rest.nodes]
        vectors = (rest.in_labels, *((label,) for label in rest.expert_labels if label != self._label))
        request = Request(vectors, rest.out_labels, frozenset((self._label,)), experts.bias and node is None)
        self._plan = make_plan(rest, request)

    def state(self, x: Tensor) -> Tensor:
        """What all experts have in common: the input behind its node, ``(B, I)`` to ``(B, S)``, or the input."""
        if self._input is None:
            return x
        state = x @ self._input[: self._features]
        return state + self._input[self._features] if self._bias else state

    def __call__(self, expert: int, state: Tensor, others: Sequence[Tensor]) -> Tensor:
        """The output with this expert alone, its coefficient 1.

        Args:
            expert: The expert's number.
            state: Rows of what `state` returned, ``(p, S)``.
            others: The coefficients of the other expert modes, ``(p, N_k)``.

        Returns:
            ``(p, O)``.
        """
        sliced = [
            operand.select(labels.index(self._label), expert) if self._label in labels else operand
            for operand, labels in zip(self._operands, self._labels, strict=True)
        ]
        return execute(self._plan, (*sliced, state, *others)).reshape(len(state), self._outputs)


def _without_input_node(network: TensorNetwork) -> tuple[Node | None, TensorNetwork]:
    """The node that takes the input, and the network of the others, whose input is what that node makes of one.

    ``None`` and the network itself where several nodes take the input, or the one that does has more than bonds.
    """
    takers = [node for node in network.nodes if set(node.labels) & set(network.in_labels)]
    kept = tuple(label for label in takers[0].labels if label not in network.in_labels)
    if len(takers) > 1 or not kept or not set(kept) <= set(network.bonds):
        return None, network
    others = tuple(node for node in network.nodes if node is not takers[0])
    used = {label for node in others for label in node.labels}
    sizes = tuple((label, size) for label, size in network.label_sizes if label in used)
    return takers[0], TensorNetwork((others,), sizes, network.expert_labels, kept, network.out_labels)
