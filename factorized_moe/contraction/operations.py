"""The operations that a plan's steps are lowered to: small, immutable recipes that act on torch tensors.

Each recipe holds only ints, so it is hashable, pickles, and disappears when ``torch.compile`` or ``torch.export``
trace through it. None of them contracts more than two tensors.

Legend: B batch, S labels that both operands keep, L and R labels of the left and right operand only, K contracted
labels. A group of labels is one axis here, flattened by an `Arrange`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Add",
    "Align",
    "AppendConstants",
    "Arrange",
    "BatchedMatMul",
    "Expand",
    "MatMul",
    "Multiply",
    "MultiplySum",
    "Operation",
    "SparseMatMul",
]


@dataclass(frozen=True)
class Arrange:
    """Sum some axes away, permute the others, and give the result a shape; ``None`` leaves a stage out.

    ``shape`` holds at most one ``-1``, the axis that carries the batch.
    """

    sum_axes: tuple[int, ...] | None = None
    permutation: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.sum_axes is not None:
            tensor = tensor.sum(self.sum_axes)
        if self.permutation is not None:
            tensor = tensor.permute(self.permutation)
        if self.shape:
            # Spread out: torch reads separate ints faster than a tuple (0.8 and 1.1 us), which counts at one token.
            tensor = tensor.reshape(*self.shape)
        elif self.shape is not None:
            tensor = tensor.reshape(())
        return tensor


@dataclass(frozen=True)
class Align:
    """Rearrange, then insert axes of size 1: what an operand of a broadcast product needs.

    One reshape would do it, and faster if there are several, but of axes of size 1 the compiler then expects other
    strides than it finds, at a batch of one sample.
    """

    arrange: Arrange | None
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.arrange is not None:
            tensor = self.arrange(tensor)
        if len(self.axes) > 1 and not torch.compiler.is_compiling():
            return tensor.reshape(*self.shape)
        for axis in self.axes:
            tensor = tensor.unsqueeze(axis)
        return tensor


@dataclass(frozen=True)
class MatMul:
    """One product with a parameter matrix: ``(B*L, K) x (K, R) -> (B, L, R)``.

    Args:
        left: Brings the left operand to ``(B*L, K)``.
        right: Brings the parameter to ``(K, R)``, or to ``(R, K)`` if ``transposed``.
        transposed: Whether the parameter's contracted axis is its last one in memory.
        bias: Whether the parameter has one more row than the left operand has columns: the row that is added.
        result: Gives the product its shape.
    """

    left: Arrange | None
    right: Arrange | None
    transposed: bool
    bias: bool
    result: Arrange | None

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        if self.left is not None:
            left = self.left(left)
        if self.right is not None:
            right = self.right(right)
        if self.transposed:
            right = right.t()
        if self.bias:
            # One split, not two slices: its backward is one concatenation instead of two zero-filled copies.
            weight, row = torch.split_with_sizes(right, (right.shape[0] - 1, 1))
            product = torch.addmm(row, left, weight)
        else:
            product = torch.mm(left, right)
        return product if self.result is None else self.result(product)


@dataclass(frozen=True)
class SparseMatMul:
    """A product with a parameter matrix that reads only the rows of non-zero coefficients: ``(B, K) x (K, R)``.

    The value is exact. A zero coefficient receives no gradient, so this suits coefficients whose derivative is zero
    where they are, as entmax, sparsemax and top-k give. The number of non-zero entries depends on the data, so it
    cannot be traced, and torch has no second derivative of it.

    Args:
        right: Brings the parameter to ``(K, R)``.
        result: Gives the product its shape.
    """

    right: Arrange | None
    result: Arrange | None

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        if self.right is not None:
            right = self.right(right)
        right = right.to(left.dtype)  # they differ under autocast, which does not know this product
        rows, columns = left.nonzero(as_tuple=True)
        starts = torch.searchsorted(rows, torch.arange(left.shape[0], device=left.device))
        product = torch.nn.functional.embedding_bag(
            columns, right, starts, mode="sum", per_sample_weights=left[rows, columns]
        )
        return product if self.result is None else self.result(product)


@dataclass(frozen=True)
class BatchedMatMul:
    """One small product per sample: ``(S, L, K) x (S, K, R) -> (S, L, R)``."""

    left: Arrange | None
    right: Arrange | None
    result: Arrange | None

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        if self.left is not None:
            left = self.left(left)
        if self.right is not None:
            right = self.right(right)
        product = torch.bmm(left, right)
        return product if self.result is None else self.result(product)


@dataclass(frozen=True)
class Multiply:
    """A broadcast product in which nothing is summed: ``(S, L, 1) * (S, 1, R) -> (S, L, R)``."""

    left: Arrange | Align | None
    right: Arrange | Align | None

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        if self.left is not None:
            left = self.left(left)
        if self.right is not None:
            right = self.right(right)
        return left * right


@dataclass(frozen=True)
class MultiplySum:
    """A broadcast product, then a sum: ``(S, L, K, 1) * (S, 1, K, R) -> (S, L, R)``, or ``(S, K) . (S, K) -> (S)``.

    Args:
        left: Brings the left operand to its axes.
        right: Brings the right operand to its axes.
        axis: The axis that is summed.
        result: Gives the sum its shape.
    """

    left: Arrange | None
    right: Arrange | None
    axis: int
    result: Arrange | None

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        if self.left is not None:
            left = self.left(left)
        if self.right is not None:
            right = self.right(right)
        product = (left * right).sum(self.axis)
        return product if self.result is None else self.result(product)


@dataclass(frozen=True)
class AppendConstants:
    """Appends a 1 to every input where no matrix product adds the bias row, then 0s where the group is padded."""

    one: bool
    zeros: int

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.one:
            tensor = torch.nn.functional.pad(tensor, (0, 1), value=1.0)
        return torch.nn.functional.pad(tensor, (0, self.zeros)) if self.zeros else tensor


@dataclass(frozen=True)
class Expand:
    """Rearranges one value, and repeats it along axes that it lacks; the last step of a term."""

    arrange: Arrange | None
    missing: tuple[int, ...] = ()
    sizes: tuple[int, ...] | None = None

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.arrange is not None:
            tensor = self.arrange(tensor)
        for axis in self.missing:
            tensor = tensor.unsqueeze(axis)
        return tensor if self.sizes is None else tensor.expand(self.sizes)


@dataclass(frozen=True)
class Add:
    """Adds the values of two terms of a sum of networks."""

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right


Operation = MatMul | BatchedMatMul | Multiply | MultiplySum | SparseMatMul | AppendConstants | Expand | Add
