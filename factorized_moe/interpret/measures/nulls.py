"""A figure beside what chance gives, since a measure of specialisation is not 0 where nothing is specialised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from factorized_moe.interpret.measures.measurement import Measurement

__all__ = ["BesideNull"]


@dataclass(frozen=True, eq=False)
class BesideNull(Measurement):
    """A measured value, and the values of the same measure in draws where chance decides.

    Attributes:
        value: What was measured.
        null: The value in each draw, ``(draws,)``, float64.

    Examples:
        >>> import torch
        >>> BesideNull(3.5, torch.tensor([1.0, 2.0, 3.0]))
        3.5 (null 2 ± 1)
    """

    value: float
    null: Tensor

    @property
    def null_mean(self) -> float:
        """The mean over the draws."""
        return float(self.null.mean())

    @property
    def null_spread(self) -> float:
        """The standard deviation over the draws; NaN for a single one."""
        return float(self.null.std()) if len(self.null) > 1 else float("nan")

    def columns(self) -> dict[str, list[Any]]:
        """One row: the value, and the mean and the spread of the draws."""
        return {"value": [self.value], "null_mean": [self.null_mean], "null_spread": [self.null_spread]}

    def __repr__(self) -> str:
        return f"{self.value:.4g} (null {self.null_mean:.4g} ± {self.null_spread:.2g})"
