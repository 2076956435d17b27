"""Coefficients and annotations as users give them, made into what a recording holds.

Legend: ``n`` samples, ``N`` experts of one mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from factorized_moe._validation import check_strings, check_values
from factorized_moe.interpret.finding import ROOT_NAME
from factorized_moe.interpret.recording.chunks import Annotations, Chunk
from factorized_moe.interpret.recording.header import Header
from factorized_moe.interpret.recording.rows import Rows

__all__ = ["CHUNK_ELEMENTS", "DTYPES", "as_ints", "as_texts", "chunk_samples", "given_parts"]

CHUNK_ELEMENTS = 2**22
"""Elements of a chunk's largest matrix of coefficients, written out dense: 16 MiB of float32."""

DTYPES = (torch.float16, torch.float32, torch.float64)
"""The types that coefficients are stored in."""


def given_parts(
    coefficients: Any,
    labels: Tensor | None,
    ids: Tensor | Sequence[int] | None,
    texts: Sequence[str] | None,
    class_names: Sequence[str],
) -> tuple[Header, list[Chunk]]:
    """The header and the chunks of coefficients that are at hand, as `Recording.from_coefficients` takes them.

    The chunks are views of the tensors.
    """
    layers = coefficients if isinstance(coefficients, Mapping) else {ROOT_NAME: coefficients}
    if not layers:
        raise ValueError("coefficients are of no layer; give a tensor (n, N), or several by the layers' names")
    matrices = {name: _matrices(name, given) for name, given in layers.items()}
    counts = {name: len(modes[0]) for name, modes in matrices.items()}
    if len({len(matrix) for modes in matrices.values() for matrix in modes}) > 1:
        shapes = {name: [tuple(matrix.shape) for matrix in modes] for name, modes in matrices.items()}
        raise ValueError(f"coefficients have different numbers of samples: {shapes}; give each layer in one recording")
    dtypes = {matrix.dtype for modes in matrices.values() for matrix in modes}
    if len(dtypes) > 1:
        raise TypeError(f"coefficients are of types {sorted(map(str, dtypes))}, expected one type")
    samples = next(iter(counts.values()))
    annotations = Annotations(as_ints("ids", ids), labels, as_texts(texts))
    for kind in annotations.kinds:
        if len(getattr(annotations, kind)) != samples:
            raise ValueError(
                f"got {len(getattr(annotations, kind)):,} {kind} for {samples:,} samples; give one for each"
            )
    sizes = tuple((name, tuple(matrix.shape[1] for matrix in modes)) for name, modes in matrices.items())
    header = Header(sizes, dtypes.pop(), check_strings("class_names", class_names), samples)
    step = chunk_samples(modes for _, modes in sizes)
    return header, [
        Chunk(
            first,
            min(step, samples - first),
            {
                name: tuple(Rows(matrix[first : first + step], None, None, matrix.shape[1]) for matrix in modes)
                for name, modes in matrices.items()
            },
            annotations[first : first + step],
        )
        for first in range(0, samples, step)
    ]


def chunk_samples(layers: Iterable[Sequence[int]]) -> int:
    """The samples of a chunk, for the sizes of each layer's expert modes."""
    return max(1, CHUNK_ELEMENTS // max(size for modes in layers for size in modes))


def _matrices(layer: str, given: Any) -> list[Tensor]:
    """A layer's coefficients, one ``(n, N)`` for each expert mode."""
    modes = [given] if isinstance(given, Tensor) else given
    if isinstance(modes, str) or not isinstance(modes, Sequence) or not modes:
        raise TypeError(
            f"coefficients of layer {layer!r} are a tensor (n, N), or a sequence with one for each expert mode, "
            f"got {type(given).__name__}"
        )
    found = []
    for matrix in modes:
        check_values(f"coefficients of layer {layer!r}", matrix)
        if matrix.dtype not in DTYPES:
            raise TypeError(f"coefficients of layer {layer!r} are {matrix.dtype}, expected float16, float32 or float64")
        if matrix.ndim < 2 or not matrix.shape[-1]:
            raise ValueError(f"coefficients of layer {layer!r} have shape {tuple(matrix.shape)}, expected (n, N)")
        found.append(matrix.detach().cpu().reshape(-1, matrix.shape[-1]))
    return found


def as_ints(kind: str, given: Tensor | Sequence[int] | None, advice: str = "") -> Tensor | None:
    """As int64 in one row; ``kind`` is what the message calls them, ``advice`` what it says to do about strings.

    Raises:
        TypeError: If they are not ints.
    """
    if given is None:
        return None
    try:
        tensor = torch.as_tensor(given).detach().cpu().reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:  # strings, and rows of different lengths
        raise TypeError(f"{kind} are ints, got {type(given).__name__} of other things{advice}") from error
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        raise TypeError(f"{kind} are ints, got {tensor.dtype}")
    return tensor.to(torch.int64, copy=True)


def as_texts(texts: Sequence[str] | None) -> tuple[str, ...] | None:
    """As a tuple.

    Raises:
        TypeError: If they are no sequence of strings.
    """
    if texts is None:
        return None
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError("texts is a sequence with one string for each sample")
    return tuple(texts)
