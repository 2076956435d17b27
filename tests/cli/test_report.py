"""`factorized-moe report`: runs in, pages out."""

from pathlib import Path

import pytest
import torch

from factorized_moe import CPMuMoE
from factorized_moe.cli import main
from factorized_moe.interpret import record
from factorized_moe.interpret.report import ReportData, load_run, save_run

pytestmark = pytest.mark.thorough


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """The folder of a recording of one layer."""
    layer = CPMuMoE(8, 3, [6], rank=2)
    with record(layer, folder=tmp_path / "first", class_names=["cat", "dog"]) as log:
        layer(torch.randn(4, 8))
        log.annotate(labels=[0, 1, 1, 0])
    return tmp_path / "first"


def test_page_of_a_recording(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(recording)]) == 0
    page = recording / "report.html"
    assert capsys.readouterr().out == f"{page}: open it in a browser\n"
    assert "<title>first</title>" in page.read_text()
    assert '"classes":["cat","dog"]' in page.read_text()


def test_comparison_leaves_the_page_alone(recording: Path, tmp_path: Path) -> None:
    assert main(["report", str(recording)]) == 0
    before = (recording / "report.html").read_bytes()
    save_run(ReportData(title="other", layers=[]), tmp_path / "other" / "report.safetensors")
    assert main(["report", str(recording), "--compare", str(tmp_path / "other")]) == 0
    assert '"title":"other"' in (recording / "comparison.html").read_text()
    assert (recording / "report.html").read_bytes() == before


def test_file_of_a_run_and_a_place_for_the_page(recording: Path, tmp_path: Path) -> None:
    file = tmp_path / "kept" / "run.safetensors"
    save_run(load_run(recording), file)
    assert main(["report", str(file), "--out", str(tmp_path / "deep" / "page.html")]) == 0
    assert (tmp_path / "deep" / "page.html").is_file()


@pytest.mark.parametrize("arguments", [["nowhere"], [".", "--compare", "nowhere"]])
def test_no_run(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    assert "no run; expected a folder with a report.safetensors" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
