"""What a report page is built from: the layers of a run and what its samples were.

Legend: ``n`` samples (images, or the tokens of all texts), ``N`` experts of one mode, ``C`` classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from factorized_moe._reading import check_room
from factorized_moe._validation import check_kind
from factorized_moe.interpret.measures.polysemanticity import Polysemanticity
from factorized_moe.interpret.measures.spectra import ExpertSpectra
from factorized_moe.interpret.recording.recording import Recording
from factorized_moe.interpret.report.layer import RADIUS, LayerSummary, mode_name
from factorized_moe.interpret.report.samples import Images, Patches, Texts

__all__ = ["ReportData"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ReportData:
    """The data of a report page: what the experts of a model's layers did on one data set.

    Attributes:
        title: What the run is called.
        layers: Its layers, one entry for each expert mode.
        facts: Names and values for the overview, in order: the model, the data, what was measured.
        classes: The classes' names.
        labels: The class of each sample, -1 without, ``(n,)``.
        inputs: What the samples were; without them the page numbers the samples.

    Raises:
        ValueError: If the parts do not fit each other.
    """

    title: str
    layers: Sequence[LayerSummary]
    facts: Sequence[tuple[str, str]] = ()
    classes: Sequence[str] = ()
    labels: NDArray[Any] | None = None
    inputs: Images | Patches | Texts | None = None

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        if len(set(names)) < len(names):
            raise ValueError(f"two layers have the same name: {names}; name the expert modes too")
        counts = {f"layer {layer.name!r}": layer.num_samples for layer in self.layers}
        counts |= {} if self.labels is None else {"labels": len(self.labels)}
        counts |= {} if self.inputs is None else {"inputs": len(self.inputs)}
        if len(set(counts.values())) > 1:
            raise ValueError(f"the number of samples differs: {counts}; expected one for each token or patch")
        if self.labels is not None and (self.labels.ndim != 1 or self.labels.dtype.kind not in "iu"):
            raise ValueError(f"labels are {self.labels.dtype} of shape {self.labels.shape}, expected ints (n,)")
        if self.labels is not None and len(self.labels) and int(self.labels.min()) < -1:
            raise ValueError(f"labels go down to {int(self.labels.min())}, expected classes from 0, or -1 for none")
        if self.labels is not None and len(self.labels) and int(self.labels.max()) >= len(self.classes):
            raise ValueError(f"labels go up to {int(self.labels.max())}, but {len(self.classes)} classes are named")
        for layer in self.layers:
            self._check_layer(layer)

    @classmethod
    def from_recording(
        cls,
        recording: Recording,
        title: str,
        *,
        inputs: Images | Patches | Texts | None = None,
        facts: Sequence[tuple[str, str]] = (),
        threshold: float = 0.5,
        context: int = RADIUS,
        descriptions: Mapping[str, str] = MappingProxyType({}),
        effects: Mapping[str, Polysemanticity] = MappingProxyType({}),
        spectra: Mapping[str, ExpertSpectra] = MappingProxyType({}),
    ) -> ReportData:
        """A report on all layers of a recording, and all their expert modes.

        What is given for a layer is given under its name, such as ``"head"``; for an expert mode of several under
        ``"head, mode 1"``.

        Args:
            recording: The recording. Labels and class names, where it has them, are shown.
            title: What the run is called.
            inputs: The images, or the images or texts whose patches or tokens the samples are; without them the texts
                of the recording, each for itself, if it has any.
            facts: Names and values for the overview.
            threshold: The coefficient from which an expert counts as taking a sample.
            context: Of texts, how many tokens the page holds on either side of a top token. It shows 12 and the others
                on demand.
            descriptions: A line on what a layer is.
            effects: What taking out each expert of a layer did.
            spectra: The singular values of each expert's matrix.

        Raises:
            ValueError: If something is given for a layer that was not recorded, the parts do not fit each other, or a
                coefficient is not finite.

        Examples:
            >>> import torch
            >>> from factorized_moe import CPMuMoE
            >>> from factorized_moe.interpret import record
            >>> layer = CPMuMoE(8, 3, [6], rank=2)
            >>> with record(layer, class_names=["cat", "dog"]) as log:
            ...     y = layer(torch.randn(4, 8))
            ...     log.annotate(labels=[0, 1, 1, 0])
            >>> data = ReportData.from_recording(log.recording, "A new layer", facts=[("Decomposition", "CP")])
            >>> [layer.name for layer in data.layers], data.classes
            (['model'], ('cat', 'dog'))
        """
        check_kind("recording", recording, Recording)
        check_kind("title", title, str)
        if inputs is None and recording.num_samples and recording.has("texts"):
            inputs = Texts([[text] for text in recording.texts])
        modes = [(layer, mode) for layer in recording.layers for mode in range(len(recording.expert_dims(layer)))]
        names = [mode_name(layer, mode, len(recording.expert_dims(layer))) for layer, mode in modes]
        unknown = sorted({*descriptions, *effects, *spectra} - set(names))
        if unknown:
            raise ValueError(f"something is given for {unknown}, but the recording has {names}")
        layers = [
            LayerSummary.from_recording(
                recording,
                layer,
                mode,
                threshold=threshold,
                texts=None if isinstance(inputs, Images) else inputs,
                context=context,
                polysemanticity=effects.get(name),
                spectra=spectra.get(name),
                description=descriptions.get(name, ""),
            )
            for name, (layer, mode) in zip(names, modes, strict=True)
        ]
        labels = recording.labels if recording.num_samples and recording.has("labels") else None
        most = 0 if labels is None else int(labels.max()) + 1
        check_room(f"names of {most:,} classes", 64 * most, recording.num_bytes)
        return cls(
            title=title,
            layers=layers,
            facts=facts,
            classes=recording.class_names or tuple(map(str, range(most))),
            labels=None if labels is None else labels.numpy(),
            inputs=inputs,
        )

    def __repr__(self) -> str:
        inputs = "no inputs" if self.inputs is None else f"{len(self.inputs):,} {type(self.inputs).__name__.lower()}"
        return f"ReportData({self.title!r}, {len(self.layers)} layers, {len(self.classes)} classes, {inputs})"

    def _check_layer(self, layer: LayerSummary) -> None:
        for field in ("class_share", "accuracy_drop"):
            array = getattr(layer, field)
            if array is not None and array.shape[1] != len(self.classes):
                raise ValueError(
                    f"{field} of layer {layer.name!r} has {array.shape[1]} classes, but {len(self.classes)} are named; "
                    "record with class_names, one for each class"
                )
        if layer.top_samples.size and int(layer.top_samples.max()) >= layer.num_samples:
            raise ValueError(
                f"top_samples of layer {layer.name!r} go up to {int(layer.top_samples.max())}, "
                f"expected numbers below {layer.num_samples}"
            )
        if layer.context is not None and not isinstance(self.inputs, Texts):
            raise ValueError(f"layer {layer.name!r} has a context, but the inputs are no texts; give inputs=Texts(...)")
        if isinstance(self.inputs, Texts) and layer.context is not None:
            numbers = layer.context_numbers
            if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(self.inputs):
                raise ValueError(
                    f"context of layer {layer.name!r} has values of the tokens {int(numbers.min())} to "
                    f"{int(numbers.max())}, but the texts have {len(self.inputs)}"
                )

    def slugs(self) -> list[str]:
        """The layers' names as they stand in links: letters, digits, dots and hyphens, each once.

        Examples:
            >>> import torch
            >>> from factorized_moe import CPMuMoE
            >>> from factorized_moe.interpret import record
            >>> layer = CPMuMoE(8, 3, [6, 5], rank=2)
            >>> with record(layer) as log:
            ...     y = layer(torch.randn(4, 8))
            >>> ReportData.from_recording(log.recording, "A run").slugs()
            ['model-mode-0', 'model-mode-1']
        """
        slugs: list[str] = []
        for layer in self.layers:
            stem = re.sub(r"[^A-Za-z0-9.]+", "-", layer.name).strip("-.") or "layer"
            slug, number = stem, 1
            while slug in slugs:
                number += 1
                slug = f"{stem}-{number}"
            slugs.append(slug)
        return slugs
