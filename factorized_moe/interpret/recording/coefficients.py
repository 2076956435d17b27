"""The coefficients of a recording's layers, as a stream or as matrices.

Legend: ``n`` samples of the recording, ``N`` experts of one mode.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from factorized_moe._scalars import is_whole
from factorized_moe._validation import check_kind
from factorized_moe.interpret.recording.chunks import Part
from factorized_moe.interpret.recording.header import Header
from factorized_moe.interpret.recording.rows import Rows

__all__ = ["LayerCoefficients", "Mode"]

PRODUCTS = 2**21
"""Products of several modes' coefficients that are made at a time: 32 MiB with their experts' numbers."""

Mode: TypeAlias = int | Literal["product"]
"""The number of an expert mode, or all of them together."""


class LayerCoefficients(ABC):
    """What of a recording is about its layers: `Recording` adds what its samples are.

    Layers that ran on the same samples share their parts; the others have parts of their own.
    """

    def __init__(self, header: Header, parts: Sequence[Part]) -> None:
        tracks: dict[tuple[str, ...], list[Part]] = {}
        for part in parts:
            tracks.setdefault(part.layers, []).append(part)
        ran = {layer for layers in tracks for layer in layers}
        self.layers = tuple(name for name, _ in header.layers if name in ran or not parts)
        self.dtype = header.dtype
        self.complete = header.num_samples is not None
        self.num_bytes = sum(part.num_bytes for part in parts)
        self._header = header
        self._expert_dims = dict(header.layers)
        self._tracks = {layers: tuple(mine) for layers, mine in tracks.items()}

    @property
    def num_samples(self) -> int:
        """``n``.

        Raises:
            ValueError: If layers ran on different numbers of samples.
        """
        return sum(part.num_samples for part in self._parts)

    @property
    def _parts(self) -> tuple[Part, ...]:
        """The parts in order, where all layers ran on the same samples."""
        if len(self._tracks) > 1:
            counts = {layers[0]: sum(part.num_samples for part in mine) for layers, mine in self._tracks.items()}
            raise ValueError(
                f"the layers ran on samples of their own, {counts}; name one, or take recording.in_step_with(layer)"
            )
        return next(iter(self._tracks.values()), ())

    @abstractmethod
    def in_step_with(self, layer: str | None = None) -> LayerCoefficients:
        """The layers that ran on the same samples as one."""

    def _parts_of(self, layer: str) -> tuple[Part, ...]:
        """The parts that a layer is in."""
        return next((parts for layers, parts in self._tracks.items() if layer in layers), ())

    def expert_dims(self, layer: str | None = None) -> tuple[int, ...]:
        """The sizes of a layer's expert modes.

        Args:
            layer: The layer's name; may be left out if there is one layer only.

        Raises:
            ValueError: If no layer of this name was recorded, or there are several and none is named.
        """
        return self._expert_dims[self.resolve(layer)]

    def resolve(self, layer: str | None = None) -> str:
        """The name of a layer of the recording.

        Args:
            layer: The layer's name; may be left out if there is one layer only.

        Raises:
            ValueError: If no layer of this name was recorded, or there are several and none is named.
        """
        if layer is not None:
            check_kind("layer", layer, str)
        if layer is None and len(self.layers) == 1:
            return self.layers[0]
        if layer in self.layers:
            return str(layer)
        names = ", ".join(map(repr, self.layers))
        if layer is None:
            raise ValueError(f"the recording has {len(self.layers)} layers, name one of them: {names}")
        reason = "never ran" if layer in self._expert_dims else "was not recorded"
        raise ValueError(f"layer {layer!r} {reason}; the recording has {names}")

    def chunks(self) -> Iterator[Part]:
        """The samples in order, some at a time.

        Yields:
            Chunks: each has ``start`` and ``num_samples``, ``modes(layer)`` with the coefficients of each expert mode
            as `Rows`, and ``annotations``, those given while recording.
        """
        yield from self._parts

    def grid(self, layer: str | None = None, mode: Mode = 0) -> tuple[int, ...]:
        """The sizes of the expert modes that a mode's experts are counted over: one, or all for ``"product"``.

        Args:
            layer: The layer's name; may be left out if there is one layer only.
            mode: The number of an expert mode, or ``"product"``.

        Raises:
            ValueError: If there is no such layer or mode.
        """
        name = self.resolve(layer)
        sizes = self._expert_dims[name]
        if mode == "product":
            return sizes
        if not is_whole(mode) or not 0 <= mode < len(sizes):
            raise ValueError(
                f"mode {mode!r} is not one of the {len(sizes)} expert modes of layer {name!r}, counted from 0, "
                "nor 'product'"
            )
        return (sizes[mode],)

    def stream(self, layer: str | None = None, mode: Mode = 0) -> Iterator[tuple[int, Rows]]:
        """The coefficients of one expert mode, some samples at a time.

        Args:
            layer: The layer's name; may be left out if there is one layer only.
            mode: The number of an expert mode, or ``"product"``: the experts of the whole grid, numbered with the last
                mode fastest, each with the product of its coefficients in all modes.

        Returns:
            Pairs of the number of the first sample and the coefficients from there on.

        Raises:
            ValueError: If there is no such layer or mode.
        """
        self.grid(layer, mode)
        name = self.resolve(layer)
        parts = self._parts_of(name)
        if mode == "product":
            return (found for part in parts for found in _products(part.start, part.modes(name)))
        return ((part.start, part.modes(name)[mode]) for part in parts)

    def coefficients(self, layer: str | None = None, mode: Mode = 0) -> Tensor:
        """All coefficients of one expert mode as a matrix, which is built: see `stream` for large recordings.

        Args:
            layer: The layer's name; may be left out if there is one layer only.
            mode: The number of an expert mode, or ``"product"`` as for `stream`.

        Returns:
            The coefficients, ``(n, N)``.

        Raises:
            ValueError: If there is no such layer or mode.
        """
        matrix = torch.zeros(
            sum(part.num_samples for part in self._parts_of(self.resolve(layer))),
            math.prod(self.grid(layer, mode)),
            dtype=self.dtype,
        )
        for start, rows in self.stream(layer, mode):
            matrix[start : start + len(rows)] = rows.dense()
        return matrix


def _products(start: int, modes: Sequence[Rows]) -> Iterator[tuple[int, Rows]]:
    """The products of all modes' coefficients, for as many samples at a time as have `PRODUCTS` of them."""
    counts = torch.stack([rows.nonzeros() for rows in modes]).double().prod(dim=0)
    first = 0
    while first < len(counts):
        fitting = int((counts[first:].cumsum(0) <= PRODUCTS).sum())
        samples = slice(first, first + max(1, fitting))
        yield start + first, reduce(Rows.outer, (rows[samples] for rows in modes))
        first = samples.stop
