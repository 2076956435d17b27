"""The study of pre-training: parity by its rules, bits and their nulls, and the page that follows the figures."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.gpt.language import GPTOptions
from recipes.mixer.mixing import MixerOptions
from studies.common.paired import paired
from studies.pretraining import run, training
from studies.pretraining.beyond import beyond_table, depths, experts_verdicts
from studies.pretraining.doing import experts_section
from studies.pretraining.experts import look
from studies.pretraining.information import mutual_information, permuted, perplexity, random_gates
from studies.pretraining.page import page
from studies.pretraining.parity import Parity, by_problem, gathered, parities
from studies.pretraining.settings import settings_table
from studies.recipes import run as recipes_run

DOCS = Path(__file__).parents[2] / "docs" / "studies"


def test_verdicts_go_by_the_interval_and_two_standard_errors_only_suggest() -> None:
    tie = Parity(paired([1.0, 2.0, 3.0], [1.1, 1.9, 3.0]), lower_is_better=True)
    assert (tie.verdict, tie.suggestive) == ("not told apart", "")
    # differences 0.1, 0.2, 0.3: mean 0.2, error 0.1 / sqrt(3) = 0.0577: 3.5 errors, more than 2 and less than 4.303
    by_one_rule = paired([1.1, 2.2, 3.3], [1.0, 2.0, 3.0])
    assert [Parity(by_one_rule, lower).verdict for lower in (True, False)] == ["not told apart", "not told apart"]
    assert [Parity(by_one_rule, lower).suggestive for lower in (True, False)] == ["worse", "better"]
    assert Parity(by_one_rule, True).half_width == pytest.approx(4.30 * 0.1 / 3**0.5)
    by_both = paired([1.1, 2.11, 3.1], [1.0, 2.0, 3.0])
    assert [Parity(by_both, lower).verdict for lower in (True, False)] == ["worse", "better"]
    assert Parity(by_both, True).suggestive == ""
    assert Parity(paired([1.0], [2.0]), True).verdict == "unknown"


def test_what_is_not_told_apart_is_said_with_what_is_excluded() -> None:
    wide = Parity(paired([0.880, 0.890, 0.870], [0.881, 0.880, 0.885]), lower_is_better=False)
    assert wide.text(100.0, 2) == "-0.20 [-3.31, +2.91]"
    assert wide.remark(100.0, 1) == "within 3.4 either way, rounded up; parity by two standard errors"
    suggestive = Parity(paired([1.1, 2.2, 3.3], [1.0, 2.0, 3.0]), lower_is_better=True)
    assert suggestive.remark(1.0, 2) == "within 0.45 either way, rounded up; suggestive: worse"
    assert Parity(paired([1.1, 2.11, 3.1], [1.0, 2.0, 3.0]), True).remark() == ""


def test_words_are_gathered() -> None:
    assert gathered({"CP": "worse", "tensor ring": "better"}) == "worse for CP, better for tensor ring"
    assert gathered({"CP": "worse", "tensor ring": "better", "Tucker": "worse"}) == (
        "worse for CP and Tucker, better for tensor ring"
    )


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


Ends = tuple[list[float], list[float]]
"""The bits of three seeds in the first and in the last layer."""


def looks(trained: dict[str, Ends], drawn: dict[str, Ends], problem: str = "mixer", shared: float = 7.0) -> list[Any]:
    def layer(end: int, seed: int) -> dict[str, Any]:
        labels = {
            name: {"bits": trained[name][end][seed], "random_gate": drawn[name][end][seed], "permuted": 0.01 * seed}
            for name in trained
        }
        sharing = {"trained": shared + 0.01 * seed, "random_gate": 6.5}
        return {"layer": "blocks.0.channels", "labels": labels, "sharing": sharing}

    return [
        {
            "settings": {"problem": problem, "form": "cp", "seed": seed},
            "result": {"layers": [layer(0, seed), layer(1, seed)]},
            "seconds": 1.0,
        }
        for seed in range(3)
    ]


LOW, MIDDLE, HIGH = [0.10, 0.11, 0.13], [0.40, 0.42, 0.41], [0.80, 0.81, 0.79]


def mixer_looks(trained: dict[str, Ends], drawn: dict[str, Ends], **more: Any) -> list[Any]:
    still = {"look": (LOW, LOW), "class": (LOW, LOW), "position": (LOW, LOW)}
    return looks({**still, **trained}, {**still, **drawn}, **more)


def test_verdicts_follow_the_figures() -> None:
    runs = made_up({"dense": [0.20, 0.21, 0.22], "cp": [0.20, 0.22, 0.21], "tr": [0.10, 0.11, 0.13]})
    text = page(runs, [], [], {})
    assert "in accuracy not told apart for CP, not reproduced for tensor ring; in loss not told apart for CP" in text
    assert "CP +0.00 [-2.48, +2.48] points (within 2.49 either way, rounded up; parity by two standard errors)" in text
    assert "tensor ring -9.67 [-11.10, -8.23] points. Loss" in text
    assert "tensor ring +0.097 [+0.082, +0.111] nats per token (perplexity +10.1%)" in text
    assert "18 of 24 over layers, forms and seeds" in text
    better = page(made_up({"dense": [0.2, 0.3, 0.4], "cp": [0.3, 0.41, 0.5]}), [], [], {})
    assert "in accuracy reproduced; in loss reproduced.**" in better
    assert "in accuracy one seed cannot tell" in page(made_up({"dense": [0.2], "cp": [0.2]}), [], [], {})
    assert list(parities(by_problem(runs)["gpt"], "loss")) == ["cp", "tr"]


def test_few_seeds_do_not_favour_reproduced() -> None:
    two = page(made_up({"dense": [0.2, 0.3], "cp": [0.2, 0.31]}), [], [], {})
    assert "in accuracy not told apart; in loss not told apart.**" in two
    lost = page(made_up({"dense": [0.22, 0.23, 0.21], "cp": [0.21, 0.215, 0.207]}), [], [], {})
    assert "in accuracy not told apart;" in lost
    assert "suggestive: worse)" in lost


def test_shorter_runs_have_their_steps() -> None:
    shorter = made_up({"dense": [0.20, 0.21, 0.22], "cp": [0.10, 0.11, 0.121]})
    assert "| GPT | CP | 2 | 11.03 (1.05) | -9.97 [-10.11, -9.82] worse | 3 |" in page([], shorter, [], {})


def test_a_pattern_that_random_gates_have_too_is_not_beyond_them() -> None:
    falling = {"look": (HIGH, LOW), "class": (LOW, HIGH)}
    pattern, early, late, _ = experts_verdicts(mixer_looks(falling, falling))
    assert "as a pattern: reproduced; random gates show it too.**" in pattern
    assert "look CP -0.69 [-0.74, -0.63]; class CP +0.69 [+0.63, +0.74]" in pattern
    assert "beyond a random gate: not told apart.**" in early
    assert "beyond a random gate: not told apart.**" in late
    assert "changes by CP +0.00 [+0.00, +0.00], no clear change" in late
    pattern, early, late, _ = experts_verdicts(mixer_looks(falling, {}))
    assert "as a pattern: reproduced; random gates do not clearly show it.**" in pattern
    assert "by look beyond a random gate: reproduced.** First layer, trained minus random: CP +0.69" in early
    assert "by class beyond a random gate: reproduced.** Last layer, trained minus random: CP +0.69" in late
    assert "CP -0.69 [-0.74, -0.63], a fall" in early
    assert "CP +0.69 [+0.63, +0.74], a rise" in late


def test_a_pattern_is_of_look_and_class_together() -> None:
    rising = {"look": (LOW, HIGH), "class": (LOW, HIGH)}
    assert "as a pattern: not reproduced;" in experts_verdicts(mixer_looks(rising, {}))[0]
    class_alone = {"class": (LOW, HIGH)}
    assert "as a pattern: not told apart;" in experts_verdicts(mixer_looks(class_alone, {}))[0]
    assert all("one seed cannot tell" in line for line in experts_verdicts(mixer_looks(rising, {})[:1]))


def test_less_than_a_random_gate_is_not_reproduced_and_a_spread_of_seeds_is_not_told_apart() -> None:
    _, early, _, _ = experts_verdicts(mixer_looks({}, {"look": (HIGH, LOW)}))
    assert "by look beyond a random gate: not reproduced.**" in early
    spread = [0.2, 0.9, 0.4]  # its mean is far above, its interval is not
    _, early, _, _ = experts_verdicts(mixer_looks({"look": (spread, LOW)}, {}))
    assert "by look beyond a random gate: not told apart.**" in early


def test_sharper_gates_are_named_beside_what_they_may_explain() -> None:
    late = {"class": (LOW, HIGH)}
    assert (
        "reproduced, where trained gates are sharper too.**" in experts_verdicts(mixer_looks(late, {}, shared=5.0))[2]
    )
    assert "sharper" not in experts_verdicts(mixer_looks(late, {}))[2]
    section = "\n".join(experts_section(mixer_looks(late, {}, shared=5.0)))
    assert "sharper than random ones in layers 1, 2 (Mixer, CP)." in section
    assert "sharper than random ones in no layer." in "\n".join(experts_section(mixer_looks(late, {})))


def test_early_layers_by_place() -> None:
    place = experts_verdicts(mixer_looks({"look": (MIDDLE, LOW), "position": (MIDDLE, LOW)}, {}))[3]
    assert "by place: as much as by look, as far as can be told.**" in place
    assert "CP 0.41 and 0.41" in place
    assert "would have CP 0.01 bits (labels exchanged between whole images); gates tell more: CP +0.40" in place
    assert "by place: more than by look.**" in experts_verdicts(mixer_looks({"position": (HIGH, LOW)}, {}))[3]
    assert "by place: less than by look.**" in experts_verdicts(mixer_looks({"look": (HIGH, LOW)}, {}))[3]


def test_what_a_gpt_tells_is_judged_against_a_random_gate_that_changes_too() -> None:
    trained, drawn = {"kind": (HIGH, HIGH)}, {"kind": (LOW, MIDDLE)}
    trained["next token"], drawn["next token"] = (MIDDLE, HIGH), (LOW, [0.43, 0.46, 0.40])
    kind, token = experts_verdicts(looks(trained, drawn, "gpt"))
    assert "kind of a token beyond a random gate's: more in the first layer and in the last.**" in kind
    assert "CP -0.30 [-0.33, -0.26], a fall" in kind  # still by itself, less beyond a random gate
    assert ", no clear change" in token  # a rise by itself, as a random gate's
    change = depths(looks(trained, drawn, "gpt"))["gpt"]["next token"]["cp"]
    assert [change.change(gate).verdict for gate in ("bits", "random_gate")] == ["better", "better"]
    assert change.change_beyond.verdict == "not told apart"
    less, _ = experts_verdicts(looks({**trained, "kind": (LOW, HIGH)}, {**drawn, "kind": (HIGH, LOW)}, "gpt"))
    assert "first layer less, last more.**" in less
    (row,) = [line for line in beyond_table(looks(trained, drawn, "gpt")) if "| next token |" in line]
    levels, changes = row.split(" | ")[3:5], row.split(" | ")[5:]
    assert all(cell.endswith("] more") for cell in levels)
    assert [cell.rpartition("]")[2] for cell in changes] == [" a rise", " a rise", " |"]


def test_bits_by_layer_stand_beside_the_controls() -> None:
    section = "\n".join(experts_section(mixer_looks({"class": (LOW, HIGH)}, {})))
    assert "| CP | 2 | 0.11 (0.02) / 0.11 (0.02) | 0.80 (0.01) / 0.11 (0.02) |" in section
    assert "look at most 0.02, class at most 0.02, position at most 0.02 bits" in section


def test_settings_are_those_of_the_options() -> None:
    given = {"gpt": GPTOptions(width=128, depth=3, tokens=64, held_out=512), "mixer": MixerOptions(width=96, batch=32)}
    text = "\n".join(settings_table(given))
    assert "512 sequences at equal distances, 32,768 tokens |" in text
    assert "| a sample | a context of 64 tokens | an image of 28 x 28 pixels, 16 patches |" in text
    assert "| learning rate | 0.0036 at most: rises for 5% of the steps" in text
    assert "| 400 steps of 32 samples |" in text.replace(", no augmentation", "")
    assert settings_table({}) == []


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
    assert re.search(r"\| Mixer \| CP \| [\d,]+ \| \d\.\d{3} \(\d\.\d{3}\) \| [+-]", text)
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
