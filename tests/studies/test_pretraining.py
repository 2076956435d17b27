"""The study of pre-training: parity by its rules, bits and their nulls, and the page that follows the figures."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from studies.common.paired import paired
from studies.pretraining import run, training
from studies.pretraining.doing import experts_section, experts_verdicts
from studies.pretraining.experts import look
from studies.pretraining.information import mutual_information, permuted, perplexity, random_gates
from studies.pretraining.page import page
from studies.pretraining.parity import Parity, by_problem, parities
from studies.recipes import run as recipes_run

DOCS = Path(__file__).parents[2] / "docs" / "studies"


def test_parity_by_two_standard_errors_and_by_student() -> None:
    tie = Parity(paired([1.0, 2.0, 3.0], [1.1, 1.9, 3.0]), lower_is_better=True)
    assert (tie.word, tie.beyond_t) == ("a tie", False)
    # differences 0.1, 0.2, 0.3: mean 0.2, error 0.1 / sqrt(3) = 0.0577: 3.5 errors, more than 2 and less than 4.303
    by_one_rule = paired([1.1, 2.2, 3.3], [1.0, 2.0, 3.0])
    assert (Parity(by_one_rule, True).word, Parity(by_one_rule, False).word) == ("worse", "better")
    assert not Parity(by_one_rule, True).beyond_t
    assert Parity(by_one_rule, True).half_width == pytest.approx(4.303 * 0.1 / 3**0.5)
    by_both = Parity(paired([1.1, 2.11, 3.1], [1.0, 2.0, 3.0]), True)
    assert (by_both.word, by_both.beyond_t) == ("worse", True)


def test_bits_of_experts_that_know_the_label_and_of_its_null() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (200, 16), generator=generator)
    knowing = torch.eye(4)[labels]
    assert mutual_information(knowing, labels) == pytest.approx(2.0, abs=0.01)
    for within in (False, True):
        assert max(mutual_information(knowing, other) for other in permuted(labels, within, 5)) < 0.02
    assert perplexity(knowing) == pytest.approx(1.0)


def test_the_null_keeps_what_comes_of_places() -> None:
    labels = torch.arange(4).expand(50, 4)  # every sequence is the same: the label is its place
    (exchanged,) = permuted(labels, within=False, number=1)
    assert torch.equal(exchanged, labels)
    (shuffled,) = permuted(labels, within=True, number=1)
    assert not torch.equal(shuffled, labels)
    assert torch.equal(shuffled.sort(dim=1).values, labels)


def test_random_gates_have_normalised_logits() -> None:
    inputs = 5.0 + 3.0 * torch.randn(100, 8, 6, generator=torch.Generator().manual_seed(0))
    (logits,) = random_gates(inputs, 4, lambda x: x, temperature=2.0, number=1)
    assert logits.shape == (100, 8, 4)
    torch.testing.assert_close(logits.flatten(0, 1).mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.flatten(0, 1).std(dim=0), torch.full((4,), 0.5))


def made_up(accuracies: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [
        {
            "settings": {"problem": "gpt", "form": form, "seed": seed},
            "result": {
                "loss": 3.0 - accuracy,
                "accuracy": accuracy,
                "parameters": 100,
                "steps": [1, 2],
                "losses": [3.0, 3.0 - accuracy],
                "accuracies": [0.0, accuracy],
                "experts": [[3, 4]] if form != "dense" else [],
            },
            "seconds": 60.0,
        }
        for form, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]


def looks(first: float, last: float, drawn: float) -> list[dict[str, Any]]:
    def layer(bits: float) -> dict[str, Any]:
        measured = {"bits": bits, "permuted": 0.01, "permuted_most": 0.02, "random_gate": drawn, "entropy": 3.0}
        labels = dict.fromkeys(("look", "position", "class"), measured)
        return {"layer": "blocks.0.channels", "labels": labels, "sharing": {"trained": 7.0, "random_gate": 6.0}}

    return [
        {
            "settings": {"problem": "mixer", "form": "cp", "seed": seed},
            "result": {"layers": [layer(first), layer(last + 0.001 * seed)]},
            "seconds": 1.0,
        }
        for seed in range(3)
    ]


def test_verdicts_follow_the_figures() -> None:
    runs = made_up({"dense": [0.20, 0.21, 0.22], "cp": [0.20, 0.22, 0.21], "tr": [0.10, 0.11, 0.13]})
    text = page(runs, [], [], {})
    assert "**GPT, accuracy at equal parameters: reproduced in part.** CP is a tie in accuracy (+0.00 ± 0.58" in text
    assert (
        "tensor ring is worse in accuracy (-9.67 ± 0.33 points) and worse in loss (+0.097 ± 0.003, +3.5% of dense's)"
        in text
    )
    assert "2 of the 4 differences are other than zero: GPT, tensor ring, accuracy; GPT, tensor ring, loss." in text
    assert "18 of 24 over layers, forms and seeds" in text
    assert "parameters: reproduced.**" in page(made_up({"dense": [0.2, 0.3], "cp": [0.2, 0.31]}), [], [], {})
    assert "parameters: one seed cannot tell.**" in page(made_up({"dense": [0.2], "cp": [0.2]}), [], [], {})
    assert "parameters: not reproduced.**" in page(made_up({"dense": [0.2, 0.3], "cp": [0.1, 0.21]}), [], [], {})
    assert list(parities(by_problem(runs)["gpt"], "loss")) == ["cp", "tr"]


def test_what_is_said_of_experts_follows_the_figures() -> None:
    text, claim = experts_verdicts(looks(0.1, 0.8, 0.4))
    assert "bits about the class of the image: 0.10 in the first layer, less than a random gate (0.2 times)" in text
    assert "and 0.80 in the last layer, more than a random gate (2.0 times): a rise" in text
    assert "late ones by class: not reproduced**" in claim  # the look rises too
    text, _ = experts_verdicts(looks(0.8, 0.015, 0.4))
    assert "a fall" in text
    assert "not above permuted labels" in text
    falling = looks(0.1, 0.8, 0.4)
    for entry in falling:
        first, last = entry["result"]["layers"]
        first["labels"]["look"], last["labels"]["look"] = last["labels"]["look"], first["labels"]["look"]
    assert "late ones by class: reproduced**" in experts_verdicts(falling)[1]
    assert "one seed cannot tell" in experts_verdicts(falling[:1])[1]
    assert "| CP | 2 | 0.80 ± 0.00 (0.01; 0.40) |" in "\n".join(experts_section(looks(0.1, 0.8, 0.4)))


def test_the_page_is_that_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "token_shards", lambda cache: cache)  # only named on the page's way, not read
    for name in ("pretraining.jsonl", "pretraining-experts.jsonl"):
        (tmp_path / name).write_bytes((DOCS / name).read_bytes())
    run.main(["--page", "--out", str(tmp_path)])
    assert (tmp_path / "pretraining.md").read_text("utf-8") == (DOCS / "pretraining.md").read_text("utf-8")
    runs = [json.loads(line) for line in (DOCS / "pretraining.jsonl").read_text("utf-8").splitlines()]
    done = {tuple(entry["settings"].values()) for entry in runs}
    for problem in training.PROBLEMS:
        seeds = {form: {seed for p, f, seed in done if (p, f) == (problem, form)} for form in training.FORMS}
        assert all(own == seeds["dense"] for own in seeds.values())
        assert len(seeds["dense"]) >= 2


@pytest.mark.thorough
def test_it_runs_to_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not recipes_run.options_of.__globals__["MixerOptions"]().data.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    monkeypatch.setattr(training, "CACHE", tmp_path)
    run.main(["--quick", "--only", "mixer", "--out", str(tmp_path)])
    text = (tmp_path / "pretraining.md").read_text()
    assert re.search(r"\| Mixer \| CP \| [\d,]+ \| \d\.\d{3} ± \d\.\d{3} \| [+-]", text)
    assert "| tensor ring | 4 | " in text
    assert (tmp_path / "pretraining-patches.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "pretraining-bits.svg").read_bytes()


@pytest.mark.thorough
def test_tokens_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CACHE", tmp_path)
    found = look({"problem": "gpt", "form": "cp", "seed": 0}, quick=True, shown=True)
    assert [len(layer["labels"]) for layer in found["layers"]] == [4, 4, 4]
    assert len(found["shown"]["tokens"]) == 64
    assert all(len(e["coefficients"]) == 64 for layer in found["shown"]["layers"] for e in layer["experts"])
