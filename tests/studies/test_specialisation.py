"""The study of specialisation in seconds, on made-up data; its data, heads and measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from studies.common.runs import read
from studies.specialisation.concepts import concepts
from studies.specialisation.data import made_up
from studies.specialisation.glyphs import FACES, NUMBER, faces_of, pictures
from studies.specialisation.heads import MATCHED, RANK, Outcome, head
from studies.specialisation.measuring import measures
from studies.specialisation.page import page
from studies.specialisation.plan import (
    DEFAULT,
    LINEAR,
    MATCHED_CP,
    MATCHED_TR,
    RATE_SEED,
    RING,
    TWO_MAPS,
    contender,
    quick,
    runs,
)
from studies.specialisation.run import main
from studies.specialisation.samples import GAP, MARGIN, TITLE, beside, choose
from studies.specialisation.table import Runs

pytestmark = pytest.mark.thorough


def test_quick_form_runs_resumes_and_writes_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--out", str(tmp_path), "--cache", str(tmp_path / "cache")])
    contenders = {json.dumps(contender(settings)) for settings in quick()}
    assert capsys.readouterr().out.count(" s)") == len(quick()) + 3 * len(contenders)
    files = sorted((tmp_path / "specialisation").glob("*.jsonl"))
    before = [file.read_bytes() for file in files]
    main(["--quick", "--out", str(tmp_path), "--cache", str(tmp_path / "cache")])
    assert capsys.readouterr().out == ""
    assert [file.read_bytes() for file in files] == before
    text = (tmp_path / "specialisation.md").read_text(encoding="utf-8")
    assert "# Specialisation and the number of experts" in text
    found = Runs([entry for file in files for entry in read(file)])
    # A rate is chosen on samples that the reported runs train on, never on the test samples.
    assert all(set(e["result"]) == {"accuracy"} for e in found.all if e["settings"]["seed"] == RATE_SEED)
    assert len(found.kept) == len(quick())


def test_validation_holds_out_training_samples_of_every_class() -> None:
    data = made_up()
    held_out = data.validation()
    assert len(held_out.train) + len(held_out.test) == len(data.train)
    assert held_out.test_labels.unique().tolist() == data.train_labels.unique().tolist()
    rows = {tuple(row) for row in data.test.tolist()}
    assert not any(tuple(row) in rows for row in held_out.test.tolist())


def test_plan_names_no_head_twice_and_its_first_runs_span_all_sizes() -> None:
    keys = [json.dumps(settings, sort_keys=True) for settings in runs()]
    assert len(set(keys)) == len(keys) <= 350
    first = runs()[:10]
    assert {s["experts"] for s in first} == {4, 16, 64, 256, 1024}
    assert {s["seed"] for s in first} == {0}


@pytest.mark.parametrize(
    ("like", "experts"), [(MATCHED_CP, 16), (MATCHED_CP, 64), (MATCHED_CP, 128), (MATCHED_TR, 16), (MATCHED_TR, 64)]
)
def test_matched_heads_have_a_linear_heads_parameters(like: dict[str, Any], experts: int) -> None:
    linear, mine = (_size(head({**settings, "experts": experts}, 384, 252)) for settings in (LINEAR, like))
    assert like["rank"] == MATCHED
    assert 0.97 * linear <= mine <= linear


@pytest.mark.parametrize("like", [RING, TWO_MAPS])
def test_unmatched_forms_have_the_parameters_of_cp(like: dict[str, Any]) -> None:
    cp, mine = (_size(head({**settings, "experts": 256}, 384, 252)) for settings in (DEFAULT, like))
    assert DEFAULT["rank"] == RANK
    assert 0.97 * cp <= mine <= cp


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_a_kanji_is_never_tested_in_a_face_it_was_trained_in() -> None:
    assert len(FACES) == len(set(FACES)) == 40
    for kanji in range(NUMBER):
        train, test = faces_of(kanji, len(FACES))
        assert sorted(train + test) == list(range(len(FACES)))
    assert len(pictures(0, 40)) == len(pictures(1, 40)) == 20 * NUMBER


def _noun(number: int, above: int | None, word: str = "w") -> str:
    pointers = "000" if above is None else f"001 @ {above:08d} n 0000"
    return f"{number:08d} 03 n 01 {word} 0 {pointers} | gloss {number}"


def test_concepts_take_what_no_deeper_one_has_taken() -> None:
    # 1 has 2 and 3; 2 has 4, 5 and 6; with two glosses for a class, 2 takes three and leaves 2 itself to 1.
    lines = [_noun(1, None, "top"), _noun(2, 1, "low"), _noun(3, 1), *(_noun(k, 2) for k in (4, 5, 6))]
    low, top = concepts(lines, most=9, fewest=2)
    assert (low.name, low.glosses, low.depth) == ("low", ("gloss 4", "gloss 5", "gloss 6"), 1)
    assert (top.name, top.glosses, top.depth) == ("top", ("gloss 2", "gloss 3"), 0)


def test_measures_of_a_head_made_by_hand() -> None:
    # Two classes of two, all correct. Expert 0 carries class 0, expert 1 nothing; a sample uses one expert.
    coefficients = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=torch.float16)
    both = torch.tensor([2, 2])
    found = Outcome(1.0, 1.0, 7, both, both, torch.tensor([[0, 2], [2, 2]]), coefficients)
    result = measures(found, torch.tensor([0, 0, 1, 1]))
    assert [result[name][0] for name in ("mean", "mean_dead_one", "mean_dead_zero")] == [0.0, 0.5, 0.0]
    assert (result["with_effect"], result["lost"], result["experts_per_input"]) == (1, 1.0, 1.0)
    # What is beyond the null is the same whether experts without effect count 1 or 0.
    one, zero, left_out = ([*result[name]] for name in ("mean_dead_one", "mean_dead_zero", "mean"))
    assert one[0] - one[1] == pytest.approx(zero[0] - zero[1], abs=2e-5)
    assert one[0] - one[1] == pytest.approx((left_out[0] - left_out[1]) / 2, abs=2e-5)
    assert result["concentration"][0] == result["effective_classes"][0] == result["mutual_information"][0] == 1.0


def test_an_outcome_is_read_as_it_was_written(tmp_path: Path) -> None:
    counts = torch.tensor([2, 3]), torch.tensor([1, 2]), torch.tensor([[0, 2]])
    found = Outcome(0.5, 0.75, 9, *counts, torch.tensor([[0.25]], dtype=torch.float16))
    found.save(tmp_path / "one.npz")
    again = Outcome.load(tmp_path / "one.npz")
    assert (again.accuracy, again.train_accuracy, again.parameters) == (0.5, 0.75, 9)
    for name in ("class_sizes", "correct", "correct_without", "coefficients"):
        assert torch.equal(getattr(again, name), getattr(found, name))


def test_pictures_stand_side_by_side_each_under_its_title() -> None:
    low, high = np.full((30, 200), 100, dtype=np.uint8), np.full((50, 160), 200, dtype=np.uint8)
    found = np.asarray(beside([low, high], ["16 experts", "256 experts"]).convert("L"))
    assert found.shape == (50 + 2 * MARGIN + TITLE, 200 + GAP + 160 + 2 * MARGIN)
    top = MARGIN + TITLE
    assert (found[top : top + 30, MARGIN : MARGIN + 200] == 100).all()
    right = MARGIN + 200 + GAP
    assert (found[top : top + 50, right : right + 160] == 200).all()
    for left, width in ((MARGIN, 200), (right, 160)):
        assert (found[MARGIN:top, left : left + width] < 50).any()
    assert (found[top:, MARGIN + 200 : right] == 255).all()


def test_samples_are_those_whose_largest_coefficient_an_expert_has() -> None:
    coefficients = torch.rand(200, 5, generator=torch.Generator().manual_seed(0))
    found = choose(coefficients, experts=3, samples=7)
    assert len(found) == 3
    for expert, samples in found.items():
        assert len(set(samples)) == 7
        assert (coefficients[samples].argmax(dim=1) == expert).all()


def test_a_page_without_runs_claims_nothing() -> None:
    text = page(Runs([]), [])
    assert "reproduced" not in text
    assert "##" in text
