"""Recordings hold what the gates returned, in memory and in folders, and survive what interrupts them."""

import copy
import errno
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from factorized_moe import CPMuMoE, MuMoE, MuMoEBlock
from factorized_moe.interpret import Recorder, Recording, find_layers, open_recording, record
from factorized_moe.interpret.recording import given as limits
from factorized_moe.interpret.recording.rows import Rows

SAMPLES = 10


class Model(nn.Module):
    """A layer, a block of two expert modes, and a layer that runs only when asked."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layer = CPMuMoE(8, 8, [6], rank=2, dtype=dtype)
        self.block = MuMoEBlock(8, 9, 8, [5, 4], rank=2, gate="softmax", gate_norm="layer", dtype=dtype)
        self.spare = CPMuMoE(8, 8, [3], rank=2, dtype=dtype)
        for module in (self.layer, self.block, self.spare):
            nn.init.normal_(module.gate.projection.weight)
        self.eval()

    def forward(self, x: Tensor, spare: bool = False) -> Tensor:
        y: Tensor = self.block(self.layer(x))
        return self.spare(y) if spare else y


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 7 samples: no multiple of a batch."""
    monkeypatch.setattr(limits, "CHUNK_ELEMENTS", 6 * 7)


def batches(count: int = 5, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(2, SAMPLES // 2, 8, dtype=dtype) for _ in range(count)]


def expected(model: Model, inputs: list[Tensor]) -> dict[tuple[str, int], Tensor]:
    """The coefficients of the layer and of both modes of the block, ``(n, N)``."""
    with torch.no_grad():
        first = [model.layer.gate(x) for x in inputs]
        second = [model.block.gate(model.layer(x)) for x in inputs]
    return {
        ("layer", 0): torch.cat([a[0].flatten(0, 1) for a in first]),
        ("block", 0): torch.cat([a[0].flatten(0, 1) for a in second]),
        ("block", 1): torch.cat([a[1].flatten(0, 1) for a in second]),
    }


def failing(
    error: type[BaseException],
    message: str,
    model: nn.Module,
    layers: list[str] | None,
    run: Callable[[Recorder], object],
    folder: Path | None = None,
) -> tuple[Recorder, BaseException]:
    """A recorder whose ``with`` block ends with an error, and the error."""
    logs = []

    def recorded() -> None:
        with record(model, layers, folder) as log:
            logs.append(log)
            run(log)

    with pytest.raises(error, match=message) as caught:
        recorded()
    return logs[0], caught.value


def check(recording: Recording, model: Model, inputs: list[Tensor]) -> None:
    for (layer, mode), coefficients in expected(model, inputs).items():
        assert torch.equal(recording.coefficients(layer, mode), coefficients)


@pytest.mark.parametrize("place", ["memory", "folder"])
@pytest.mark.parametrize("annotated", [False, True])
@pytest.mark.usefixtures("small_chunks")
def test_recording_holds_every_layer_mode_and_sample_in_order(
    model: Model, tmp_path: Path, place: str, annotated: bool
) -> None:
    inputs = batches()
    with record(model, ["layer", "block"], tmp_path / "run" if place == "folder" else None) as log:
        for number, x in enumerate(inputs):
            model(x)
            if annotated:
                ids = torch.arange(SAMPLES).reshape(2, -1) + SAMPLES * number
                log.annotate(ids=ids + 100, labels=ids % 3, texts=[f"é{k}" for k in ids.flatten().tolist()])
    recording = log.recording
    assert (recording.layers, recording.num_samples, recording.complete) == (("layer", "block"), 50, True)
    assert recording.expert_dims("block") == (5, 4)
    check(recording, model, inputs)
    assert [(chunk.start, chunk.num_samples) for chunk in recording.chunks()] == [
        *((7 * k, 7) for k in range(7)),
        (49, 1),
    ]
    if annotated:
        assert recording.ids.tolist() == list(range(100, 150))
        assert recording.labels.tolist() == [k % 3 for k in range(50)]
        assert recording.texts == tuple(f"é{k}" for k in range(50))
    else:
        assert recording.ids.tolist() == list(range(50))
        assert not recording.has("labels")
        with pytest.raises(ValueError, match=r"samples 0 to 6 were recorded without labels; while recording, call log"):
            _ = recording.labels
    if place == "folder":
        check(open_recording(tmp_path / "run"), model, inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_recording_is_exact_in_a_type_wide_enough(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Model(dtype), torch.randn(4, 8, dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    with torch.no_grad():
        (coefficients,) = model.layer.gate(x)
        for stored in (wide, torch.float16):
            with record(model.layer, dtype=stored) as log:
                model.layer(x)
            assert torch.equal(log.recording.coefficients(), coefficients.to(wide).to(stored))


@pytest.mark.parametrize("shape", [(8,), (1, 8), (2, 3, 4, 8)])
def test_leading_shapes_are_flattened(model: Model, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    with record(model, "layer") as log:
        model(x)
    with torch.no_grad():
        assert torch.equal(log.recording.coefficients(), model.layer.gate(x)[0].reshape(-1, 6))


def test_outputs_and_gradients_are_the_same_and_nothing_is_left(model: Model) -> None:
    x = torch.randn(3, 8)
    before = copy.deepcopy(vars(model.layer.gate))
    plain = torch.autograd.grad(model(x).sum(), model.parameters(), allow_unused=True)
    with record(model, ["layer", "block"]) as log:
        recorded = torch.autograd.grad(model(x).sum(), model.parameters(), allow_unused=True)
    for ours, theirs in zip(recorded, plain, strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)
    assert not log.recording.coefficients("layer").requires_grad
    for module in model.modules():
        assert not module._forward_hooks
    assert vars(model.layer.gate).keys() == before.keys()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("place", ["memory", "folder"])
def test_exception_keeps_whole_passes_and_removes_the_hooks(model: Model, tmp_path: Path, place: str) -> None:
    inputs = batches(3)

    def run(log: Recorder) -> None:
        for x in inputs:
            model(x)
        model.layer(inputs[0])  # a forward pass that got no further than the first layer
        raise KeyboardInterrupt

    folder = tmp_path if place == "folder" else None
    log, _ = failing(KeyboardInterrupt, "^$", model, ["layer", "block"], run, folder)
    assert not any(module._forward_hooks for module in model.modules())
    assert not log.recording.complete
    check(log.recording, model, inputs)


@pytest.mark.thorough
@pytest.mark.usefixtures("small_chunks")
def test_killed_process_leaves_whole_chunks(model: Model, tmp_path: Path) -> None:
    script = f"""
import os, torch
from factorized_moe import CPMuMoE
from factorized_moe.interpret import record
from factorized_moe.interpret.recording import given as limits
limits.CHUNK_ELEMENTS = 6 * 7
torch.manual_seed(1)
layer = CPMuMoE(8, 8, [6], rank=2).eval()
torch.nn.init.normal_(layer.gate.projection.weight)
with record(layer, folder={str(tmp_path)!r}) as log:
    for number in range(3):
        layer(torch.randn(10, 8))
        log.annotate(labels=torch.full((10,), number))
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    recording = open_recording(tmp_path)
    assert (recording.num_samples, recording.complete) == (28, False)
    assert recording.labels.tolist() == [0] * 10 + [1] * 10 + [2] * 8
    # The machine itself stopped: the last file has its name, but not all of its content.
    last = tmp_path / "chunk-000003.safetensors"
    last.write_bytes(last.read_bytes()[:-5])
    assert open_recording(tmp_path).num_samples == 21
    (tmp_path / "chunk-000001.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"chunk-000001.safetensors is not a whole chunk of a recording"):
        open_recording(tmp_path)
    (tmp_path / "chunk-000001.safetensors").unlink()
    with pytest.raises(ValueError, match=r"chunk-000001.safetensors is missing: put it back, or delete the later"):
        open_recording(tmp_path)


@pytest.mark.usefixtures("small_chunks")
def test_full_disk_loses_nothing(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = batches(4)
    full = True
    plain = Path.open

    class Full:
        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def write(self, content: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(path: Path, *arguments: str, **options: object) -> object:
        if full and path.name.startswith("chunk-000002"):
            plain(path, *arguments, **options).close()
            return Full()
        return plain(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", opened)
    message = "no space left on the disk"
    log, error = failing(OSError, message, model, ["layer", "block"], lambda log: [model(x) for x in inputs], tmp_path)
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC
    assert "The first 14 samples are whole" in error.__notes__[0]
    assert "Nor could the samples before it be written" in error.__notes__[1]
    assert sorted(path.name[:5] for path in tmp_path.iterdir()) == ["chunk", "chunk", "recor"]
    assert open_recording(tmp_path).num_samples == 14
    full = False
    log.flush()
    check(log.recording, model, inputs[:3])  # the fourth forward pass met the full disk at its first gate
    assert log.num_samples == log.recording.num_samples == 30


def test_folder_with_another_recording_is_refused(model: Model, tmp_path: Path) -> None:
    with record(model.layer, folder=tmp_path) as log:
        model.layer(torch.randn(4, 8))
    with (
        pytest.raises(ValueError, match=r"holds another recording; give another folder, or delete that one first"),
        record(model.layer, folder=tmp_path),
    ):
        pass
    assert log.recording.num_samples == 4
    assert not model.layer.gate._forward_hooks


def test_layer_that_never_ran_is_named_after_all_is_kept(model: Model) -> None:
    with (
        pytest.raises(ValueError, match=r"layer 'spare' never ran while recording, or on no samples; leave it out"),
        record(model) as log,
    ):
        model(torch.randn(4, 8))
    assert log.recording.layers == ("layer", "block")
    with pytest.raises(ValueError, match=r"layer 'spare' never ran; the recording has 'layer', 'block'"):
        log.recording.coefficients("spare")


@pytest.mark.usefixtures("small_chunks")
def test_layers_out_of_step(model: Model) -> None:
    def one_more(log: Recorder) -> None:
        model(torch.randn(4, 8))
        model.layer(torch.randn(4, 8))

    message = "layer 'block' ran on 4 samples and layer 'layer' on 8; record layers that run on different samples"
    log, _ = failing(ValueError, message, model, ["layer", "block"], one_more)
    assert log.recording.num_samples == 4

    def late(log: Recorder) -> None:
        model(torch.randn(10, 8))
        model(torch.randn(4, 8), spare=True)

    log, _ = failing(
        ValueError, "layer 'spare' first ran when 7 samples of other layers were stored", model, None, late
    )
    assert log.recording.num_samples == 14


def test_no_layer_to_record(model: Model) -> None:
    for none in (nn.Linear(3, 3), nn.Sequential(CPMuMoE(4, 4, [], rank=1))):
        with (
            pytest.raises(ValueError, match=r"has no layer of experts \(`ExpertLayer`\) with an expert mode"),
            record(none),
        ):
            pass
    with pytest.raises(ValueError, match=r"no uMoE layer of the model is called 'blok'; near are 'block'"):
        find_layers(model, "blok")
    with pytest.raises(TypeError, match=r"model is a torch.nn.Module, got int"):
        find_layers(3)  # type: ignore[arg-type]
    assert list(find_layers(model, ["b*", "spare"])) == ["block", "spare"]
    assert list(find_layers(model.layer)) == ["model"]
    named = nn.ModuleDict({name: CPMuMoE(4, 4, [2], rank=1) for name in ("a[1]", "a1", "a*")})
    assert [list(find_layers(named, name)) for name in ("a[1]", "a*", "a?")] == [["a[1]"], ["a*"], ["a1", "a*"]]


def test_shared_gate_is_refused() -> None:
    gate = CPMuMoE(8, 8, [4], rank=1).gate
    model = nn.Sequential(*(MuMoE(8, 8, [4], rank=1, gate=gate) for _ in range(2)))
    with pytest.raises(ValueError, match=r"layers '0' and '1' have one gate module between them"), record(model):
        pass


def test_gate_of_a_wrong_width_is_refused() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x.softmax(-1),)

    layer = MuMoE(8, 8, [4], rank=1, gate=Gate())
    with pytest.raises(ValueError, match=r"returned shapes \[\(3, 8\)\], expected last axes \(4,\)"), record(layer):
        layer(torch.randn(3, 8))


def test_annotations_must_fit(model: Model) -> None:
    x = torch.randn(4, 8)

    def annotated(*given: dict[str, object]) -> Recorder:
        with record(model, ["layer", "block"]) as log:
            for arguments in given:
                model(x)
                log.annotate(**arguments)  # type: ignore[arg-type]
        return log

    for given, error, message in [
        ([{"labels": [1, 2]}], ValueError, r"got 2 labels for 4 samples, those recorded since the last call"),
        ([{"labels": [1, 2, 3, -1]}], ValueError, "label -1 is negative; classes are numbered from 0"),
        ([{"labels": [0.5] * 4}], TypeError, r"labels are ints, got torch.float32"),
        (
            [{"labels": ["dog"] * 4}],
            TypeError,
            "labels are ints, got list of other things; recording.with_labels takes strings",
        ),
        ([{"ids": ["dog"] * 4}], TypeError, "ids are ints, got list of other things$"),
        ([{"ids": [True] * 4}], TypeError, r"ids are ints, got torch.bool"),
        ([{"texts": "word"}], TypeError, "texts is a sequence with one string for each sample"),
        ([{"texts": [b"a"] * 4}], TypeError, "texts is a sequence with one string for each sample"),
        ([{"labels": [1] * 4}, {"ids": [1] * 4}], ValueError, "annotate got ids, for earlier samples labels; give"),
        ([{}], ValueError, "annotate got nothing; give labels, ids, texts or a mask"),
    ]:
        with pytest.raises(error, match=message):
            annotated(*given)
    assert annotated({"labels": torch.zeros(2, 2, dtype=torch.int32)}).recording.labels.tolist() == [0] * 4


@pytest.mark.usefixtures("small_chunks")
def test_missing_label_at_the_end(model: Model) -> None:
    inputs = batches(2)

    def run(log: Recorder) -> None:
        model(inputs[0])
        log.annotate(labels=[3] * 10)
        model(inputs[1])

    message = "the last 10 samples have no annotations, earlier ones have"
    log, _ = failing(ValueError, message, model, ["layer", "block"], run)
    check(log.recording, model, inputs)
    with pytest.raises(ValueError, match="samples 10 to 16 were recorded without labels"):
        _ = log.recording.labels


@pytest.mark.usefixtures("small_chunks")
def test_annotations_that_begin_late(model: Model) -> None:
    def run(log: Recorder) -> None:
        for _ in range(2):
            model.layer(torch.randn(10, 8))
        log.annotate(labels=[0] * 10)

    log, _ = failing(ValueError, "got 10 labels for 20 samples", model.layer, None, run)
    assert log.recording.num_samples == 20


def test_recording_refuses(model: Model, tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"dtype is torch.float16, torch.float32 or torch.float64, got torch.int8"),
        record(model, dtype=torch.int8),
    ):
        pass
    with record(model, ["layer", "block"], tmp_path) as log:
        with pytest.raises(ValueError, match="the recording is under way; read it after the with block"):
            _ = log.recording
        model(torch.randn(4, 8))
    recording = log.recording
    with pytest.raises(ValueError, match=r"the recording has 2 layers, name one of them: 'layer', 'block'"):
        recording.coefficients()
    with pytest.raises(ValueError, match="layer 'head' was not recorded; the recording has 'layer', 'block'"):
        recording.coefficients("head")
    for mode in (2, -1, True, "all"):
        with pytest.raises(ValueError, match=r"is not one of the 2 expert modes of layer 'block', counted from 0"):
            recording.stream("block", mode)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"holds no recording: there is no recording.json in it"):
        open_recording(tmp_path / "nowhere")
    header = tmp_path / "recording.json"
    content = json.loads(header.read_text())
    header.write_text(json.dumps(content | {"version": 2}))
    with pytest.raises(ValueError, match=r"version 2; this library reads 'factorized_moe recording', version 1"):
        open_recording(tmp_path)
    damaged = [content | {"layers": 3}, content | {"dtype": "half an hour"}, {"format": content["format"]}, []]
    for given in damaged:
        header.write_text(json.dumps(given))
        with pytest.raises(ValueError, match=r"is not the header of a recording: (it|layers|dtype) "):
            open_recording(tmp_path)


@pytest.mark.usefixtures("small_chunks")
def test_missing_chunks_at_the_end_are_noticed(model: Model, tmp_path: Path) -> None:
    with record(model, ["layer", "block"], tmp_path):
        model(torch.randn(10, 8))
    assert open_recording(tmp_path).num_samples == 10
    (tmp_path / "chunk-000001.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds 7 samples of the 10 that were recorded: .* put chunk-000001.safetens"):
        open_recording(tmp_path)


def test_empty_recordings(model: Model, tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        with pytest.raises(ValueError, match="layer 'model' never ran"), record(model.layer, folder=folder) as log:
            pass
        recording = log.recording
        assert recording.coefficients().shape == (0, 6)
        assert recording.labels.shape == recording.ids.shape == (0,)
        assert recording.texts == ()
    with record(model.layer) as log:
        model.layer(torch.randn(0, 8))
        model.layer(torch.randn(3, 8))
    assert log.recording.num_samples == 3


@pytest.mark.usefixtures("small_chunks")
def test_experts_of_the_grid_have_the_products(model: Model) -> None:
    inputs = batches(2)
    with record(model, "block") as log:
        for x in inputs:
            model(x)
    first, second = (expected(model, inputs)["block", mode] for mode in (0, 1))
    product = (first[:, :, None] * second[:, None, :]).flatten(1)
    assert log.recording.grid(mode="product") == (5, 4)
    torch.testing.assert_close(log.recording.coefficients(mode="product"), product)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("samples", [0, 1, 5])
def test_rows_are_the_same_in_both_forms(share: float, samples: int) -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(samples, 9) * (torch.rand(samples, 9) < kept) for kept in (share, 0.1, 1.0)]
    whole = torch.cat(matrices)
    rows = Rows.concatenate([Rows.of(matrix) for matrix in matrices])
    for form in (rows, Rows(whole, None, None, 9)):
        assert torch.equal(form.dense(), whole)
        assert len(form) == len(whole)
        assert torch.equal(form.nonzeros(), (whole != 0).sum(1))
        sample, expert, value = form.entries()
        assert torch.equal(whole[sample, expert], value)
        assert len(value) == int((whole != 0).sum())
        for start, stop in itertools.combinations(range(len(whole) + 1), 2):
            assert torch.equal(form[start:stop].dense(), whole[start:stop])
    assert rows.num_bytes <= 4 * whole.numel()


def test_rows_keep_nan_and_many_experts() -> None:
    wide = torch.zeros(2, 40_000)
    wide[1, 39_999] = torch.nan
    rows = Rows.of(wide)
    assert rows.is_sparse
    assert rows.entries()[1].tolist() == [39_999]
    assert rows.dense()[1, 39_999].isnan()


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_model(model: Model) -> None:
    layer, x = model.layer, torch.randn(4, 8)
    compiled = torch.compile(layer, backend="eager")
    with torch.no_grad():
        with record(compiled) as log:  # compiled within the block
            compiled(x)
        torch.testing.assert_close(log.recording.coefficients(), layer.gate(x)[0])
        torch.compiler.reset()
        compiled(x)
        with pytest.raises(ValueError, match=r"never ran .* call torch.compiler.reset\(\) first"), record(compiled):
            compiled(x)
        torch.compiler.reset()
        with record(compiled) as log:
            compiled(x)
        assert log.recording.num_samples == 4


def test_a_chunk_takes_at_most_16_mebibytes_when_dense() -> None:
    experts = 2**20
    layer = CPMuMoE(1, 1, [experts], rank=1, gate="softmax", gate_norm=None)
    with record(layer) as log:
        for _ in range(3):
            layer(torch.randn(3, 1))
    sizes = [chunk.num_samples for chunk in log.recording.chunks()]
    assert sizes == [4, 4, 1]
    assert max(sizes) * experts * 4 <= 16 * 2**20
