"""Crafted files by a seed: what the library wrote, changed by someone who wishes ill, and what must come of reading it.

`crafted_runner.py` reads them in processes of their own.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file, save
from torch import nn

from factorized_moe import CPMuMoE, FactorizedExpertTensor, MuMoEBlock, TuckerMuMoE
from factorized_moe.demo import load_model
from factorized_moe.demo.classifier import HeadConfig, ImageClassifier, Trunk
from factorized_moe.demo.images import load_images
from factorized_moe.demo.results import write_results
from factorized_moe.interpret import (
    count_labels,
    find_top_samples,
    measure_coactivation,
    measure_histogram,
    measure_load,
    open_recording,
    record,
)
from factorized_moe.interpret.report import ReportData, load_run, report_page, save_run
from factorized_moe.surgery import (
    DistillationSettings,
    FactorizedExperts,
    MuMoEConfig,
    distill,
    from_pretrained,
    load,
    replace,
    save_pretrained,
)
from factorized_moe.surgery import save as save_model
from factorized_moe.surgery.saving.folder import digest
from tests.crafted_changes import changed

Content = dict[str, bytes]
"""The files of a folder by their names in it."""


@dataclass(frozen=True)
class Kind:
    """One thing that the library writes and reads.

    Attributes:
        write: Writes a valid one into an empty folder.
        read: Reads it, uses what it read and checks it against what the files say.
        targets: How the names of the files that are changed end.
        sealed: Renews the fingerprints that tie the files to each other, as whoever forges them would.
    """

    write: Callable[[Path], object]
    read: Callable[[Path], object]
    targets: tuple[str, ...]
    sealed: Callable[[Content], Content] = lambda content: content


def _labelled(folder: Path, gate: str) -> None:
    layer = CPMuMoE(8, 3, [6, 5], rank=2, gate=gate)
    nn.init.normal_(layer.gate.projection.weight)
    with record(layer, folder=folder, class_names=["a", "b"]) as log:
        layer(torch.randn(12, 8))
        log.annotate(labels=[0, 1] * 6, texts=["word"] * 12, ids=list(range(12)))


def _read_recording(folder: Path) -> None:
    recording = open_recording(folder)
    for layer in recording.layers:
        for mode in range(len(recording.expert_dims(layer))):
            coefficients = recording.coefficients(layer, mode)
            assert coefficients.shape == (recording.num_samples, recording.expert_dims(layer)[mode])
            options = {"layer": layer, "mode": mode}
            assert measure_load(recording, **options).counts.sum() == (coefficients >= 0.5).sum()
            assert coefficients.isfinite().all()  # of others nothing is counted
            measure_histogram(recording, **options)
            measure_coactivation(recording, **options)
            find_top_samples(recording, 3, **options)
            if recording.labels is not None:
                counts = count_labels(recording, **options)
                assert (counts.counts >= 0).all()
    assert report_page(load_run(folder))


def _write_run(folder: Path) -> None:
    _labelled(folder / "recording", "softmax")
    save_run(load_run(folder / "recording"), folder / "report.safetensors")
    for file in (folder / "recording").iterdir():
        file.unlink()
    (folder / "recording").rmdir()


def _write_config(folder: Path) -> None:
    (folder / "config.json").write_text(MuMoEConfig((4, 3), "tucker", rank=(2, 2, 3, 3), gate="softmax").to_json())


def _read_config(folder: Path) -> None:
    config = MuMoEConfig.from_json((folder / "config.json").read_text(encoding="utf-8", errors="replace"))
    assert MuMoEConfig.from_json(config.to_json()) == config
    model = nn.Sequential(nn.Linear(8, 6, device="meta"))
    replace(model, "0", MuMoEConfig(**{**vars(config), "pretrained": False}))
    assert model(torch.empty(2, 8, device="meta")).shape == (2, 6)


def _write_layer(folder: Path) -> None:
    save_pretrained(TuckerMuMoE(8, 3, [4, 2], rank=(2, 2, 3, 3), gate="topk_softmax"), folder)


def _write_block(folder: Path) -> None:
    save_pretrained(MuMoEBlock(8, 6, 3, [4], "tr", 2, activation=nn.GELU()), folder)


def _read_layer(folder: Path) -> None:
    layer = from_pretrained(folder)
    held = load_file(folder / "model.safetensors")
    for name, tensor in layer.state_dict().items():
        assert name not in held or torch.equal(tensor.nan_to_num(), held[name].nan_to_num())
    assert layer(torch.randn(5, layer.in_features)).shape[0] == 5


def _base() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))


def _write_model(folder: Path) -> None:
    model = _base()
    replace(model, "0", MuMoEConfig((3,), rank=2, noise=0.0))
    save_model(model, folder)


def _read_model(folder: Path) -> None:
    model = _base()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        load(model, folder)
    except (ValueError, OSError):
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        raise
    assert model.eval()(torch.randn(5, 8)).shape == (5, 4)


def _write_experts(folder: Path) -> None:
    tensors = [FactorizedExpertTensor((3,), *sizes, "cp", 2, bias=True) for sizes in ((5, 8), (4, 5))]
    save_model(nn.ModuleDict({"experts": FactorizedExperts(*tensors, nn.PReLU(), limit=7.0, shift=1.0)}), folder)


def _read_experts(folder: Path) -> None:
    model = load(nn.ModuleDict({"experts": nn.Linear(2, 2)}), folder)
    assert model.eval()["experts"](torch.randn(6, 5)).shape == (6, 5)


def _write_demo(folder: Path) -> None:
    head = HeadConfig(3, (4, 2), "tucker", (2, 2, 3, 3), gate_norm="layer")
    model = ImageClassifier(Trunk(30.0, 50.0), head.build()).eval()
    data = {"classes": ("a", "b", "c"), "image_size": (12, 14)}
    write_results(folder, False, model, head, data, {"seed": 0}, b"a picture", ReportData(title="A run", layers=[]))


def _read_demo(folder: Path) -> None:
    found = load_model(folder)
    assert found.model(torch.zeros(2, *found.image_size, dtype=torch.uint8)).shape == (2, len(found.classes))


def _distilled(folder: Path, steps: int = 3) -> dict[str, tuple[float, ...]]:
    batches = [torch.randn(6, 8, generator=torch.Generator().manual_seed(step)) for step in range(steps)]
    torch.manual_seed(4)
    layer = CPMuMoE(8, 4, [3], rank=2)

    def stop(found: Any) -> None:
        if found.step == 2 and not finished:
            raise KeyboardInterrupt

    finished = (folder / "state.safetensors").exists()
    options = {"checkpoint": folder / "state.safetensors", "checkpoint_every": 1, "on_step": stop}
    return distill(nn.Sequential(nn.Linear(8, 4)), {"0": layer}, batches, DistillationSettings(steps), **options)


def _write_state(folder: Path) -> None:
    try:
        _distilled(folder)
    except KeyboardInterrupt:
        return
    raise AssertionError("the run was not stopped")


def _read_state(folder: Path) -> None:
    losses = _distilled(folder)
    assert list(losses) == ["0"]
    assert len(losses["0"]) == 3
    assert all(np.isfinite(losses["0"]))


def _write_idx(folder: Path, packed: bool = True) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (20, 6, 5), dtype=np.uint8)
    images = bytes([0, 0, 8, 3]) + struct.pack(">3I", *pixels.shape) + pixels.tobytes()
    labels = bytes([0, 0, 8, 1]) + struct.pack(">I", 20) + bytes([0, 1] * 10)
    end = ".gz" if packed else ""
    for name, content in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        (folder / f"{name}{end}").write_bytes(gzip.compress(content, mtime=0) if packed else content)


def _write_images(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir()
        for number, suffix in enumerate(("png", "gif", "jpeg", "bmp", "tiff", "webp", "ppm")):
            pixels = generator.integers(0, 256, (6, 5, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.{suffix}")


def _read_images(folder: Path) -> None:
    data = load_images(folder, 0)
    for images, labels in ((data.train_images, data.train_labels), (data.held_out_images, data.held_out_labels)):
        assert images.ndim == 3
        assert len(images) == len(labels) > 0
        assert 0 <= labels.min() <= labels.max() < len(data.classes)


def _sealed_folder(content: Content) -> Content:
    """The digest of a folder's config renewed in its weights, if both can still be read."""
    try:
        config = json.loads(content["config.json"])
        tensors = load_tensors(content["model.safetensors"])
    except Exception:  # noqa: BLE001  # what cannot be read cannot be sealed
        return content
    return content | {"model.safetensors": save(tensors, {"format": "pt", "config": digest(config)})}


def _sealed_demo(content: Content) -> Content:
    """The digest of the weights renewed in the config, if that can still be read."""
    try:
        config = json.loads(content["config.json"])
        config["model_sha256"] = hashlib.sha256(content["model.safetensors"]).hexdigest()
    except Exception:  # noqa: BLE001  # as above
        return content
    return content | {"config.json": json.dumps(config).encode()}


def _read_run(folder: Path) -> None:
    assert report_page(load_run(folder))


SAFETENSORS, JSON = ".safetensors", ".json"
KINDS: dict[str, Kind] = {
    "recording": Kind(lambda folder: _labelled(folder, "softmax"), _read_recording, (SAFETENSORS, JSON)),
    "sparse recording": Kind(lambda folder: _labelled(folder, "topk_softmax"), _read_recording, (SAFETENSORS,)),
    "run": Kind(_write_run, _read_run, (SAFETENSORS,)),
    "config": Kind(_write_config, _read_config, (JSON,)),
    "layer": Kind(_write_layer, _read_layer, (SAFETENSORS, JSON), _sealed_folder),
    "block": Kind(_write_block, _read_layer, (JSON,), _sealed_folder),
    "model": Kind(_write_model, _read_model, (SAFETENSORS, JSON), _sealed_folder),
    "experts": Kind(_write_experts, _read_experts, (JSON,), _sealed_folder),
    "demo": Kind(_write_demo, _read_demo, ("model.safetensors", "config.json"), _sealed_demo),
    "state": Kind(_write_state, _read_state, (SAFETENSORS,)),
    "idx": Kind(_write_idx, _read_images, ("ubyte.gz",)),
    "plain idx": Kind(lambda folder: _write_idx(folder, packed=False), _read_images, ("ubyte",)),
    "images": Kind(_write_images, _read_images, (".png", ".gif", ".jpeg", ".bmp", ".tiff", ".webp", ".ppm")),
}


def contents(folder: Path) -> Content:
    """All files of a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def written(kind: str, folder: Path) -> Content:
    """A valid folder of a kind, the same at every call."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    KINDS[kind].write(folder)
    return contents(folder)


def put(content: Content, folder: Path) -> None:
    """Write files into a new folder."""
    folder.mkdir(parents=True)
    for name, data in content.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def crafted(kind: str, content: Content, rng: random.Random) -> tuple[str, Content]:
    """One change of a valid folder: what was done, and the files."""
    name = rng.choice(sorted(name for name in content if name.endswith(KINDS[kind].targets)))
    what, new = changed(name, content[name], rng)
    return f"{name}: {what}", KINDS[kind].sealed(content | {name: new})
