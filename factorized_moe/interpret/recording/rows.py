"""Coefficients of some samples, as a matrix or as its non-zero entries, whichever takes less space.

Legend: ``n`` samples, ``N`` experts of one mode, ``z`` non-zero coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Rows"]


@dataclass(frozen=True, eq=False)
class Rows:
    """The coefficients of one expert mode for some samples, all of them or the non-zero ones.

    Attributes:
        values: All coefficients, ``(n, N)``; or the non-zero ones, row after row, ``(z,)``.
        columns: The expert of each non-zero coefficient, ``(z,)``; ``None`` where all are kept.
        counts: The number of non-zero coefficients of each sample, ``(n,)``; ``None`` where all are kept.
        num_experts: ``N``.
    """

    values: Tensor
    columns: Tensor | None
    counts: Tensor | None
    num_experts: int

    @classmethod
    def of(cls, coefficients: Tensor) -> Rows:
        """Copy a matrix of coefficients ``(n, N)``, in the smaller of the two forms.

        Examples:
            >>> rows = Rows.of(torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0], [0.5, 0.0, 0.0, 0.0, 0.5]]))
            >>> rows.values, rows.columns
            (tensor([1.0000, 0.5000, 0.5000]), tensor([3, 0, 4], dtype=torch.int16))
        """
        matrix = np.ascontiguousarray(coefficients.numpy(force=True))
        samples, experts = matrix.shape
        # For 1,024 x 1,024, torch's search for non-zeros took 21 ms, NumPy's 5.7 ms, and that of a mask 1.4 ms.
        mask = matrix != 0
        if _sparse_bytes(int(np.count_nonzero(mask)), samples, experts, matrix.itemsize) >= matrix.nbytes:
            return cls(torch.from_numpy(matrix.copy()), None, None, experts)
        places = np.flatnonzero(mask)
        row, column = np.divmod(places, experts)
        counts = np.bincount(row, minlength=samples).astype(np.int32)
        columns = column.astype(_column_type(experts))
        values = matrix.reshape(-1)[places]
        return cls(torch.from_numpy(values), torch.from_numpy(columns), torch.from_numpy(counts), experts)

    def __repr__(self) -> str:
        kept = f"{len(self.values):,} that are not 0" if self.is_sparse else "all kept"
        return f"Rows({len(self):,} samples, {self.num_experts:,} experts, {kept})"

    @classmethod
    def concatenate(cls, pieces: Sequence[Rows]) -> Rows:
        """The rows of several pieces, one after the other, in one form: that of most entries."""
        first = pieces[0]
        if len(pieces) == 1:
            return first
        if len({piece.is_sparse for piece in pieces}) == 2:
            return cls.of(torch.cat([piece.dense() for piece in pieces]))
        values = torch.cat([piece.values for piece in pieces])
        if not first.is_sparse:
            return cls(values, None, None, first.num_experts)
        columns = torch.cat([piece.columns for piece in pieces if piece.columns is not None])
        counts = torch.cat([piece.counts for piece in pieces if piece.counts is not None])
        return cls(values, columns, counts, first.num_experts)

    def fault(self) -> str | None:
        """What is wrong with the non-zero coefficients of a file: ``None`` if they are as `of` makes them."""
        if self.counts is None or self.columns is None:
            return None
        if int(self.counts.min()) < 0 or int(self.counts.sum()) != len(self.values):
            return f"{len(self.values)} coefficients for counts that add up to {int(self.counts.sum())}"
        if not len(self.columns):
            return None
        column = self.columns.long()
        if int(column.min()) < 0 or int(column.max()) >= self.num_experts:
            return f"a coefficient of expert {int(column[column.abs().argmax()])}, but {self.num_experts} experts"
        places = self._row_of_each() * self.num_experts + column
        if bool((places.diff() <= 0).any()):
            return "several coefficients of one sample and expert, or some out of order"
        return None

    def __len__(self) -> int:
        return len(self.values if self.counts is None else self.counts)

    def __getitem__(self, samples: slice) -> Rows:
        """Consecutive samples, copied."""
        if self.counts is None or self.columns is None:
            return Rows(self.values[samples].clone(), None, None, self.num_experts)
        start, stop, _ = samples.indices(len(self))
        entries = slice(int(self.counts[:start].sum()), int(self.counts[:stop].sum()))
        counts = self.counts[start:stop].clone()
        return Rows(self.values[entries].clone(), self.columns[entries].clone(), counts, self.num_experts)

    def take(self, samples: Tensor) -> Rows:
        """The samples of these numbers, ``(m,)``, in their order, copied.

        Examples:
            >>> Rows.of(torch.eye(3)).take(torch.tensor([2, 0])).dense()
            tensor([[0., 0., 1.],
                    [1., 0., 0.]])
        """
        if self.counts is None or self.columns is None:
            return Rows(self.values[samples], None, None, self.num_experts)
        counts = self.counts.long()
        ends, taken = counts.cumsum(0), counts[samples]
        begins = taken.cumsum(0) - taken
        first = (ends - counts)[samples] - begins
        entries = torch.repeat_interleave(first, taken) + torch.arange(int(taken.sum()))
        return Rows(self.values[entries], self.columns[entries], self.counts[samples], self.num_experts)

    @property
    def is_sparse(self) -> bool:
        """Whether only the non-zero coefficients are kept."""
        return self.counts is not None

    @property
    def num_bytes(self) -> int:
        """The bytes that the coefficients take in this form."""
        return sum(t.numel() * t.element_size() for t in (self.values, self.columns, self.counts) if t is not None)

    def dense(self) -> Tensor:
        """All coefficients, ``(n, N)``."""
        if self.counts is None or self.columns is None:
            return self.values
        matrix = self.values.new_zeros(len(self), self.num_experts)
        matrix[self._row_of_each(), self.columns.long()] = self.values
        return matrix

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """The samples, experts and values of the coefficients that are not 0, each ``(z,)``, row after row."""
        if self.columns is not None:
            return self._row_of_each(), self.columns.long(), self.values
        row, column = self.values.nonzero(as_tuple=True)
        return row, column, self.values[row, column]

    def outer(self, other: Rows) -> Rows:
        """The products of each sample's coefficients of two modes, those of the second mode fastest.

        Examples:
            >>> first, second = Rows.of(torch.tensor([[0.5, 0.5]])), Rows.of(torch.tensor([[0.0, 0.2, 0.8]]))
            >>> first.outer(second).dense()
            tensor([[0.0000, 0.1000, 0.4000, 0.0000, 0.1000, 0.4000]])
        """
        if not (self.is_sparse or other.is_sparse):
            values = (self.values[:, :, None] * other.values[:, None, :]).flatten(1)
            return Rows(values, None, None, self.num_experts * other.num_experts)
        mine, theirs = self.nonzeros(), other.nonzeros()
        counts = mine * theirs
        row = torch.repeat_interleave(torch.arange(len(counts)), counts)
        place = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]  # of each product in its sample
        left = (mine.cumsum(0) - mine)[row] + place // theirs[row]
        right = (theirs.cumsum(0) - theirs)[row] + place % theirs[row]
        (_, left_column, left_value), (_, right_column, right_value) = self.entries(), other.entries()
        columns = left_column[left] * other.num_experts + right_column[right]
        return Rows(left_value[left] * right_value[right], columns, counts, self.num_experts * other.num_experts)

    def nonzeros(self) -> Tensor:
        """The number of coefficients of each sample that are not 0, ``(n,)``, int64."""
        return (self.values != 0).sum(dim=-1) if self.counts is None else self.counts.long()

    def _row_of_each(self) -> Tensor:
        assert self.counts is not None  # asked of sparse rows only
        return torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)


def _sparse_bytes(nonzeros: int, samples: int, experts: int, item_size: int) -> int:
    return nonzeros * (item_size + np.dtype(_column_type(experts)).itemsize) + 4 * samples


def _column_type(experts: int) -> type[np.int16] | type[np.int32]:
    return np.int16 if experts <= 2**15 else np.int32
