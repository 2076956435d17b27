"""Recording the coefficients of a model's gates while it runs.

Legend: ``*batch`` any leading shape, ``N_k`` experts of mode k.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._validation import check_strings
from factorized_moe._writing import place_of
from factorized_moe.interpret.finding import find_layers
from factorized_moe.interpret.recording.chunks import Annotations, Chunk, write_chunk
from factorized_moe.interpret.recording.recording import (
    HEADER_NAME,
    Header,
    Recording,
    chunk_path,
    chunk_paths,
    open_recording,
)
from factorized_moe.interpret.recording.rows import Rows
from factorized_moe.layers import ExpertLayer

__all__ = ["Recorder", "record"]

CHUNK_ELEMENTS = 2**22
"""Elements of a chunk's largest matrix of coefficients, written out dense: 16 MiB of float32."""

DTYPES = (torch.float16, torch.float32, torch.float64)


@contextmanager
def record(
    model: nn.Module,
    layers: str | Sequence[str] | None = None,
    folder: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    class_names: Sequence[str] = (),
) -> Iterator[Recorder]:
    """Record the coefficients of a model's uMoE layers, of all their expert modes, while it runs.

    Each position of the leading shape of a gate's input is one sample, in order: of ``(batch, tokens, I)`` the tokens
    of the first sequence come first. A block's two layers share one gate, which is recorded once. What is recorded is
    what the gate returns, after hooks that were registered on it earlier. The model's outputs stay the same, and
    nothing is left on it, also after an exception. Only non-zero coefficients are stored where that takes less space.

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
    sizes = tuple((name, layer.expert_dims) for name, layer in chosen.items())
    recorder = Recorder(Header(sizes, dtype, tuple(class_names)), None if folder is None else Path(folder))
    handles = [layer.gate.register_forward_hook(recorder._hook(name)) for name, layer in chosen.items()]
    try:
        yield recorder
    except BaseException as error:
        recorder._close_early(error)
        raise
    finally:
        for handle in handles:
            handle.remove()
    recorder._close()


class Recorder:
    """Takes the coefficients of each batch, and what its samples are: what `record` gives to the ``with`` block.

    Args:
        header: The layers, and how to store them.
        folder: Where to write; ``None`` for memory.

    Raises:
        ValueError: If the folder holds another recording.
    """

    def __init__(self, header: Header, folder: Path | None) -> None:
        self._header = header
        self._folder = folder
        self._sizes = dict(header.layers)
        self._chunk_samples = max(1, CHUNK_ELEMENTS // max(size for _, sizes in header.layers for size in sizes))
        self._waiting: dict[str, list[tuple[Rows, ...]]] = {name: [] for name in self._sizes}
        self._recorded = dict.fromkeys(self._sizes, 0)
        self._annotations: list[Annotations] = []
        self._annotated = 0
        self._kinds: tuple[str, ...] = ()
        self._written = 0
        self._chunks: list[Chunk] = []
        self._num_chunks = 0
        self._open = True
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if place_of(folder, HEADER_NAME).exists() or chunk_paths(folder):
                raise ValueError(f"{folder} holds another recording; give another folder, or delete that one first")
            header.write(folder)

    @property
    def num_samples(self) -> int:
        """The samples recorded so far: of the layer that has most, where a forward pass is under way."""
        return max(self._recorded.values())

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
    ) -> None:
        """Say what the samples are that were recorded since the last call: call it after each batch, or never.

        Args:
            labels: The class of each sample, ints from 0; of any shape, taken in order.
            ids: A number for each sample, such as its place in a data set; of any shape, taken in order.
            texts: A text for each sample, such as its token.

        Raises:
            TypeError: If labels or ids are not ints, or a text is not a string.
            ValueError: If their number is not that of the samples, other annotations were given for earlier samples,
                or a label is negative.
        """
        given = Annotations(_ints("ids", ids), _ints("labels", labels), _strings(texts))
        if not given.kinds:
            raise ValueError("annotate got nothing; give labels, ids or texts")
        if given.labels is not None and len(given.labels) and int(given.labels.min()) < 0:
            raise ValueError(f"label {int(given.labels.min())} is negative; classes are numbered from 0")
        expected = self._in_step() - self._annotated
        for kind in given.kinds:
            if len(getattr(given, kind)) != expected:
                raise ValueError(
                    f"got {len(getattr(given, kind))} {kind} for {expected} samples, those recorded since the last "
                    "call of annotate; call it after every batch with one for each sample"
                )
        if given.kinds != self._kinds:
            if self._annotated or self._written:
                raise ValueError(
                    f"annotate got {_listed(given.kinds)}, for earlier samples {_listed(self._kinds)}; "
                    "give the same for every batch"
                )
            self._kinds = given.kinds
        self._annotations.append(given)
        self._annotated += expected
        self._write(everything=False)

    def _hook(self, layer: str) -> Callable[[nn.Module, Any, Sequence[Tensor]], None]:
        def take(gate: nn.Module, inputs: Any, coefficients: Sequence[Tensor]) -> None:
            # A layer that runs again, after as many samples as all others, starts a new forward pass.
            if not self._annotated and self._recorded[layer] and len(set(self._ran().values())) == 1:
                self._write(everything=False)
            self._take(layer, coefficients)

        # In a compiled model this runs as it is, after a break in the graph. Without torch's compiler in the process
        # there is none, and loading it takes seconds.
        return torch.compiler.disable(take) if "torch._dynamo" in sys.modules else take

    def _take(self, layer: str, coefficients: Sequence[Tensor]) -> None:
        expected = self._sizes[layer]
        if tuple(a.shape[-1] for a in coefficients) != expected:
            shapes = [tuple(a.shape) for a in coefficients]
            raise ValueError(f"the gate of layer {layer!r} returned shapes {shapes}, expected last axes {expected}")
        if self._written and not self._recorded[layer]:
            raise ValueError(
                f"layer {layer!r} first ran when {self._written:,} samples of other layers were stored; "
                "record it on its own"
            )
        dtype = self._header.dtype
        rows = tuple(Rows.of(a.detach().reshape(-1, a.shape[-1]).to(dtype)) for a in coefficients)
        self._waiting[layer].append(rows)
        self._recorded[layer] += len(rows[0])

    def _ran(self) -> dict[str, int]:
        """The samples of each layer that ran."""
        return {layer: samples for layer, samples in self._recorded.items() if samples}

    def _in_step(self) -> int:
        """The number of samples, if it is the same for all layers that ran."""
        ran = self._ran()
        least, most = min(ran, key=ran.__getitem__, default=""), max(ran, key=ran.__getitem__, default="")
        if ran and ran[least] != ran[most]:
            raise ValueError(
                f"layer {least!r} ran on {ran[least]:,} samples and layer {most!r} on {ran[most]:,}; "
                "record layers that run on different samples, or several times for each, on their own"
            )
        return ran.get(most, 0)

    def flush(self) -> None:
        """Write the samples that wait for their chunk to fill; of no use but after a full disk.

        The end of the ``with`` block does this. If it could not, make space and call it again: nothing is lost.

        Raises:
            OSError: If a chunk cannot be written.
        """
        if self._annotated:
            self._write(everything=True, until=self._annotated)
        self._annotations = []
        self._write(everything=True)

    def _write(self, everything: bool, until: int | None = None) -> None:
        """Turn waiting samples into chunks: all of them, or those that fill a chunk."""
        ran = self._ran()
        waiting = min(ran.values(), default=0) - self._written if until is None else until - self._written
        if waiting < (1 if everything else self._chunk_samples):
            return
        rows = {
            layer: tuple(Rows.concatenate(pieces) for pieces in zip(*self._waiting[layer], strict=True))
            for layer in ran
        }
        annotations = Annotations.concatenate(self._annotations)
        done = 0
        try:
            while waiting - done >= (1 if everything else self._chunk_samples):
                taken = slice(done, min(done + self._chunk_samples, waiting))
                chosen = {layer: tuple(mode[taken] for mode in modes) for layer, modes in rows.items()}
                self._store(Chunk(self._written, taken.stop - done, chosen, annotations[taken]))
                self._written += taken.stop - done
                done = taken.stop
        finally:
            rest = slice(done, None)
            self._waiting |= {layer: [tuple(mode[rest] for mode in modes)] for layer, modes in rows.items()}
            self._annotations = [annotations[rest]]

    def _store(self, chunk: Chunk) -> None:
        if self._folder is None:
            self._chunks.append(chunk)
        else:
            try:
                write_chunk(chunk, chunk_path(self._folder, self._num_chunks))
            except OSError as error:
                error.add_note(
                    f"The first {self._written:,} samples are whole in {self._folder}. Later ones wait in memory: "
                    "make space, and they are written at the end of the recording, or when you call flush()."
                )
                raise
        self._num_chunks += 1

    def _close(self) -> None:
        """Write what waits, and only then complain."""
        self._open = False
        self.flush()
        self._header = replace(self._header, num_samples=self._written)
        if self._folder is not None:
            self._header.write(self._folder)
        silent = [layer for layer, samples in self._recorded.items() if not samples]
        if silent:
            raise ValueError(
                f"layer {silent[0]!r} never ran while recording, or on no samples; leave it out by layers=[...]. A "
                "model compiled and called before runs without hooks: call torch.compiler.reset() first"
            )
        samples = self._in_step()
        if 0 < self._annotated < samples:
            raise ValueError(
                f"the last {samples - self._annotated:,} samples have no annotations, earlier ones have; they are "
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


def _ints(kind: str, given: Tensor | Sequence[int] | None) -> Tensor | None:
    """As int64 in one row."""
    if given is None:
        return None
    tensor = torch.as_tensor(given).detach().cpu().reshape(-1)
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        raise TypeError(f"{kind} are ints, got {tensor.dtype}")
    return tensor.to(torch.int64, copy=True)


def _strings(texts: Sequence[str] | None) -> tuple[str, ...] | None:
    if texts is None:
        return None
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError("texts is a sequence with one string for each sample")
    return tuple(texts)


def _listed(kinds: Sequence[str]) -> str:
    return " and ".join(kinds) or "nothing"
