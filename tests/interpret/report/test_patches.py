"""The patches that activate an expert most, of a vision transformer and of a mixer, in summaries, files and plots."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from factorized_moe import CPMuMoE, MuMoEBlock
from factorized_moe.interpret import Recording, find_layers, find_top_samples, record
from factorized_moe.interpret.report import Patches, ReportData, load_run, report_page, save_run
from factorized_moe.interpret.report.plots import plot_top_patches
from factorized_moe.surgery import MuMoEConfig, is_mlp, replace

pytestmark = pytest.mark.thorough

PIXELS = np.random.default_rng(0).integers(0, 255, (9, 24, 32, 3), dtype=np.uint8)
GRID = (3, 4)


class Mixer(nn.Module):
    """A layer of experts across the channels of each patch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 8, stride=8)
        self.across = nn.Linear(12, 12)
        self.channels = MuMoEBlock(8, 12, 8, expert_dims=[6], rank=3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).mT
        x = x + self.across(x.mT).mT
        return x + self.channels(x)


def mixer() -> tuple[nn.Module, str, int]:
    return Mixer(), "channels", 0


def vit() -> tuple[nn.Module, str, int]:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    model = transformers.ViTModel(transformers.ViTConfig(image_size=(24, 32), patch_size=8, **sizes))
    report = replace(model, is_mlp, MuMoEConfig(expert_dims=(6,), rank=3), last=1)
    return model, report.replacements[0].path, 1


def recorded(make: object) -> tuple[Recording, Patches]:
    torch.manual_seed(0)
    model, layer, prefix = make()  # type: ignore[operator]
    model.eval()
    nn.init.normal_(find_layers(model, layer)[layer].gate.projection.weight, std=0.1)
    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255
    with torch.no_grad(), record(model, layers=layer) as log:
        for some in images.split(4):
            model(some)
    return log.recording, Patches(PIXELS, grid=GRID, prefix=prefix)


@pytest.mark.parametrize("make", [mixer, vit])
def test_an_experts_patches_are_of_different_images_and_the_largest_there(make: object) -> None:
    recording, patches = recorded(make)
    assert recording.num_samples == len(patches)
    a = recording.coefficients().reshape(9, patches.per_image, 6)
    data = ReportData.from_recording(recording, "Patches", inputs=patches)
    for expert in range(6):
        best = [(float(a[image, :, expert].max()), image) for image in range(9)]
        wanted = sorted((-value, image) for value, image in best if value > 0)
        assert len(set(wanted)) == len({value for value, _ in wanted}), "equal ones would be drawn"
        found = [sample for sample in data.layers[0].top_samples[expert].tolist() if sample >= 0]
        shown = [(-float(a.flatten(0, 1)[sample, expert]), patches.place(sample)[0]) for sample in found]
        assert sorted(shown) == wanted  # equal ones come in a random order
        assert [value for value, _ in shown] == [value for value, _ in wanted]


def test_place_counts_rows_after_the_prefix() -> None:
    patches = Patches(PIXELS, grid=GRID, prefix=2)
    places = [patches.place(sample) for sample in range(len(patches))]
    wanted = [
        (image, *place)
        for image in range(9)
        for place in [(-1, -1), (-1, -1), *((row, column) for row in range(3) for column in range(4))]
    ]
    assert places == wanted


def test_a_run_of_patches_comes_back_from_its_file(tmp_path: Path) -> None:
    recording, patches = recorded(mixer)
    data = ReportData.from_recording(recording, "Patches", inputs=patches)
    save_run(data, tmp_path / "report.safetensors")
    back = load_run(tmp_path)
    assert isinstance(back.inputs, Patches)
    assert (back.inputs.grid, back.inputs.prefix) == (GRID, 0)
    assert report_page(back) == report_page(data)


def test_plot_frames_each_patch() -> None:
    recording, patches = recorded(vit)
    top = find_top_samples(recording, k=4)
    for expert in range(6):
        axes = plot_top_patches(top, patches, expert)
        frames = [frame for frame in axes.patches if isinstance(frame, Rectangle)]
        wanted = []
        for place, sample in enumerate(top.samples[expert].tolist()):
            _, row, column = patches.place(sample)
            if sample >= 0 and row >= 0:
                wanted.append((place * 36 + column * 8 - 0.5, row * 8 - 0.5))
        assert [frame.get_xy() for frame in frames] == wanted
    with pytest.raises(ValueError, match="108 patches, but sample"):
        plot_top_patches(top, Patches(PIXELS, grid=GRID), int((top.samples >= 108).any(dim=1).nonzero()[0]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((PIXELS, (3, 0)), ValueError, "expected at least one patch"),
        ((PIXELS, (3, 4), -1), ValueError, "expected at least one patch"),
        ((PIXELS, (3, 4.0)), TypeError, r"expected \(rows, columns\) and an int"),
        ((PIXELS, (3,)), TypeError, r"expected \(rows, columns\) and an int"),
        ((PIXELS.astype(float), (3, 4)), ValueError, "of uint8"),
    ],
)
def test_what_are_no_patches_is_refused(arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Patches(*arguments)  # type: ignore[arg-type]


def test_another_number_of_patches_is_refused() -> None:
    recording, _ = recorded(mixer)
    with pytest.raises(ValueError, match="for each patch of all images"):
        ReportData.from_recording(recording, "", inputs=Patches(PIXELS, grid=GRID, prefix=1))
    layer = CPMuMoE(4, 2, expert_dims=[3], rank=2)
    with record(layer) as log, torch.no_grad():
        layer(torch.randn(2, 4))
    for context in (-1, 1.5):
        with pytest.raises((ValueError, TypeError), match="context must be an int from 0 up"):
            ReportData.from_recording(log.recording, "", context=context)  # type: ignore[arg-type]
