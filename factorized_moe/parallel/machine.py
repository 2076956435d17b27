"""What one rank of a machine computes and sends in a second: what choices of a label are weighed by."""

from __future__ import annotations

import math
from dataclasses import dataclass

from factorized_moe._scalars import is_number
from factorized_moe._validation import check_size

__all__ = ["Machine"]


@dataclass(frozen=True)
class Machine:
    """How fast a rank computes and sends, to estimate times; by default roughly a CPU's core and gloo.

    Args:
        flops_per_second: Multiplications and additions of a matrix product.
        bytes_per_second: What a rank sends in a collective of large tensors.
        latency: Seconds that a collective takes however little it sends.
        bytes_per_element: Of the values that are sent: 4 for float32.

    Raises:
        TypeError: If one is no number.
        ValueError: If one is out of range.
    """

    flops_per_second: float = 1e11
    bytes_per_second: float = 1e9
    latency: float = 2e-4
    bytes_per_element: int = 4

    def __post_init__(self) -> None:
        for name, least in (("flops_per_second", 1.0), ("bytes_per_second", 1.0), ("latency", 0.0)):
            value = getattr(self, name)
            if not is_number(value):
                raise TypeError(f"{name} of a machine is a number, got {value!r}")
            if not least <= value < math.inf:
                raise ValueError(f"{name} of a machine is finite and at least {least:g}, got {value!r}")
        check_size("bytes_per_element", self.bytes_per_element)
