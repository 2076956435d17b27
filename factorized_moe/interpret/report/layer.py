"""What a report shows of one layer, as plain arrays.

Legend: ``n`` samples (images, or the tokens of all texts), ``N`` experts of one mode, ``C`` classes, ``K`` top samples
kept of each expert, ``W`` tokens around a top token, ``B`` bins, ``S`` singular values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factorized_moe._reading import check_room
from factorized_moe._scalars import is_whole
from factorized_moe.interpret.measures.activity import LoadCollector
from factorized_moe.interpret.measures.labelling import LabelCollector, LabelCounts
from factorized_moe.interpret.measures.polysemanticity import Polysemanticity
from factorized_moe.interpret.measures.ranking import TopSamplesCollector
from factorized_moe.interpret.measures.spectra import ExpertSpectra
from factorized_moe.interpret.recording.coefficients import Mode
from factorized_moe.interpret.recording.recording import Recording
from factorized_moe.interpret.recording.streaming import Collector, collect, in_step
from factorized_moe.interpret.report.samples import Patches, Texts
from factorized_moe.interpret.report.streams import ContextCollector, ExpertHistograms, NoNegatives, TopTokens

__all__ = ["LayerSummary", "mode_name"]

Array = NDArray[Any]

TOP_IMAGES = 12
TOP_TEXTS = 6
"""Fewer than images: a text takes a few lines of the page."""

RADIUS = 12
"""Tokens shown on either side of a top token."""

BINS = 40

BYTES_PER_EXPERT = 8 * BINS + 16 * TOP_IMAGES + 12 * TOP_TEXTS * (2 * RADIUS + 1)
"""What a summary takes while it is made."""

PER_EXPERT = {
    "load": "iu",
    "mean": "f",
    "largest": "f",
    "histogram": "iu",
    "top_samples": "iu",
    "top_coefficients": "f",
    "top_equal": "iu",
    "context": "f",
    "class_share": "f",
    "accuracy_drop": "f",
    "polysemanticity": "f",
    "spectrum": "f",
}
"""The arrays of a layer that have one row for each expert, with the kinds of numpy dtype that each may have."""


MEASURED = ("mean", "largest")
"""Those that are finite for every expert, where there are samples."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerSummary:
    """What a report shows of one expert mode of a layer: loads, coefficients and top samples of its experts.

    Attributes:
        name: The layer's name, and the mode's where the layer has several; different for each layer of a report.
        description: A line on what the layer is, such as its decomposition and rank.
        threshold: The coefficient from which an expert counts as taking a sample.
        num_samples: ``n``.
        load: For each expert the number of samples that reach the threshold, ``(N,)``.
        mean: The mean coefficient, ``(N,)``.
        largest: The largest coefficient, ``(N,)``.
        histogram: How many coefficients lie in each of ``B`` equal bins from 0 to `histogram_end`, ``(N, B)``.
        histogram_end: Where the last bin ends.
        top_samples: The samples with the largest coefficients, largest first, -1 where there are fewer, ``(N, K)``.
        top_coefficients: Their coefficients, ``(N, K)``.
        top_equal: How many samples have the coefficient of the last top sample, ``(N,)``. Where that is more than are
            shown of them, those shown were drawn at random: "12 of 261 equal". Not known of tokens.
        context: Of texts: the expert's coefficients of the tokens around each top token, which is in the middle; NaN
            beyond the ends of its text, ``(N, K, W)`` with ``W`` odd.
        class_share: How the sum of the expert's coefficients divides among the classes, ``(N, C)``.
        accuracy_drop: The share of each class's accuracy lost without the expert, ``(N, C)``.
        polysemanticity: The expert's class-level polysemanticity, NaN without effect, ``(N,)``.
        spectrum: The singular values of the expert's matrix, largest first, ``(N, S)``.

    Raises:
        TypeError: If an array is of another kind of numbers.
        ValueError: If the arrays do not fit each other.
    """

    name: str
    threshold: float
    num_samples: int
    load: Array
    mean: Array
    largest: Array
    histogram: Array
    top_samples: Array
    top_coefficients: Array
    description: str = ""
    histogram_end: float = 1.0
    top_equal: Array | None = None
    context: Array | None = None
    class_share: Array | None = None
    accuracy_drop: Array | None = None
    polysemanticity: Array | None = None
    spectrum: Array | None = None

    def __post_init__(self) -> None:
        for field, kinds in PER_EXPERT.items():
            array = getattr(self, field)
            if array is None:
                continue
            if array.dtype.kind not in kinds:
                wanted = "integers" if "i" in kinds else "floating-point numbers"
                raise TypeError(f"{field} of layer {self.name!r} has type {array.dtype}, expected {wanted}")
            if array.shape[:1] != self.load.shape[:1] or array.ndim != self._axes(field):
                raise ValueError(
                    f"{field} of layer {self.name!r} has shape {array.shape}, expected {self._axes(field)} axes with "
                    f"the {self.num_experts} experts first"
                )
            if array.size and (fault := _fault(field, array, self.num_samples)):
                raise ValueError(f"{field} of layer {self.name!r} {fault}")
        if self.top_samples.shape != self.top_coefficients.shape:
            raise ValueError(
                f"top_samples and top_coefficients of layer {self.name!r} have shapes {self.top_samples.shape} and "
                f"{self.top_coefficients.shape}, expected the same"
            )
        if self.context is not None and (self.context.shape[:2] != self.top_samples.shape or not self._width % 2):
            raise ValueError(
                f"context of layer {self.name!r} has shape {self.context.shape}, expected (N, K, W) with (N, K) = "
                f"{self.top_samples.shape} and W odd"
            )

    @classmethod
    def from_recording(
        cls,
        recording: Recording,
        layer: str | None = None,
        mode: Mode = 0,
        *,
        threshold: float = 0.5,
        texts: Texts | Patches | None = None,
        context: int = RADIUS,
        polysemanticity: Polysemanticity | None = None,
        spectra: ExpertSpectra | None = None,
        description: str = "",
    ) -> LayerSummary:
        """Reduce the coefficients of one expert mode to what a report shows, reading chunk by chunk.

        Of texts, an expert's top samples are its largest tokens of different texts, so that no text fills the list;
        of patches its largest patches of different images.

        Args:
            recording: The recording; with labels, how each expert's coefficients divide among the classes is found.
            layer: The layer's name; may be left out if there is one layer only.
            mode: The number of an expert mode, or ``"product"`` for the experts of the whole grid.
            threshold: The coefficient from which an expert counts as taking a sample.
            texts: The texts that the samples are the tokens of, or the images that they are the patches of.
            context: Of texts, how many tokens to keep on either side of a top token.
            polysemanticity: What taking out each expert did.
            spectra: The singular values of each expert's matrix.
            description: A line on what the layer is.

        Raises:
            TypeError: If the context is no int.
            ValueError: If there is no such layer or mode, a coefficient is not finite, the context is negative, or the
                texts have another number of tokens, or the images of patches, than the recording has samples.

        Examples:
            >>> import torch
            >>> from factorized_moe import CPMuMoE
            >>> from factorized_moe.interpret import record
            >>> model = CPMuMoE(8, 3, [6, 5], rank=2)
            >>> with record(model) as log:
            ...     y = model(torch.randn(4, 8))
            >>> layer = LayerSummary.from_recording(log.recording, mode=1)
            >>> layer.name, layer.num_experts, layer.load.tolist()
            ('model, mode 1', 5, [0, 0, 0, 0, 0])
        """
        recording = in_step(recording, layer)
        name = recording.resolve(layer)
        grid = recording.grid(name, mode)
        experts = math.prod(grid)
        if not is_whole(context) or context < 0:
            raise (ValueError if is_whole(context) else TypeError)(f"context must be an int from 0 up, got {context!r}")
        size = BYTES_PER_EXPERT + 24 * TOP_TEXTS * max(0, context - RADIUS)
        check_room(f"a summary of {experts:,} experts", size * experts, recording.num_bytes)
        if texts is not None and len(texts) != recording.num_samples:
            raise ValueError(
                f"the texts have {len(texts)} tokens, the recording {recording.num_samples} samples; "
                "expected one sample for each token of all texts, in order, or for each patch of all images"
            )
        # Two passes: where the histograms end, and around which tokens to look, is known after the first.
        load, counts = LoadCollector(grid, threshold), None
        images = None if texts is not None else TopSamplesCollector(recording, TOP_IMAGES, 0, name, mode)
        count = TOP_IMAGES if isinstance(texts, Patches) else TOP_TEXTS
        tokens = None if texts is None else TopTokens(texts, experts, count, recording.dtype)
        first: list[Collector] = [load, *(found for found in (images, tokens) if found is not None)]
        if recording.num_samples > 0 and recording.has("labels"):
            counts = LabelCollector(recording, None, 0.0, grid)
            first += [NoNegatives(name), counts]
        collect(recording, name, mode, f"layer {name}, first pass", *first)
        loads, equal = load.result(), None
        if images is not None:
            top = images.result()
            samples, values, equal = top.samples, top.values, None if top.equal is None else top.equal.numpy()
        elif tokens is not None:
            samples, values = tokens.result()
        end = max(1.0, float(loads.largest.max())) if len(loads.largest) else 1.0
        histograms = ExpertHistograms(experts, BINS, end)
        around = ContextCollector(texts, samples, int(context)) if isinstance(texts, Texts) else None
        second: list[Collector] = [histograms] if around is None else [histograms, around]
        collect(recording, name, mode, f"layer {name}, second pass", *second)
        return cls(
            name=mode_name(name, mode, len(recording.expert_dims(name))),
            description=description,
            threshold=threshold,
            num_samples=recording.num_samples,
            load=loads.counts.numpy(),
            mean=loads.means.numpy(),
            largest=loads.largest.numpy(),
            histogram=histograms.result().numpy(),
            histogram_end=end,
            top_samples=samples.numpy(),
            top_coefficients=values.float().numpy(),
            top_equal=equal,
            context=None if around is None else around.result().numpy(),
            class_share=None if counts is None else _class_share(counts.result()),
            accuracy_drop=None if polysemanticity is None else polysemanticity.accuracy_drop.cpu().numpy(),
            polysemanticity=None if polysemanticity is None else polysemanticity.scores.cpu().numpy(),
            spectrum=None if spectra is None else spectra.singular_values.float().cpu().numpy(),
        )

    @staticmethod
    def _axes(field: str) -> int:
        return {"load": 1, "top_equal": 1, "mean": 1, "largest": 1, "polysemanticity": 1, "context": 3}.get(field, 2)

    @property
    def _width(self) -> int:
        return 0 if self.context is None else self.context.shape[2]

    @property
    def context_numbers(self) -> Array:
        """The numbers of the tokens that the context has a value of; none without a context."""
        if self.context is None:
            return np.zeros(0, np.int64)
        radius = self._width // 2
        around = self.top_samples.astype(np.int64)[..., None] + np.arange(-radius, radius + 1)  # (N, K, W)
        numbers: Array = around[~np.isnan(self.context.astype(float))]
        return numbers

    def __repr__(self) -> str:
        return f"LayerSummary({self.name!r}, {self.num_experts:,} experts, {self.num_samples:,} samples)"

    @property
    def num_experts(self) -> int:
        """``N``."""
        return len(self.load)

    @property
    def num_active(self) -> int:
        """The number of experts that take at least one sample."""
        return int((self.load > 0).sum())


def _fault(field: str, array: Array, num_samples: int) -> str | None:
    """What is wrong with the values of an array; ``None`` if nothing is."""
    if array.dtype.kind in "iu":
        least, most = (-1, 2**62) if field == "top_samples" else (0, num_samples)
        if int(array.min()) < least or int(array.max()) > most:
            return f"goes from {array.min()} to {array.max()}, expected counts of {num_samples} samples"
    elif field in MEASURED and not bool(np.isfinite(array).all()):
        return "has a value that is not finite"
    return None


def mode_name(layer: str, mode: Mode, modes: int) -> str:
    """What an expert mode is called in a report: by its layer, with the mode where there are several.

    Args:
        layer: The layer's name.
        mode: The mode.
        modes: How many modes the layer has.

    Examples:
        >>> mode_name("head", 0, 1), mode_name("head", 1, 2)
        ('head', 'head, mode 1')
    """
    if mode == "product":
        return f"{layer}, whole grid"
    return layer if modes == 1 else f"{layer}, mode {mode}"


def _class_share(counts: LabelCounts) -> Array:
    """How the sum of each expert's coefficients divides among the classes, ``(N, C)``; zeros where it is 0."""
    sums = counts.means.nan_to_num() * counts.class_sizes  # (N, C)
    return (sums / sums.sum(dim=1, keepdim=True)).nan_to_num().numpy()
