"""What all results of measurements have in common: they turn into dictionaries, JSON and tables."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from factorized_moe.interpret.measures.showing import is_large, one_line, table_of

if TYPE_CHECKING:
    import pandas

__all__ = ["Measurement", "expert_columns", "ranked_columns"]


class Measurement(ABC):
    """A result of a measurement: a frozen dataclass of numbers, tensors and texts; in a notebook, a table."""

    def __init_subclass__(cls) -> None:
        if "__repr__" not in vars(cls):  # before the dataclass would make one that prints whole tensors
            cls.__repr__ = one_line  # type: ignore[method-assign]

    def _repr_html_(self) -> str | None:
        return None if is_large(self) else table_of(self, self.columns())

    @abstractmethod
    def columns(self) -> dict[str, list[Any]]:
        """The columns of the result's table, all of one length."""

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name, tensors as nested lists."""
        if not is_dataclass(self):
            raise TypeError(f"{type(self).__name__} is no dataclass; make it one")
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    def to_json(self) -> str:
        """All attributes as JSON, which has no NaN and no infinity: they become ``null``."""
        return json.dumps(_finite(self.to_dict()), allow_nan=False)

    def to_pandas(self) -> pandas.DataFrame:
        """The result's table.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install 'factorized-moe[tables]'") from error
        return pandas.DataFrame(self.columns())


def expert_columns(grid: Sequence[int], repeat: int = 1) -> dict[str, list[int]]:
    """The columns that name an expert: its number and, in a grid of several modes, its number in each mode.

    Args:
        grid: The sizes of the expert modes that the experts are counted over, the last one fastest.
        repeat: The number of rows for each expert.

    Examples:
        >>> expert_columns((2, 2))
        {'expert': [0, 1, 2, 3], 'expert_0': [0, 0, 1, 1], 'expert_1': [0, 1, 0, 1]}
    """
    numbers = torch.arange(math.prod(grid)).repeat_interleave(repeat)
    found = {"expert": numbers.tolist()}
    if len(grid) > 1:
        places = torch.unravel_index(numbers, tuple(grid))
        found |= {f"expert_{mode}": place.tolist() for mode, place in enumerate(places)}
    return found


def ranked_columns(grid: Sequence[int], samples: Tensor, ids: Tensor, values: Tensor) -> dict[str, list[Any]]:
    """The columns of a table with one row for each expert and sample that is there, each tensor ``(N, k)``.

    Args:
        grid: The sizes of the expert modes that the experts are counted over.
        samples: The samples' numbers, -1 where there is none.
        ids: Their ids.
        values: Their coefficients.

    Examples:
        >>> ranked_columns((2,), torch.tensor([[4], [-1]]), torch.tensor([[9], [-1]]), torch.tensor([[0.5], [0.0]]))
        {'expert': [0], 'rank': [0], 'sample': [4], 'id': [9], 'coefficient': [0.5]}
    """
    experts, kept = samples.shape
    there = (samples >= 0).reshape(-1).tolist()
    table: dict[str, list[Any]] = dict(expert_columns(grid, repeat=kept))
    table["rank"] = list(range(kept)) * experts
    for name, tensor in {"sample": samples, "id": ids, "coefficient": values}.items():
        table[name] = tensor.reshape(-1).tolist()
    return {name: [x for x, kept in zip(column, there, strict=True) if kept] for name, column in table.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(element) for element in value]
    if isinstance(value, dict):
        return {name: _finite(element) for name, element in value.items()}
    return value
