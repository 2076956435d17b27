"""The whole job on a few small images, from files to files."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from factorized_moe import FactorizedExpertTensor, MuMoE
from factorized_moe.demo import DemoOptions, ModeReport, load_model, run_demo
from factorized_moe.demo.classifier import ImageClassifier
from factorized_moe.demo.images import ImageData, load_images
from factorized_moe.demo.job import _measure_experts
from factorized_moe.demo.training import predict
from factorized_moe.interpret import Load
from factorized_moe.interpret.report import load_run

pytestmark = pytest.mark.thorough


@pytest.fixture
def options(image_folder: Path, tmp_path: Path) -> DemoOptions:
    return DemoOptions(data=image_folder, expert_dims=(6,), epochs=8, out=tmp_path / "out")


def test_report_and_files_agree(options: DemoOptions) -> None:
    report = run_demo(options)
    assert [head.name for head in report.heads] == ["linear", "dense", "MuMoE"]
    assert (report.num_train, report.num_held_out, report.rank) == (36, 9, 32)
    linear, dense, experts = report.heads
    assert linear.head_parameters == 65 * 3
    assert experts.head_parameters == 64 * 6 + 32 * (6 + 65 + 3)
    assert abs(dense.head_parameters - experts.head_parameters) <= 34
    assert len({head.total_parameters - head.head_parameters for head in report.heads}) == 1

    written = json.loads((options.out / "metrics.json").read_text())
    assert written["heads"][2]["accuracy"] == experts.accuracy
    assert tuple(written["modes"][0]["loads"]) == report.modes[0].loads
    with Image.open(options.out / "experts.png") as picture:
        assert min(picture.size) > 100

    # The model in the folder gives the figures of the report.
    data = load_images(options.data, options.seed)
    loaded = load_model(options.out)
    assert (loaded.classes, loaded.image_size) == (data.classes, (12, 12))
    logits = predict(loaded.model, data.held_out_images)
    assert (logits.argmax(dim=-1) == data.held_out_labels).double().mean().item() == experts.accuracy
    (coefficients,) = loaded.model.head.gate(loaded.model.trunk(data.held_out_images))
    assert tuple(Load.of(coefficients).counts.tolist()) == report.modes[0].loads

    # So does the page's data.
    run = load_run(options.out)
    (layer,) = run.layers
    assert tuple(layer.load.tolist()) == report.modes[0].loads
    assert layer.polysemanticity.tolist() == pytest.approx(
        [float("nan") if score is None else score for score in report.modes[0].polysemanticity], nan_ok=True
    )
    assert layer.spectrum[2, 0] == pytest.approx(
        torch.linalg.matrix_norm(loaded.model.head.experts.expert(2)[:-1], 2).item()
    )
    assert ("Accuracy, MuMoE head", f"{experts.accuracy:.1%}") in run.facts
    assert "Accuracy, MuMoE head" in (options.out / "report.html").read_text()


def test_learns_and_measures_every_expert(options: DemoOptions) -> None:
    report = run_demo(replace(options, epochs=40))
    assert all(head.accuracy > 0.9 for head in report.heads)  # stripes are easy
    (mode,) = report.modes
    assert 0 < mode.num_in_use <= mode.num_experts
    assert mode.num_active == sum(load > 0 for load in mode.loads) > 0
    assert len(mode.loads) == len(mode.polysemanticity) == len(mode.most_affected_class) == mode.num_experts == 6
    without = [score is None for score in mode.polysemanticity]
    assert without == [name is None for name in mode.most_affected_class]
    assert mode.num_without_effect == sum(without)


class InputAsCoefficients(nn.Module):
    """A gate whose coefficients are what the images say."""

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (features,)


def test_measures_of_a_head_made_by_hand() -> None:
    images = torch.tensor([[0.8, 0.2, 0.0, 0.0], [0.6, 0.0, 0.4, 0.0], [0.0, 0.4, 0.3, 0.3], [0.0, 0.1, 0.9, 0.0]])
    labels = torch.tensor([0, 0, 1, 2])
    data = ImageData(images, labels, images, labels, ("a", "b", "c", "d"), "made by hand")
    head = MuMoE(4, 4, [4], decomposition="dense", rank=1, gate=InputAsCoefficients())
    dense = torch.zeros(4, 5, 4)
    dense[:, 4] = torch.eye(4)  # the biases: expert n speaks for class n, so the logits are the coefficients
    head.experts = FactorizedExpertTensor.from_dense(dense, decomposition="dense", rank=1, bias=True)
    coefficients, _, (mode,) = _measure_experts(ImageClassifier(nn.Identity(), head), head, data)
    assert torch.equal(coefficients[0], images)
    assert mode == ModeReport(
        num_experts=4,
        threshold=0.5,
        num_in_use=4,
        num_active=2,
        mean_polysemanticity=0.0,
        num_without_effect=1,
        loads=(2, 0, 1, 0),
        polysemanticity=(0.0, 0.0, 0.0, None),
        most_affected_class=("a", "b", "c", None),
    )


def test_same_seed_same_results(options: DemoOptions) -> None:
    first = run_demo(options)
    torch.rand(3)  # whatever else the process draws
    again = run_demo(replace(options, out=options.out.with_name("again")))
    assert first == again
    for name in (
        "metrics.json",
        "config.json",
        "model.safetensors",
        "experts.png",
        "report.html",
        "report.safetensors",
    ):
        assert (options.out / name).read_bytes() == (options.out.with_name("again") / name).read_bytes()
    other = run_demo(replace(options, out=options.out.with_name("other"), seed=1))
    assert other.seed == 1
    models = [(options.out.with_name(name) / "model.safetensors").read_bytes() for name in ("out", "other")]
    assert models[0] != models[1]


@pytest.mark.parametrize("decomposition", ["cp", "tucker", "tt", "tr"])
def test_several_expert_modes_within_a_budget(options: DemoOptions, decomposition: str) -> None:
    chosen = replace(options, expert_dims=(4, 3), decomposition=decomposition, parameters=1500, epochs=1)
    report = run_demo(chosen)
    assert report.heads[2].head_parameters <= 1500
    assert [mode.num_experts for mode in report.modes] == [4, 3]
    assert load_model(options.out).model.head.experts.rank == report.rank
    assert [layer.name for layer in load_run(options.out).layers] == ["head, mode 0", "head, mode 1"]


def test_idx_folder_with_test_files(idx_folder: Path, options: DemoOptions) -> None:
    report = run_demo(replace(options, data=idx_folder, epochs=1))
    assert (report.num_train, report.num_held_out) == (45, 23)


def test_progress_is_shown(options: DemoOptions, capsys: pytest.CaptureFixture[str]) -> None:
    run_demo(replace(options, epochs=1))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "training, MuMoE head: 100%" in shown.err


def no_training(*args: object, **options: object) -> None:
    raise AssertionError("trained although an option was wrong")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"seed": -1}, "seed must be from 0 to 9223372036854775807, got -1"),
        ({"decomposition": "tukcer"}, "unknown decomposition 'tukcer'; did you mean 'tucker'"),
        ({"rank": (3, 4)}, "rank of CP is one int"),
        ({"parameters": 10}, "a budget of 10 parameters is too small for 'cp' of shapes"),
        ({"data": Path("nowhere")}, "nowhere: no such folder"),
    ],
)
def test_wrong_options_are_found_before_training(
    options: DemoOptions, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], message: str
) -> None:
    monkeypatch.setattr("factorized_moe.demo.job.train", no_training)
    with pytest.raises(ValueError, match=message):
        run_demo(replace(options, **change))
    assert not options.out.exists()


def test_existing_results_are_found_before_training(options: DemoOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factorized_moe.demo.job.train", no_training)
    options.out.mkdir()
    (options.out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not empty"):
        run_demo(options)


@pytest.mark.parametrize("module", ["matplotlib", "tqdm"])
def test_missing_extra_is_found_before_training(
    options: DemoOptions, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setattr("factorized_moe.demo.job.train", no_training)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"not installed: {module}; .* 'factorized-moe\[demo\]'"):
        run_demo(options)


def test_interruption_leaves_no_folder(options: DemoOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("factorized_moe.demo.job.train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_demo(options)
    assert not options.out.exists()
