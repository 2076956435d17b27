"""The folder of results: nothing is lost, nothing foreign is replaced, and the model comes back as it was."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from factorized_moe.demo import load_model
from factorized_moe.demo.classifier import HeadConfig, ImageClassifier, Trunk
from factorized_moe.demo.results import FILES, check_results_folder, write_results
from factorized_moe.interpret.report import ReportData, load_run

pytestmark = pytest.mark.thorough

HEAD = HeadConfig(3, (4, 2), "tucker", (2, 2, 3, 3), gate_norm="layer")


def make_model(seed: int) -> ImageClassifier:
    torch.manual_seed(seed)
    return ImageClassifier(Trunk(30.0, 50.0), HEAD.build()).eval()


def write(folder: Path, seed: int = 0, force: bool = False, head: HeadConfig = HEAD) -> ImageClassifier:
    model = make_model(seed)
    data = {"classes": ("a", "b", "c"), "image_size": (12, 14)}
    write_results(folder, force, model, head, data, {"seed": seed}, b"a picture", ReportData(title="A run", layers=[]))
    return model


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_model_comes_back_as_it_was(tmp_path: Path) -> None:
    model = write(tmp_path / "deep" / "out")
    loaded = load_model(tmp_path / "deep" / "out")
    assert (loaded.classes, loaded.image_size) == (("a", "b", "c"), (12, 14))
    assert not loaded.model.training
    images = torch.randint(0, 256, (5, 12, 14), dtype=torch.uint8)
    assert torch.equal(loaded.model(images), model(images))


def test_folder_holds_its_files_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "out")
    assert set(content(tmp_path / "out")) == set(FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == {"seed": 0}
    assert (tmp_path / "out" / "experts.png").read_bytes() == b"a picture"
    assert "<title>A run</title>" in (tmp_path / "out" / "report.html").read_text()
    assert load_run(tmp_path / "out").title == "A run"


def test_empty_folder_is_used(tmp_path: Path) -> None:
    write(tmp_path)
    assert set(content(tmp_path)) == set(FILES)


def test_results_are_replaced_with_force_alone(tmp_path: Path) -> None:
    write(tmp_path / "out", seed=0)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = content(tmp_path / "out")
    for call in (lambda: check_results_folder(tmp_path / "out", False), lambda: write(tmp_path / "out", seed=1)):
        with pytest.raises(ValueError, match="out: exists and is not empty; give another --out, or --force to replace"):
            call()
    assert content(tmp_path / "out") == before
    model = write(tmp_path / "out", seed=1, force=True)
    after = content(tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} == {
        "model.safetensors", "config.json", "metrics.json"}  # fmt: skip
    loaded = load_model(tmp_path / "out").model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_nothing_is_written_beside_an_existing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The folder may be a mount: files can be renamed within it alone.
    made: list[Path] = []
    original = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda path, **options: (made.append(path), original(path, **options))[1])
    write(tmp_path)
    assert [path.parent for path in made if path != tmp_path] == [tmp_path]


@pytest.mark.parametrize("name", FILES)
def test_foreign_files_are_not_replaced_even_with_force(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(ValueError, match=f"has a {name} but no config.json of an earlier demonstration beside it"):
        check_results_folder(tmp_path, force=True)


def test_force_beside_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    write(tmp_path, force=True)
    assert set(content(tmp_path)) == {*FILES, "notes.txt"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
@pytest.mark.parametrize("name", FILES)
def test_interruption_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException
) -> None:
    write(tmp_path / "out", seed=0)
    before = content(tmp_path / "out")
    for method in ("write_bytes", "write_text"):
        original = getattr(Path, method)

        def fail(file: Path, *args: object, original=original, **options: object) -> object:
            if file.name == name:
                raise error
            return original(file, *args, **options)

        monkeypatch.setattr(Path, method, fail)
    for folder in ("out", "fresh"):
        with pytest.raises((KeyboardInterrupt, OSError)):
            write(tmp_path / folder, seed=1, force=True)
    assert content(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(ValueError, match="file is a file, expected a folder for the results"):
            check_results_folder(folder, force=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=f"no permission to write in {tmp_path}"):
        check_results_folder(tmp_path / "deep" / "out", force=False)
    assert not (tmp_path / "deep").exists()


def fails_to_load(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_missing_files(tmp_path: Path) -> None:
    fails_to_load(tmp_path / "nowhere", "config.json: no such file; expected the results of `factorized-moe demo` in")
    write(tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    fails_to_load(tmp_path / "out", "model.safetensors: no such file")


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_truncated_model(tmp_path: Path, size: int) -> None:
    write(tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    fails_to_load(tmp_path / "out", "model.safetensors: not the file that config.json describes; it is truncated")


def test_model_of_another_run(tmp_path: Path) -> None:
    write(tmp_path / "a", seed=0)
    write(tmp_path / "b", seed=1)
    (tmp_path / "a" / "model.safetensors").replace(tmp_path / "b" / "model.safetensors")
    fails_to_load(tmp_path / "b", "truncated, damaged or of another run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json: not readable as JSON"),
        ("[1]", "config.json: not written by `factorized-moe demo`, or by another version of it"),
        ('{"format": "other"}', "config.json: not written by"),
        (b"\xff\xfe", "config.json: not readable as JSON"),
    ],
)
def test_damaged_config(tmp_path: Path, text: str | bytes, message: str) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    fails_to_load(tmp_path / "out", message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": [2, 2, 3, 4]}, "size mismatch"),
        ({"decomposition": "tukcer"}, "unknown decomposition 'tukcer'"),
        ({"expert_dims": None}, "does not describe the model beside it"),
        ({"colour": "red"}, "head has the unknown key 'colour'"),
    ],
)
def test_config_that_does_not_describe_the_model(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["head"].update(change)
    (tmp_path / "config.json").write_text(json.dumps(config))
    fails_to_load(tmp_path, message)


def test_other_tensors_under_a_right_digest(tmp_path: Path) -> None:
    write(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert set(tensors) == set(make_model(0).state_dict())
    save_file({"other": torch.zeros(2)}, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_sha256"] = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    (tmp_path / "config.json").write_text(json.dumps(config))
    fails_to_load(tmp_path, "does not describe the model beside it: .*Missing key")
