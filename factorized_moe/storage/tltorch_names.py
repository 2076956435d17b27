"""The names of decompositions in TensorLy-Torch's registry: what ``FactorizedTensor.new`` and ``from_tensor`` find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tltorch.factorized_tensors.core import FactorizedTensor
from torch import Tensor

from factorized_moe.storage.container import NetworkTensor

__all__ = ["complete_tltorch"]


def complete_tltorch(name: str) -> None:
    """Give TensorLy-Torch's registry a decomposition that it lacks, such as the tensor ring; never replace one.

    Its registry replaces silently, so only free names are used.

    Args:
        name: A name in this library's registry.
    """
    if name in FactorizedTensor._factorizations:
        return

    class Registered(NetworkTensor, name=name):
        _source_name = name

        @classmethod
        def new(cls, shape: Sequence[int], rank: Any = "same", **place: Any) -> NetworkTensor:  # type: ignore[override]
            return NetworkTensor.new(shape, rank, cls._source_name, **place)

        @classmethod
        def from_tensor(cls, tensor: Tensor, rank: Any = "same", **options: Any) -> NetworkTensor:  # type: ignore[override]
            return NetworkTensor.from_tensor(tensor, rank, cls._source_name, **options)
