"""TensorLy's own algorithms, for the decompositions that name one. The only module that imports them.

They run within TensorLy's PyTorch backend for this thread alone, and draw from seeds of their own.
"""

from __future__ import annotations

import warnings

import tensorly
import tensorly.decomposition
from torch import Tensor

from factorized_moe.decompositions import Decomposition
from factorized_moe.decompositions.base import Rank

__all__ = ["tensorly_fits"]


def tensorly_fits(target: Tensor, decomposition: Decomposition, rank: Rank, start: int) -> dict[str, Tensor]:
    """The parameters that TensorLy's algorithm finds.

    Args:
        target: The dense tensor, float64, of three modes or more.
        decomposition: A decomposition with a ``tensorly_algorithm``.
        rank: A rank as TensorLy takes it: the useful part of one.
        start: Which of the decomposition's ``tensorly_starts``.
    """
    assert decomposition.tensorly_algorithm is not None  # the caller has checked it
    algorithm = getattr(tensorly.decomposition, decomposition.tensorly_algorithm)
    with tensorly.backend_context("pytorch", local_threadsafe=True), warnings.catch_warnings():
        # TensorLy warns when a rank exceeds a mode; such ranks are allowed here and only cost parameters.
        warnings.simplefilter("ignore")
        options = decomposition.tensorly_starts[start]
        return decomposition.from_tensorly(algorithm(target, rank=rank, **options))
