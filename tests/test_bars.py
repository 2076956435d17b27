"""A bar for what takes long shows itself to someone who watches, and to nobody else."""

import io
import sys
import time

import pytest
import torch
from torch import nn

from factorized_moe import CPMuMoE, _bars
from factorized_moe.interpret import Recording, counterfactuals, measure_load
from factorized_moe.interpret.recording import given as limits


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything counts as slow, and every step is drawn."""
    plain = _bars.progress
    monkeypatch.setattr(_bars, "SLOW", 1e-9)
    monkeypatch.setattr(_bars, "progress", lambda **options: plain(mininterval=0, miniters=1, **options))


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with _bars.if_slow("load", 3, "sample") as bar:
        for _ in range(3):
            time.sleep(0.001)
            bar.update()
    return stream.getvalue()


@pytest.mark.usefixtures("at_once")
def test_a_bar_is_for_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "load" in shown(monkeypatch, Terminal())
    assert shown(monkeypatch, io.StringIO()) == ""


def test_fast_work_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "load" not in shown(monkeypatch, Terminal())


@pytest.mark.usefixtures("at_once")
def test_without_tqdm_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert shown(monkeypatch, Terminal()) == ""


@pytest.mark.usefixtures("at_once")
def test_measures_and_counterfactuals_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHUNK_ELEMENTS", 8)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    measure_load(Recording.from_coefficients(torch.rand(10, 2)))
    assert "load" in terminal.getvalue()
    model = nn.Sequential(CPMuMoE(6, 8, [4], rank=2), nn.GELU(), CPMuMoE(8, 3, [4], rank=2)).eval()
    for layer, title in (("0", "samples without an expert"), ("2", "predictions without an expert")):
        counterfactuals(model, torch.randn(6, 6).split(3), layer)
        assert title in terminal.getvalue()
