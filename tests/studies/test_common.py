"""What studies share: resumable tables, paired differences, data."""

import json
import statistics
from pathlib import Path

import pytest
import torch

from studies.__main__ import main, names
from studies.common.glosses import group
from studies.common.paired import Difference, paired
from studies.common.runs import finish, read
from studies.common.text import standard_library

pytestmark = pytest.mark.thorough


def test_a_table_goes_on_where_it_was(tmp_path: Path) -> None:
    file, done = tmp_path / "runs.jsonl", []

    def run(settings):
        done.append(settings["seed"])
        if len(done) == 3:
            raise KeyboardInterrupt
        return {"loss": settings["seed"] / 2}

    wanted = [{"seed": seed} for seed in range(4)]
    with pytest.raises(KeyboardInterrupt):
        finish(file, wanted, run)
    with file.open("a") as stream:
        stream.write('{"settings": {"seed": 9')  # a line cut off by a stop
    found = finish(file, wanted, run)
    assert done == [0, 1, 2, 2, 3]
    assert [entry["result"]["loss"] for entry in found] == [0.0, 0.5, 1.0, 1.5]
    assert [entry["settings"] for entry in read(file)] == wanted


def test_paired_differences_by_hand() -> None:
    found = paired([1.0, 2.0, 4.0], [0.0, 2.0, 2.0])
    assert (found.mean, found.pairs) == (1.0, 3)
    assert found.error == pytest.approx(statistics.stdev([1.0, 0.0, 2.0]) / 3**0.5)
    assert found.is_tie
    assert not paired([1.0, 1.1, 1.2], [0.0, 0.0, 0.0]).is_tie
    assert paired([1.0], [0.0]).is_tie
    with pytest.raises(ValueError, match="of one number, 1 or more, got 1 and 2"):
        paired([1.0], [1.0, 2.0])


def test_intervals_and_margins_by_hand() -> None:
    assert [Difference(0.0, 1.0, pairs).half_width for pairs in (3, 12, 1000)] == [4.30, 2.20, 2.09]
    assert [Difference(mean, 0.01, 3).falls(0.01) for mean in (-0.0531, -0.0529, 0.0331)] == [True, None, False]
    assert Difference(0.0, 0.0, 3).falls(0.0) is False
    assert paired([1.0], [0.0]).falls(0.0) is None


def test_text_is_in_two_parts_and_labels_are_the_next_token() -> None:
    text = standard_library()
    x, labels = text.batch(torch.Generator().manual_seed(0), 3, 8)
    assert torch.equal(x[:, 1:], labels[:, :-1])
    again, _ = text.batch(torch.Generator().manual_seed(0), 3, 8)
    assert torch.equal(x, again)
    assert len(text.held_out) == pytest.approx(0.05 * (len(text.train) + len(text.held_out)), abs=1)
    assert int(text.train.max()) < 128


def test_glosses_are_grouped_by_the_concept_above() -> None:
    lines = [
        "  1 This software and database is being provided to you",
        "00000001 03 n 02 a 0 b 0 002 @ 00000009 n 0000 ~ 00000005 n 0000 | first",
        "00000002 03 n 01 c 0 001 @ 00000009 n 0000 | second; with | bar",
        "00000003 03 n 01 d 0 001 @ 00000008 n 0000 | alone",
        "00000009 03 n 01 e 0 000 | top",
    ]
    assert group(lines, fewest=2) == [["first", "second; with | bar"]]


def test_studies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "training_defaults" in names()
    assert main(["nothing"]) == 2
    assert "there is no study 'nothing'" in capsys.readouterr().out


def test_the_table_of_the_page_is_json(tmp_path: Path) -> None:
    finish(tmp_path / "t.jsonl", [{"a": 1}], lambda _: {"b": [1, None]})
    assert json.loads((tmp_path / "t.jsonl").read_text())["result"] == {"b": [1, None]}
