"""The benchmark of recordings and spectra: rows for every case, and spectra that are checked. No time is asserted."""

from pathlib import Path

import pytest
import torch

from benchmarks import block, interpret
from benchmarks.measuring import Effort
from factorized_moe.interpret import ExpertSpectra

pytestmark = pytest.mark.thorough

SMALL = interpret.Sizes(
    block.Sizes(features=32, hidden=64),
    experts=6,
    tokens=8,
    passes=2,
    spectra=(("cp", 3), ("tr", 2)),
    rounds=2,
    timed=2,
)
ONCE = Effort(seconds=0.0, fewest=2, turn=0.0, compiled=False)


def test_rows() -> None:
    rows = list(interpret.rows(ONCE, SMALL))
    cases = [(row.case, sum(other.case == row.case for other in rows)) for row in rows if row.baseline]
    assert cases == [("2 x 8 tokens, 6 experts", 6)] * 2 + [("spectra of 6 experts, 32 x 32", 6)] * 2
    assert all(row.forward is not None for row in rows)


def test_wrong_spectra_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpret, "measure_spectra", lambda experts: ExpertSpectra(torch.ones(6, 3), (6,)))
    with pytest.raises(ValueError, match=r"the spectrum of expert 0 is off by .* of its largest singular value"):
        list(interpret.rows(ONCE, SMALL))


def test_long_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interpret._long(300, 16, tmp_path)
    printed = capsys.readouterr().out
    assert "recorded 300 tokens" in printed
    assert "co-activation" in printed
