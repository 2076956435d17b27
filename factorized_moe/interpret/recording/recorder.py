"""Recording the coefficients of a model's gates while it runs.

Legend: ``*batch`` any leading shape, ``N_k`` experts of mode k.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._validation import check_flag, check_strings
from factorized_moe._writing import place_of
from factorized_moe.interpret.finding import find_layers
from factorized_moe.interpret.recording import given as limits
from factorized_moe.interpret.recording.chunks import Annotations, Chunk, write_chunk
from factorized_moe.interpret.recording.given import DTYPES, as_ints, as_texts
from factorized_moe.interpret.recording.header import HEADER_NAME, Header, chunk_path, chunk_paths
from factorized_moe.interpret.recording.hooks import WatchingHook
from factorized_moe.interpret.recording.opening import open_recording
from factorized_moe.interpret.recording.padding import PaddingWatch
from factorized_moe.interpret.recording.recording import Recording
from factorized_moe.interpret.recording.rows import Rows
from factorized_moe.interpret.recording.tracks import Call, Track
from factorized_moe.layers import ExpertLayer

__all__ = ["Recorder", "record"]


@contextmanager
def record(
    model: nn.Module,
    layers: str | Sequence[str] | None = None,
    folder: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    class_names: Sequence[str] = (),
    mask: str | None = "attention_mask",
    in_step: bool = True,
) -> Iterator[Recorder]:
    """Record the coefficients of a model's uMoE layers, of all their expert modes, while it runs.

    Each position of the leading shape of a gate's input is one sample, in order: of ``(batch, tokens, I)`` the tokens
    of the first sequence come first. A block's two layers share one gate, which is recorded once. What is recorded is
    what the gate returns, after hooks that were registered on it earlier. The model's outputs stay the same, and
    nothing is left on it, also after an exception. Deep copies made meanwhile are not recorded. Only non-zero
    coefficients are stored where that takes less space.

    Padding is left out where the call says which it is: if the model, or a model of transformers within it that has
    recorded layers, is called with an ``attention_mask`` ``(B, W)``, positions where it is 0 are not recorded, of every
    layer that runs on ``(B, W)`` or ``(B * W,)``; where earlier positions are cached, of those that it runs on. A layer
    recorded on its own does not see such a call: give `Recorder.annotate` a mask.

    In a folder, samples are written while the model runs, in chunks of at most 16 MiB when dense. A recording that was
    cut off can be opened up to its last whole chunk.

    A model that was compiled and called before the block runs on without hooks, and the end of the block says that no
    layer ran: call ``torch.compiler.reset()`` first, or record the model that was compiled, whose parameters are the
    same. Compiled within the block, the graph breaks at every gate, so ``fullgraph=True`` fails. Where a training step
    recomputes a layer in the backward pass (checkpoints around it), its samples are recorded twice.

    Args:
        model: The model, or a single layer.
        layers: Names of layers, or patterns such as ``"blocks.*.mlp"``, as for `find_layers`; all by default.
        folder: Where to write, made if missing; in memory by default.
        dtype: The type to store coefficients in: ``torch.float32`` keeps those of a model in float32 or half precision
            exactly, ``torch.float16`` takes two thirds of the space where they are sparse and half elsewhere, and
            rounds them.
        class_names: The names of the classes, in the order of the labels.
        mask: The name of the argument of the model's call that is 0 or False for padding; ``None`` to record all.
        in_step: Whether all layers run on the same samples. Otherwise each has samples of its own, as the token layers
            and the pooled head of a Mixer have; `Recording.in_step_with` gives those of one layer.

    Yields:
        The recorder: call its ``annotate`` after each batch, and read its ``recording`` after the ``with`` block.

    Raises:
        OSError: If a chunk cannot be written; what is in the folder then stays readable, and what is not yet written
            stays in the recorder, which tries once more at the end of the block.
        TypeError: If an argument is of the wrong type.
        ValueError: If there is no layer to record, one never ran, layers ran on different numbers of samples, samples
            at the end have no annotations while earlier ones have, or the folder holds another recording.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> model = nn.Sequential(nn.Linear(5, 8), CPMuMoE(8, 3, [6], rank=2))
        >>> with record(model) as log:
        ...     y = model(torch.randn(4, 5))
        >>> log.recording.coefficients("1").shape
        torch.Size([4, 6])
    """
    chosen = find_layers(model, layers)
    _check_gates(chosen)
    if dtype not in DTYPES:
        raise ValueError(f"dtype is torch.float16, torch.float32 or torch.float64, got {dtype}")
    check_strings("class_names", class_names)
    check_flag("in_step", in_step)
    if mask is not None and not isinstance(mask, str):
        raise TypeError(f"mask is the name of an argument of the model's call, or None, got {mask!r}")
    sizes = tuple((name, layer.expert_dims) for name, layer in chosen.items())
    folder = None if folder is None else Path(folder)
    recorder = Recorder(Header(sizes, dtype, tuple(class_names)), folder, in_step)
    with ExitStack() as undo:
        if mask is not None:
            recorder._padding = PaddingWatch(model, chosen, mask)
            recorder._padding.attach(undo, _watching)
        for name, layer in chosen.items():
            undo.callback(layer.gate.register_forward_hook(_watching(recorder._hook(name))).remove)
        try:
            yield recorder
        except BaseException as error:
            recorder._close_early(error)
            raise
    recorder._close()


def _watching(hook: Callable[..., Any]) -> WatchingHook:
    """A hook that runs as it is in a compiled model, after a break in the graph, and in no copy of the model."""
    # Without torch's compiler in the process there is no such model, and loading it takes seconds.
    return WatchingHook(torch.compiler.disable(hook) if "torch._dynamo" in sys.modules else hook)


class Recorder:
    """Takes the coefficients of each batch, and what its samples are: what `record` gives to the ``with`` block.

    Args:
        header: The layers, and how to store them.
        folder: Where to write; ``None`` for memory.
        in_step: Whether all layers run on the same samples.

    Raises:
        ValueError: If the folder holds another recording.
    """

    def __init__(self, header: Header, folder: Path | None, in_step: bool = True) -> None:
        self._header = header
        self._folder = folder
        self._chunks: list[Chunk] = []
        self._num_chunks = 0
        self._open = True
        self._padding: PaddingWatch | None = None
        groups = [header.layers] if in_step else [((name, sizes),) for name, sizes in header.layers]
        self._tracks = [
            Track(dict(group), limits.chunk_samples(sizes for _, sizes in group), self._store) for group in groups
        ]
        self._track_of = {layer: track for track in self._tracks for layer in track.sizes}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if place_of(folder, HEADER_NAME).exists() or chunk_paths(folder):
                raise ValueError(f"{folder} holds another recording; give another folder, or delete that one first")
            header.write(folder)

    def __repr__(self) -> str:
        state = "under way" if self._open else "ended"
        return f"Recorder({self.num_samples:,} samples, layers {[name for name, _ in self._header.layers]}, {state})"

    @property
    def num_samples(self) -> int:
        """The samples recorded so far: of the layer that has most, where a forward pass is under way."""
        return max(track.most for track in self._tracks)

    @property
    def recording(self) -> Recording:
        """What was recorded, after the ``with`` block; also if that ended with an exception.

        Raises:
            ValueError: Within the ``with`` block.
        """
        if self._open:
            raise ValueError("the recording is under way; read it after the with block")
        if self._folder is not None:
            return open_recording(self._folder)
        return Recording(self._header, self._chunks)

    def annotate(
        self,
        *,
        labels: Tensor | Sequence[int] | None = None,
        ids: Tensor | Sequence[int] | None = None,
        texts: Sequence[str] | None = None,
        mask: Tensor | Sequence[bool] | None = None,
    ) -> None:
        """Say what the samples are that were recorded since the last call: call it after each batch, or never.

        Each may have one entry for each sample, or for each position that the layers ran on, padding included, or for
        each input of the batch's first axis, such as a sequence, which is then that of all its samples. Where layers
        have samples of their own (``in_step=False``), each takes what fits it.

        Args:
            labels: The class of each sample, ints from 0; of any shape, taken in order. Of padding, any int.
            ids: A number for each sample, such as its place in a data set; of any shape, taken in order.
            texts: A text for each sample, such as its token.
            mask: Which samples count, bool or 0 and 1; of any shape, taken in order. The others are forgotten.

        Raises:
            TypeError: If labels or ids are not ints, a text is not a string, or the mask has other values.
            ValueError: If their number is not that of the samples, other annotations were given for earlier samples,
                or a label is negative.
        """
        given = Annotations(
            as_ints("ids", ids), as_ints("labels", labels, "; recording.with_labels takes strings"), as_texts(texts)
        )
        if not given.kinds and mask is None:
            raise ValueError("annotate got nothing; give labels, ids, texts or a mask")
        if mask is not None:
            kept = _as_mask(mask)
            fits = [track.keep(kept) for track in self._tracks]
            if not any(fits):
                self._refuse("entries of a mask", len(kept))
        fitting = [track.fitting(given) for track in self._tracks]
        for kind in given.kinds:
            if not any(kind in found.kinds for found in fitting):
                self._refuse(kind, len(getattr(given, kind)))
        for track, found in zip(self._tracks, fitting, strict=True):
            track.annotate(found)

    def _refuse(self, what: str, count: int) -> None:
        expected = " or ".join(str(number) for number in sorted({track.expected() for track in self._tracks}))
        raise ValueError(
            f"got {count} {what} for {expected} samples, those recorded since the last "
            "call of annotate; call it after every batch with one for each sample"
        )

    def _hook(self, layer: str) -> Callable[[nn.Module, Any, Sequence[Tensor]], None]:
        track = self._track_of[layer]

        def take(gate: nn.Module, inputs: Any, coefficients: Sequence[Tensor]) -> None:
            expected = track.sizes[layer]
            if tuple(a.shape[-1] for a in coefficients) != expected:
                shapes = [tuple(a.shape) for a in coefficients]
                raise ValueError(f"the gate of layer {layer!r} returned shapes {shapes}, expected last axes {expected}")
            lead = tuple(coefficients[0].shape[:-1])
            kept = None if self._padding is None else self._padding.kept(lead)
            matrices = [a.detach().reshape(-1, a.shape[-1]) for a in coefficients]
            if kept is not None:
                matrices = [matrix[kept.to(matrix.device)] for matrix in matrices]
            rows = tuple(Rows.of(matrix.to(self._header.dtype)) for matrix in matrices)
            everything = torch.ones(math.prod(lead), dtype=torch.bool) if kept is None else kept
            track.take(layer, rows, Call(lead[0] if lead else 1, math.prod(lead[1:]), everything))

        return take

    def flush(self) -> None:
        """Write the samples that wait for their chunk to fill; of no use but after a full disk.

        The end of the ``with`` block does this. If it could not, make space and call it again: nothing is lost.

        Raises:
            OSError: If a chunk cannot be written.
        """
        for track in self._tracks:
            track.flush()

    def _store(self, chunk: Chunk) -> None:
        if self._folder is None:
            self._chunks.append(chunk)
        else:
            try:
                write_chunk(chunk, chunk_path(self._folder, self._num_chunks))
            except OSError as error:
                error.add_note(
                    f"The first {chunk.start:,} samples are whole in {self._folder}. Later ones wait in memory: "
                    "make space, and they are written at the end of the recording, or when you call flush()."
                )
                raise
        self._num_chunks += 1

    def _close(self) -> None:
        """Write what waits, and only then complain."""
        self._open = False
        self.flush()
        self._header = replace(self._header, num_samples=sum(track.written for track in self._tracks))
        if self._folder is not None:
            self._header.write(self._folder)
        for track in self._tracks:
            if track.silent:
                raise ValueError(
                    f"layer {track.silent[0]!r} never ran while recording, or on no samples; leave it out by "
                    "layers=[...]. A model compiled and called before runs without hooks: call torch.compiler.reset() "
                    "first"
                )
            samples = track.in_step()
            if 0 < track.annotated < samples:
                raise ValueError(
                    f"the last {samples - track.annotated:,} samples have no annotations, earlier ones have; they are "
                    "recorded: call annotate after every batch"
                )

    def _close_early(self, reason: BaseException) -> None:
        """Keep what was recorded before an exception, which stays the one that is raised."""
        self._open = False
        try:
            self.flush()
        except OSError as error:
            reason.add_note(f"Nor could the samples before it be written: {error}")


def _check_gates(layers: Mapping[str, ExpertLayer]) -> None:
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        first = owners.setdefault(id(layer.gate), name)
        if first != name:
            raise ValueError(
                f"layers {first!r} and {name!r} have one gate module between them, whose calls cannot be told apart; "
                "record a model in which each has its own"
            )


def _as_mask(given: Tensor | Sequence[bool]) -> Tensor:
    """As bool in one row."""
    tensor = torch.as_tensor(given).detach().cpu().reshape(-1)
    if tensor.dtype != torch.bool and not bool(((tensor == 0) | (tensor == 1)).all()):
        raise TypeError(f"mask is bool, or 0 and 1, got {tensor.dtype} with other values")
    return tensor != 0
