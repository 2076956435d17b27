"""What the report page of the demonstration shows: the held-out images, recorded as any run records its own."""

from __future__ import annotations

from collections.abc import Sequence

from factorized_moe.demo.classifier import ImageClassifier
from factorized_moe.demo.images import ImageData
from factorized_moe.demo.training import predict
from factorized_moe.interpret import Polysemanticity, measure_spectra, record
from factorized_moe.interpret.report import Images, ReportData
from factorized_moe.interpret.report.layer import mode_name
from factorized_moe.layers import MuMoE

__all__ = ["describe_run"]

LAYER = "head"
"""The name of the classifier's layer of experts."""


def describe_run(
    title: str,
    facts: Sequence[tuple[str, str]],
    model: ImageClassifier,
    data: ImageData,
    effects: Sequence[Polysemanticity],
    threshold: float,
) -> ReportData:
    """Record the held-out images and gather what is known of the head's experts.

    Args:
        title: What the run is called.
        facts: Names and values for the overview.
        model: The classifier, with a head of experts.
        data: The images.
        effects: For each expert mode what taking out each expert did.
        threshold: The coefficient from which an expert counts as taking an image.
    """
    with record(model, LAYER, class_names=data.classes) as log:
        for images, labels in zip(data.held_out_images.split(1024), data.held_out_labels.split(1024), strict=True):
            predict(model, images)
            log.annotate(labels=labels)
    assert isinstance(model.head, MuMoE)
    names = [mode_name(LAYER, mode, len(effects)) for mode in range(len(effects))]
    spectra = {}
    if len(names) == 1:  # with several modes an expert of one of them has no matrix of its own
        spectra[LAYER] = measure_spectra(model.head.experts)
    return ReportData.from_recording(
        log.recording,
        title,
        inputs=Images(data.held_out_images.numpy()),
        facts=facts,
        threshold=threshold,
        descriptions=dict.fromkeys(names, "on the features of the convolutional trunk"),
        effects=dict(zip(names, effects, strict=True)),
        spectra=spectra,
    )
