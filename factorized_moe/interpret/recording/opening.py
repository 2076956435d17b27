"""Recordings in folders, opened again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from factorized_moe._validation import check_path
from factorized_moe.interpret.recording.chunks import StoredChunk
from factorized_moe.interpret.recording.header import Header, chunk_path, chunk_paths
from factorized_moe.interpret.recording.recording import Recording

__all__ = ["open_recording"]


def open_recording(folder: str | Path) -> Recording:
    """Open a recording in a folder, up to its last whole chunk if it was cut off.

    Args:
        folder: The folder that `record` wrote to; it may still be written.

    Raises:
        ValueError: If the folder holds no recording, or a chunk is missing or damaged; where the recording was cut off,
            one before the last.

    Examples:
        >>> import tempfile
        >>> import torch
        >>> from factorized_moe import CPMuMoE
        >>> from factorized_moe.interpret import record
        >>> layer = CPMuMoE(8, 3, [6], rank=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with record(layer, folder=folder):
        ...         y = layer(torch.randn(4, 8))
        ...     open_recording(folder)
        Recording(4 samples, layers ['model'])
    """
    folder = check_path("folder", folder)
    header = Header.read(folder)
    paths = chunk_paths(folder)
    parts: list[StoredChunk] = []
    ends: dict[tuple[str, ...], int] = {}  # of each set of layers in step
    for number, path in enumerate(paths):
        if path.name != chunk_path(folder, number).name:
            raise ValueError(f"{chunk_path(folder, number)} is missing: put it back, or delete the later ones")
        try:
            part = StoredChunk(path)
        except ValueError:
            if path != paths[-1] or header.num_samples is not None:
                raise
            break  # the machine stopped while it was written
        _check_part(part, header, ends)
        end = ends.get(part.layers, 0)
        if part.start != end:
            raise ValueError(f"{path} starts with sample {part.start}, expected {end}: is it of another recording?")
        ends[part.layers] = end + part.num_samples
        parts.append(part)
    samples = sum(ends.values())
    if header.num_samples is not None and header.num_samples != samples:
        raise ValueError(
            f"{folder} holds {samples:,} samples of the {header.num_samples:,} that were recorded: the last chunks are "
            f"missing, put {chunk_path(folder, len(parts)).name} and later ones back"
        )
    return Recording(header, parts)


def _check_part(part: StoredChunk, header: Header, before: Mapping[tuple[str, ...], int]) -> None:
    """Refuse a chunk of other layers, sizes or types than the recording's, or that shares some layers with others."""
    known = dict(header.layers)
    if any(known.get(layer) != sizes for layer, sizes in part.sizes.items()):
        raise ValueError(f"{part.path} has layers {part.sizes}, but the recording {known}: is it of another recording?")
    if part.dtype != f"F{header.dtype.itemsize * 8}":
        raise ValueError(f"{part.path} has coefficients of type {part.dtype}, but the recording of {header.dtype}")
    for layers in before:
        if layers != part.layers and set(layers) & set(part.layers):
            raise ValueError(f"{part.path} has layers {part.layers}, but the chunks before it {layers}")
