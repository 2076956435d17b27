"""Crafted files: each is refused in words, before it takes memory or time."""

import gzip
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor

from factorized_moe import CPMuMoE
from factorized_moe.demo.idx import read_idx
from factorized_moe.demo.images import load_images
from factorized_moe.interpret import measure_load, open_recording, record
from factorized_moe.interpret.report import load_run
from factorized_moe.surgery import MuMoEConfig
from factorized_moe.surgery.saving.describing import build_layer_from, describe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recording of ten samples of one layer with sparse coefficients."""
    layer = CPMuMoE(8, 3, [64], rank=2, gate="topk_softmax")
    torch.nn.init.normal_(layer.gate.projection.weight)
    with record(layer, folder=tmp_path) as log:
        layer(torch.randn(10, 8))
        log.annotate(labels=list(range(10)), texts=["a"] * 10)
    return tmp_path


def forge(folder: Path, described: dict[str, object] | str | None = None, **tensors: Tensor) -> None:
    """Change a chunk's tensors, or what it says of them."""
    path = folder / "chunk-000000.safetensors"
    with safe_open(path, "pt") as file:
        text = file.metadata()["chunk"]
    if isinstance(described, dict):
        text = json.dumps(json.loads(text) | described)
    save_file(load_file(path) | tensors, path, {"chunk": described if isinstance(described, str) else text})


V, C, N = (f"model/0/{part}" for part in ("values", "columns", "counts"))
ONE = torch.zeros(10, dtype=torch.int64)
CRAFTED: dict[str, tuple[dict[str, object] | str | None, dict[str, Tensor], str]] = {
    "no values": (None, {V: torch.zeros(0)}, r"'model/0/columns' has shape \(20\,\), expected \(0\)"),
    "other type": (None, {V: torch.zeros(20, dtype=torch.int32)}, "is of type I32, expected F16 or F32 or F64"),
    "counts too large": (None, {N: torch.full((10,), 3, dtype=torch.int32)}, "20 coefficients for counts .* 30"),
    "expert beyond": (None, {C: torch.full((20,), 64, dtype=torch.int16)}, "a coefficient of expert 64, but 64"),
    "expert below": (None, {C: torch.full((20,), -1, dtype=torch.int16)}, "a coefficient of expert -1"),
    "expert twice": (None, {C: torch.zeros(20, dtype=torch.int16)}, "several coefficients of one sample and expert"),
    "label below": (None, {"labels": ONE - 1}, "label -1 is negative"),
    "label of a billion": (None, {"labels": ONE + 10**9}, "names of 1,000,000,001 classes would take"),
    "labels of another number": (None, {"labels": ONE[:3]}, r"'labels' has shape \(3,\), expected \(10\)"),
    "texts out of order": (None, {"text_ends": ONE - 5}, "its texts are not whole"),
    "unknown tensor": (None, {"other": ONE}, "it holds 'other', which it does not describe"),
    "absurd size": ({"layers": {"model": [10**12]}}, {}, "expected a whole number from 1 to 16777216"),
    "size of nothing": ({"layers": {"model": [0]}}, {}, "expected a whole number from 1"),
    "many modes": ({"layers": {"model": [1] * 300}}, {}, "300 expert modes; at most 24 are read"),
    "samples below": ({"samples": -1}, {}, "samples is -1, expected a whole number"),
    "deep JSON": ("[" * 100_000, {}, "nested too deeply"),
}


def read_all(folder: Path) -> None:
    measure_load(open_recording(folder))
    load_run(folder)


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_chunks(case: str, folder: Path) -> None:
    described, tensors, message = CRAFTED[case]
    assert load_run(folder).layers
    forge(folder, described, **tensors)
    with pytest.raises(ValueError, match=message):
        read_all(folder)


def test_modes_of_a_config_are_bounded() -> None:
    with pytest.raises(ValueError, match="300 expert modes; at most 24 are read"):
        MuMoEConfig.from_json(json.dumps({"expert_dims": [1] * 300, "rank": 1}))
    with pytest.raises(ValueError, match="nested too deeply"):
        MuMoEConfig.from_json("[" * 100_000)
    described = describe(CPMuMoE(4, 3, [2], rank=1))
    with pytest.raises(ValueError, match="300 expert modes; at most 24 are read"):
        build_layer_from({**described, "expert_dims": [1] * 300}, "meta")


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    file = tmp_path / "train-images-idx3-ubyte.gz"
    header = bytes([0, 0, 8, 3])
    file.write_bytes(gzip.compress(header + struct.pack(">3I", 2**20, 64, 64)))
    with pytest.raises(ValueError, match="values of shape 1048576 x 64 x 64 would take 4,294,967,296 bytes"):
        read_idx(file, 3)
    file.write_bytes(gzip.compress(header + struct.pack(">3I", 1, 2, 2) + bytes(2**20)))
    with pytest.raises(ValueError, match="more bytes of values, but its header says 1 x 2 x 2 = 4"):
        read_idx(file, 3)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("pipe", "not a file"), ("eps", "of no known format"), ("large", "13000 x 13000 pixels, at most")],
)
def test_files_that_are_no_images(kind: str, message: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("L", (8, 8)).save(tmp_path / name / f"{number}.png")
    path = tmp_path / "a" / "zz.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "eps":
        Image.new("L", (8, 8)).save(path, format="EPS")
    else:
        Image.new("1", (13000, 13000)).save(path)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path, 0)
