"""A fit as a least-squares problem: which parameters of a network come closest to a dense target tensor?

Legend: labels as in the network; *padding* the last entries of a split input mode, which are no part of the target.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from factorized_moe.contraction.exhaustive import search_order
from factorized_moe.contraction.fixed import fixed_tensors
from factorized_moe.contraction.named_axes import contract_named
from factorized_moe.contraction.search import Operand
from factorized_moe.network import Node, TensorNetwork

__all__ = ["Problem", "Report", "Tensors", "contract"]

EXHAUSTIVE_OPERANDS = 7
"""With more operands than this, no best order is searched: the pair with the smallest product comes first."""

Tensors = dict[str, Tensor]
"""Parameters by name."""

Report = Callable[[float], object]
"""Called with the relative error after each sweep or step."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A dense target tensor, the network that approximates it, and the norm of the error.

    Attributes:
        network: The network.
        target: The dense tensor, float64, ``(*expert_dims, I, O)``.
        root: A matrix ``(I, I)`` that every expert's error is multiplied with from the left, or ``None``.
        output_root: A matrix ``(O, O)`` that it is multiplied with from the right, or ``None``.
    """

    network: TensorNetwork
    target: Tensor
    root: Tensor | None = None
    output_root: Tensor | None = None

    @property
    def arranged(self) -> Tensor:
        """The target with one axis for each external label, zeros in the padding."""
        padded = torch.nn.functional.pad(self.target, (0, 0, 0, self.network.in_padding))
        return padded.reshape([self.network.sizes[label] for label in self.network.external_labels])

    def random(self, generator: torch.Generator) -> Tensors:
        """Gaussian parameters, of which no expert label makes all experts equal."""
        shapes = self.network.parameter_shapes.items()
        return {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).to(self.target.device)
            for name, shape in shapes
        }

    def residual(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """``root (W - target) output_root``, as ``target``."""
        return self.weigh(self.dense(tensors) - self.target)

    def dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The dense tensor of some parameters, ``(*expert_dims, I, O)``."""
        return self.trim(sum((self.term(term, tensors) for term in self.network.terms), self.target.new_zeros(())))

    @cached_property
    def _fixed(self) -> Tensors:
        return {name: values.to(self.target) for name, values in fixed_tensors(self.network).items()}

    def complete(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """The parameters and, beside them, the tensors of fixed nodes."""
        return {**self._fixed, **tensors}

    def term(self, term: tuple[Node, ...], tensors: Mapping[str, Tensor]) -> Tensor:
        """One term of the sum with an axis for each external label, of size 1 where the term lacks it."""
        known = self.complete(tensors)
        return self.arrange([(known[node.parameter], node.labels) for node in term])

    def arrange(self, operands: Sequence[tuple[Tensor, Sequence[str]]], leading: tuple[str, ...] = ()) -> Tensor:
        """A term's operands contracted to ``leading`` labels and then an axis for each external label, as `term`."""
        external = self.network.external_labels
        present = [x for x in external if any(x in labels for _, labels in operands)]
        value = contract(operands, [*leading, *present])
        sizes = [self.network.sizes[x] if x in present else 1 for x in external]
        return value.reshape([*value.shape[: len(leading)], *sizes])

    def trim(self, arranged: Tensor) -> Tensor:
        """From an axis for each external label, after any leading axes, to ``(*expert_dims, I, O)``: no padding."""
        leading = arranged.shape[: max(0, arranged.ndim - len(self.arranged_shape))]
        group = self.network.size_of(self.network.in_labels)
        dense = arranged.expand(*leading, *self.arranged_shape)
        dense = dense.reshape(*leading, *self.network.expert_dims, group, self.network.shape[-1])
        return dense[..., : self.network.shape[-2], :]

    def weigh(self, difference: Tensor) -> Tensor:
        """A difference of dense tensors in the norm that is minimised."""
        difference = difference if self.root is None else self.root @ difference
        return difference if self.output_root is None else difference @ self.output_root

    def error(self, tensors: Mapping[str, Tensor]) -> float:
        """The relative error of some parameters."""
        return float(self.residual(tensors).norm() / self.weigh(self.target).norm())

    @property
    def arranged_shape(self) -> list[int]:
        """The sizes of the external labels."""
        return [self.network.sizes[label] for label in self.network.external_labels]

    @property
    def is_linear(self) -> bool:
        """Whether the residual is linear in each parameter, in the Frobenius norm: what alternating steps need."""
        return not self.is_weighted and not self.network.shares_parameters

    @property
    def is_weighted(self) -> bool:
        """Whether the error is measured in another norm than Frobenius'."""
        return self.root is not None or self.output_root is not None


def contract(operands: Sequence[tuple[Tensor, Sequence[str]]], output: Sequence[str]) -> Tensor:
    """Tensors with named axes, contracted in pairs to the axes ``output``; the order is searched once for its sizes."""
    tensors = [tensor for tensor, _ in operands]
    labels = [tuple(names) for _, names in operands]
    sizes: dict[str, int] = {}
    for tensor, names in zip(tensors, labels, strict=True):
        sizes.update(zip(names, tensor.shape, strict=True))
    for left, right, kept in _steps(tuple(labels), tuple(output), tuple(sizes.items())):
        step = [(labels[place], tensors[place]) for place in ((left,) if left == right else (left, right))]
        tensors.append(contract_named(step, kept))
        labels.append(kept)
    return tensors[-1]


@lru_cache(maxsize=4096)
def _steps(
    labels: tuple[tuple[str, ...], ...], output: tuple[str, ...], sizes: tuple[tuple[str, int], ...]
) -> tuple[tuple[int, int, tuple[str, ...]], ...]:
    """Pairs of operands and the labels that each pair's product keeps; one operand alone is paired with itself."""
    if len(labels) == 1:
        return ((0, 0, output),)
    names, extent = list(labels), dict(sizes)
    live = list(range(len(labels)))
    steps = []

    def merge(left: int, right: int, live: list[int]) -> list[int]:
        rest = [k for k in live if k not in (left, right)]
        needed = {*output, *(x for k in rest for x in names[k])}
        union = dict.fromkeys((*names[left], *names[right]))
        kept = tuple(x for x in union if x in needed) if rest else output
        steps.append((left, right, kept))
        names.append(kept)
        return [*rest, len(names) - 1]

    def growth(pair: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        needed = {*output, *(x for k in live if k not in pair for x in names[k])}
        joint = math.prod(extent[x] for x in {*names[pair[0]], *names[pair[1]]} & needed)
        return joint - sum(math.prod(extent[x] for x in names[k]) for k in pair), pair

    while len(live) > EXHAUSTIVE_OPERANDS:
        live = merge(*min(itertools.combinations(live, 2), key=growth), live)
    found = search_order([Operand(frozenset(names[k])) for k in live], frozenset(output), extent)
    assert found is not None  # without a limit there is always an order
    positions = list(live)
    for left, right in found:
        live = merge(positions[left], positions[right], live)
        positions.append(live[-1])
    return tuple(steps)
