"""What goes into a report page: summaries against the slow way, files that come back as they were, safe pages."""

import dataclasses
import html
import json
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from factorized_moe import MuMoE
from factorized_moe.interpret import ExpertSpectra, Polysemanticity, Recording, open_recording, record
from factorized_moe.interpret.report import (
    Images,
    LayerSummary,
    ReportData,
    Texts,
    load_run,
    report_page,
    save_run,
    write_report,
)
from factorized_moe.interpret.report.comparison import match_experts, nearest_experts
from factorized_moe.interpret.report.encoding import pack, png, script_json
from factorized_moe.interpret.report.payload import _reduced

pytestmark = pytest.mark.thorough

TEXTS = Texts([["a", " b"], [], ["c", " d", " e", " f"], ["g"]])


class InputAsCoefficients(nn.Module):
    """A gate that returns what it is given, so that any coefficients can be recorded."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,)


def recorded(coefficients: Tensor, labels: Tensor | None = None, classes: tuple[str, ...] = ()) -> Recording:
    experts = coefficients.shape[1]
    head = MuMoE(experts, 1, [experts], rank=1, gate=InputAsCoefficients())
    with record(nn.ModuleDict({"head": head}), class_names=classes) as log:
        for start in range(0, len(coefficients), 3):
            head(coefficients[start : start + 3])
            if labels is not None:
                log.annotate(labels=labels[start : start + 3])
    return log.recording


@pytest.fixture
def many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings are stored in chunks of two samples."""
    monkeypatch.setattr("factorized_moe.interpret.recording.given.CHUNK_ELEMENTS", 6)


def random_coefficients(samples: int) -> Tensor:
    """Some zeros, some equal values, ``(samples, 3)``."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(samples, 3, generator=generator) * 10).floor().clamp(min=3).sub(3) / 10


@pytest.mark.usefixtures("many_chunks")
def test_summary_equals_the_slow_way() -> None:
    a, labels = random_coefficients(11), torch.tensor([0, 1, 2] * 3 + [0, 1])
    layer = LayerSummary.from_recording(recorded(a, labels, ("x", "y", "z", "unused")), threshold=0.4)
    assert layer.name == "head"
    assert layer.load.tolist() == (a >= 0.4).sum(dim=0).tolist()
    assert layer.mean == pytest.approx(a.double().mean(dim=0).numpy())
    assert layer.largest == pytest.approx(a.amax(dim=0).numpy())
    for expert in range(3):
        counts, _ = np.histogram(a[:, expert].double(), bins=40, range=(0, 1))
        # a tenth lies on an edge, where rounding decides between two bins
        assert layer.histogram[expert].reshape(-1, 4).sum(axis=1).tolist() == [
            int(((a[:, expert] >= k / 10 - 1e-6) & (a[:, expert] < (k + 1) / 10 - 1e-6)).sum()) for k in range(10)
        ]
        assert counts.sum() == layer.histogram[expert].sum() == 11
        shown = [n for n in layer.top_samples[expert].tolist() if n >= 0]  # of equal ones a draw
        assert sorted(shown) == (a[:, expert] > 0).nonzero().flatten().tolist()
        assert a[shown, expert].tolist() == sorted(a[shown, expert].tolist(), reverse=True)
        sums = np.bincount(labels, a[:, expert].double(), minlength=4)
        assert layer.class_share[expert] == pytest.approx(sums / sums.sum())


@pytest.mark.usefixtures("many_chunks")
def test_top_tokens_are_of_different_texts() -> None:
    a = torch.tensor([[0.1, 0], [0.9, 0], [0.5, 0], [0.8, 0], [0.7, 0], [0.8, 0], [0.0, 0.3]])
    layer = LayerSummary.from_recording(recorded(a), texts=TEXTS)
    assert layer.top_samples[:, :3].tolist() == [[1, 3, -1], [6, -1, -1]]  # of equal tokens a draw, by seed 0
    assert layer.top_coefficients[0, :3].tolist() == pytest.approx([0.9, 0.8, 0])
    around = layer.context[0, 1]  # token 3 in the middle, the second of its text
    assert around[11:15].tolist() == pytest.approx([0.5, 0.8, 0.7, 0.8])
    assert np.isnan(around[[0, 10, 15, 24]]).all()
    assert np.isnan(layer.context[0, 2]).all()
    assert layer.context[1, 0, 12] == pytest.approx(0.3)


def test_equal_images_are_drawn_and_counted_in_two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    a = torch.cat([torch.ones(30, 1), torch.arange(30.0)[:, None] / 30, torch.zeros(30, 1)], dim=1)
    recording = recorded(a, torch.arange(30) % 3, ("x", "y", "z"))
    passes: list[str] = []
    stream = Recording.stream
    monkeypatch.setattr(
        Recording, "stream", lambda self, layer, mode: (passes.append(layer), stream(self, layer, mode))[1]
    )
    layer = LayerSummary.from_recording(recording)
    assert passes == ["head", "head"]
    assert layer.top_equal.tolist() == [30, 1, 0]
    assert layer.top_samples[0].tolist() != list(range(12))
    assert len(set(layer.top_samples[0].tolist())) == 12
    data = ReportData(title="", layers=[layer], classes=("x", "y", "z"))
    assert data.layers[0].top_equal is layer.top_equal


def test_coefficients_above_one_stretch_the_histogram() -> None:
    layer = LayerSummary.from_recording(recorded(torch.tensor([[4.0, -1.0], [2.15, 0.0]])))
    assert layer.histogram_end == 4
    assert (layer.histogram[0, 39], layer.histogram[0, 21], layer.histogram[1, 0]) == (1, 1, 2)


def test_recording_that_was_cut_off_before_its_first_sample(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), record(MuMoE(4, 2, [3], rank=2), folder=tmp_path):
        raise KeyboardInterrupt
    data = ReportData.from_recording(open_recording(tmp_path), "Empty")
    assert data.layers[0].load.tolist() == [0, 0, 0]
    assert "Empty" in report_page(data)


def test_every_mode_of_every_layer() -> None:
    layers = nn.ModuleDict({"one": MuMoE(4, 2, [3], rank=2), "two": MuMoE(4, 2, [3, 5], rank=2)})
    with record(layers) as log:
        for layer in layers.values():
            layer(torch.randn(6, 4))
    data = ReportData.from_recording(log.recording, "", descriptions={"two, mode 1": "the second"})
    assert [(layer.name, layer.num_experts) for layer in data.layers] == [
        ("one", 3),
        ("two, mode 0", 3),
        ("two, mode 1", 5),
    ]
    assert data.layers[2].description == "the second"
    assert data.slugs() == ["one", "two-mode-0", "two-mode-1"]
    whole = LayerSummary.from_recording(log.recording, "two", "product")
    assert (whole.name, whole.num_experts) == ("two, whole grid", 15)
    with pytest.raises(ValueError, match=r"something is given for \['two'\], but the recording has \['one', 'two,"):
        ReportData.from_recording(log.recording, "", descriptions={"two": ""})


def full_run() -> ReportData:
    a, labels = random_coefficients(7), torch.tensor([0, 1, 0, 1, 0, 1, 1])
    drop = torch.tensor([[0.5, 0.0], [0.0, 0.0], [1.0, 0.2]], dtype=torch.float64)
    return ReportData.from_recording(
        recorded(a, labels, ("\ud800", "</script>")),
        "A title",
        inputs=TEXTS,
        facts=[("name", "value")],
        effects={"head": Polysemanticity(drop, torch.tensor([0.5, torch.nan, 0.2], dtype=torch.float64))},
        spectra={"head": ExpertSpectra(torch.rand(3, 4), (3,))},
    )


def same(first: object, second: object) -> bool:
    """Whether two values are the same, arrays and dataclasses included."""
    if dataclasses.is_dataclass(first):
        return type(first) is type(second) and all(
            same(getattr(first, field.name), getattr(second, field.name)) for field in dataclasses.fields(first)
        )
    if isinstance(first, np.ndarray):
        return isinstance(second, np.ndarray) and np.array_equal(first, second, equal_nan=first.dtype.kind == "f")
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize("kind", ["texts", "images", "bare"])
def test_run_comes_back_as_it_was(kind: str, tmp_path: Path) -> None:
    data = full_run()
    if kind == "images":
        images = Images(np.arange(7 * 4 * 3 * 3, dtype=np.uint8).reshape(7, 4, 3, 3)[:, ::-1])
        data = dataclasses.replace(data, inputs=images, layers=[dataclasses.replace(data.layers[0], context=None)])
    if kind == "bare":
        data = ReportData(title="", layers=[])
    save_run(data, tmp_path / "deep" / "report.safetensors")
    assert same(data, load_run(tmp_path / "deep"))
    assert not same(data, dataclasses.replace(data, title="another"))
    assert report_page(load_run(tmp_path / "deep")) == report_page(data)


def test_files_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: no run; expected a folder with a report\.safetensors"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "report.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"report\.safetensors: not a report's data: "):
        load_run(tmp_path)
    torch_file = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(2)}, torch_file)
    with pytest.raises(ValueError, match=r"not a report's data: its description is not JSON"):
        load_run(torch_file)
    save_file({"a": np.zeros(2)}, torch_file, metadata={"report": '{"format": "later"}'})
    with pytest.raises(ValueError, match=r"it is of format 'later', this library reads 'factorized-moe report"):
        load_run(torch_file)
    content = {"format": "factorized-moe report, version 1", "title": "", "facts": [], "classes": [], "texts": None}
    save_file({}, torch_file, metadata={"report": json.dumps({**content, "layers": [{"colour": "red"}]})})
    with pytest.raises(ValueError, match=r"not a report's data: layers\[0\] lacks 'name'"):
        load_run(torch_file)


def layer_of(**changes: object) -> LayerSummary:
    return dataclasses.replace(full_run().layers[0], **changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"mean": np.zeros(4)},
            ValueError,
            r"mean of layer 'head' has shape \(4,\), expected 1 axes with the 3",
        ),
        ({"histogram": np.zeros(3, int)}, ValueError, r"histogram of layer 'head' has shape \(3,\), expected 2 axes"),
        ({"load": np.zeros(3)}, TypeError, "load of layer 'head' has type float64, expected integers"),
        ({"mean": np.zeros(3, int)}, TypeError, "mean of layer 'head' has type int64, expected floating-point"),
        ({"top_coefficients": np.zeros((3, 2))}, ValueError, "top_samples and top_coefficients of layer 'head'"),
        ({"context": np.zeros((3, 6, 4))}, ValueError, r"context of layer 'head' has shape \(3, 6, 4\), .* W odd"),
    ],
    ids=["mean", "histogram", "load type", "mean type", "top", "context"],
)
def test_layer_refuses_arrays_that_do_not_fit(changes: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        layer_of(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": np.zeros(5, int)},
            "number of samples differs: {\"layer 'head'\": 7, 'labels': 5, 'inputs': 7}",
        ),
        ({"labels": np.full(7, 2)}, "labels go up to 2, but 2 classes are named"),
        (
            {"classes": ("a", "b", "c")},
            "class_share of layer 'head' has 2 classes, but 3 are named; record with",
        ),
        ({"inputs": None}, "layer 'head' has a context, but the inputs are no texts"),
        ({"layers": [layer_of(), layer_of()]}, r"two layers have the same name: \['head', 'head'\]"),
        (
            {"layers": [layer_of(top_samples=np.full((3, 6), 7))]},
            "top_samples of layer 'head' go up to 7, expected n",
        ),
    ],
    ids=["labels", "label", "classes", "inputs", "names", "top"],
)
def test_report_refuses_parts_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(full_run(), **changes)


def test_inputs_refuse() -> None:
    with pytest.raises(ValueError, match=r"pixels have shape \(2, 4\) and type uint8, expected \(n, H, W\) or"):
        Images(np.zeros((2, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match="type float64"):
        Images(np.zeros((2, 4, 4)))
    with pytest.raises(TypeError, match="texts holds a string, expected lists of tokens"):
        Texts(["a text"])
    with pytest.raises(TypeError, match="tokens are NoneType, int, expected strings; decode them first"):
        Texts([["a", 3], [None]])
    with pytest.raises(ValueError, match="the texts have 7 tokens, the recording 3 samples"):
        LayerSummary.from_recording(recorded(torch.ones(3, 2)), texts=TEXTS)


def test_json_ends_no_script() -> None:
    text = "</script><!--&amp;\u2028\u2029\ud800\x00é"
    shown = script_json([text])
    assert shown.isascii()
    assert not set("<>&") & set(shown)
    assert json.loads(shown) == [text]
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json([float("nan")])


def test_packed_arrays() -> None:
    packed = pack(np.array([[1.5, np.nan]]))
    assert (packed["type"], packed["shape"], packed["data"]) == ("f4", [1, 2], "AADAPwAAwH8=")
    assert pack(np.arange(3)[::-1])["data"] == "AgAAAAEAAAAAAAAA"
    assert pack(np.zeros((0, 4)))["data"] == ""


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 3), (1, 1)])
def test_png(shape: tuple[int, ...]) -> None:
    from io import BytesIO

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (2 * shape[0], *shape[1:]), dtype=np.uint8)[::2]
    with Image.open(BytesIO(png(pixels))) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_large_images_are_reduced() -> None:
    photograph = np.zeros((300, 150, 3), dtype=np.uint8)
    photograph[:3, :3, 0] = 90
    photograph[0, 0, 0] = 99
    small = _reduced(photograph)
    assert small.shape == (100, 50, 3)
    assert small[0, 0].tolist() == [91, 0, 0]
    assert small[1:].max() == 0
    assert _reduced(np.zeros((300, 4, 3), dtype=np.uint8)).shape == (100, 1, 3)
    for shape in ((128, 3), (5, 128), (1000, 1)):
        assert _reduced(np.zeros(shape, dtype=np.uint8)).shape == shape  # small already, or too thin


def test_page_is_one_safe_file(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    data = dataclasses.replace(full_run(), title=attack, facts=[(attack, "{{script}}")])
    path = write_report(tmp_path / "deep" / "page.html", data)
    page = path.read_bytes().decode("ascii")
    assert page.count("<script") == page.count("</script>") == 2
    assert f"<title>{html.escape(attack)}</title>" in page
    assert re.findall(r"(?:src|href)=[\"'](?!#|data:)[^\"']*", page) == []
    assert "https://" not in page
    assert "default-src 'none'" in page


def test_scripts_never_parse_text() -> None:
    folder = resources.files("factorized_moe.interpret.report") / "static"
    scripts = {file.name: file.read_text() for file in folder.iterdir() if file.name.endswith(".js")}
    assert len(scripts) == 12
    for name, script in scripts.items():
        found = re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|DOMParser", script)
        assert not found, name
        assert "</script" not in script
        assert len(script.splitlines()) <= 400, name


def test_nearest_experts_take_the_same_classes() -> None:
    shares = np.array([[1.0, 0, 0], [0, 0.5, 0.5], [0, 0, 0]])
    other = np.array([[0, 0.6, 0.4], [0.9, 0.1, 0]])
    first = dataclasses.replace(layer_of(class_share=shares))
    summaries = {field: getattr(first, field)[:2] for field in ("load", "mean", "largest", "histogram")}
    blank = dict.fromkeys(("context", "accuracy_drop", "polysemanticity", "spectrum"))
    tops = {field: getattr(first, field)[:2] for field in ("top_samples", "top_coefficients")}
    second = dataclasses.replace(first, class_share=other, **summaries, **tops, **blank)
    nearest, similarity = nearest_experts(first, second)
    assert nearest[:2].tolist() == [1, 0]
    assert similarity[:2] == pytest.approx([0.9 / np.hypot(0.9, 0.1), 1.0 / np.sqrt(2 * 0.52)], rel=1e-6)
    assert np.isnan(similarity[2])
    with pytest.raises(ValueError, match="layer 'head' has no class_share; summarise it with labels"):
        nearest_experts(dataclasses.replace(first, class_share=None), second)


def test_layers_are_matched_by_name() -> None:
    data = full_run()
    renamed = dataclasses.replace(data, layers=[dataclasses.replace(data.layers[0], name="tail")])
    assert match_experts(data, renamed) == []
    (match,) = match_experts(data, data)
    assert match["layers"] == [0, 0]
    assert match["nearest"] == pack(np.array([0, 1, 2]))
    relabelled = dataclasses.replace(data, classes=("other", "names"))
    assert match_experts(data, relabelled) == [{"layers": [0, 0]}]
    assert report_page(data, relabelled)
