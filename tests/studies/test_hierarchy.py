"""The study of several expert modes in seconds: idle and frozen modes by hand, equal parameters, verdicts from runs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from factorized_moe import MuMoE
from studies.common.images import FASHION_MNIST
from studies.common.runs import read
from studies.hierarchy.contenders import (
    CONTENDERS,
    DENSE,
    SMALL,
    TWO_MAPS,
    Contender,
    GridForm,
    freeze_mode,
    matrix_rank,
    rated_by,
)
from studies.hierarchy.page import page, picture
from studies.hierarchy.run import main, use_of_modes

pytestmark = pytest.mark.thorough


@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_quick_form_runs_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = (DENSE, Contender("cp", (8, 8)), Contender("tr", (4, 4, 4)), Contender("cp", (8, 8), frozen=True))
    monkeypatch.setitem(CONTENDERS, "mixer", few)
    main(["--quick", "--out", str(tmp_path), "--only", "mixer"])
    assert capsys.readouterr().out.count(" s)") == len(few)
    main(["--quick", "--out", str(tmp_path), "--only", "mixer"])
    assert capsys.readouterr().out == ""
    frozen = read(tmp_path / "hierarchy-mixer.jsonl")[-1]["result"]
    assert frozen["modes"][-1]["without"] == frozen["accuracy"]
    assert "# One to four expert modes" in (tmp_path / "hierarchy.md").read_text()
    assert (tmp_path / "hierarchy.svg").read_text().count("<svg") == 1


@pytest.mark.parametrize("contender", [c for c in CONTENDERS["mixer"] if c.expert_dims and not c.frozen])
def test_grids_of_the_mixer_have_as_many_parameters_as_the_dense_one(contender: Contender) -> None:
    dense, mine = (sum(p.numel() for p in GridForm.of(c).mlp(64, 256).parameters()) for c in (DENSE, contender))
    assert 0.94 * dense <= mine <= dense  # a step of a ring's rank is large


def test_heads_of_one_rank_and_two_maps() -> None:
    grid, maps = (GridForm.of(c).head(384, 239) for c in (Contender("cp", (100, 100, 100), budget=False), TWO_MAPS))
    assert isinstance(grid, MuMoE)
    assert grid.experts.rank == 128
    largest = GridForm.of(Contender("cp", (1000, 1000), budget=False)).head(384, 239)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (maps, largest)]
    assert 0.99 * sizes[1] <= sizes[0] <= sizes[1]
    ring = GridForm.of(Contender("tr", (100, 100, 100), budget=False)).head(384, 239)
    assert ring.experts.rank == (4, 4, 4, 4, 32, 4)


def test_rates_are_those_of_64_experts_with_as_many_modes() -> None:
    judges = {rated_by(c) for contenders in CONTENDERS.values() for c in contenders}
    assert judges <= {c for contenders in CONTENDERS.values() for c in contenders}


def test_a_frozen_mode_stays_uniform_and_the_other_does_not() -> None:
    torch.manual_seed(0)
    layer = MuMoE(6, 3, [4, 5], "cp", 8)
    freeze_mode(layer)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    x = torch.randn(64, 6)
    for _ in range(5):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
    first, last = layer.gate(x)
    torch.testing.assert_close(last, torch.full((64, 5), 0.2))
    assert first.std(dim=0).min() > 1e-3


def test_an_idle_mode_by_hand() -> None:
    """Two experts of the first mode give the classes, the second mode nothing: all is lost without the first alone."""
    layer = MuMoE(2, 2, [2, 3], "dense", 1, gate="softmax", gate_norm=None)
    with torch.no_grad():
        weight = torch.zeros(2, 3, 3, 2)  # with the bias as the last row
        weight[0, :, 2] = torch.tensor([1.0, 0.0])
        weight[1, :, 2] = torch.tensor([0.0, 1.0])
        (parameter,) = layer.experts.parameters()
        parameter.copy_(weight.reshape(parameter.shape))
        layer.gate.projection.weight.zero_()
        layer.gate.projection.weight[0, 0], layer.gate.projection.weight[1, 1] = 20.0, 20.0
        layer.gate.projection.weight[2, 0] = 20.0  # the second mode varies too
    x = torch.eye(2).repeat(51, 1)[:101]  # one more of the first class
    labels = x.argmax(dim=-1)
    found = use_of_modes(layer.eval(), x, labels)
    assert [mode["without"] for mode in found["modes"]] == [pytest.approx(51 / 101), 1.0]
    assert [mode["experts"] for mode in found["modes"]] == [2, 3]
    assert found["constant"] == pytest.approx(51 / 101)


Accuracies = dict[Contender, tuple[float, float, float]]


def _runs(accuracies: Accuracies, idle: tuple[float, float, float] = (0.1, 0.1, 0.1)) -> list[dict[str, Any]]:
    """Heads in three seeds, with what each mode costs if idle."""
    return [
        {
            "settings": {"problem": "head", **contender.settings, "seed": seed, "learning_rate": 1e-3},
            "result": {
                "accuracy": values[seed],
                "samples": 9,
                "parameters": 5,
                "constant": 0.1,
                "modes": [
                    {"experts": 4, "in_use": 3, "bits": 1.0, "without": values[seed] - idle[seed]}
                    for _ in contender.expert_dims
                ],
            },
            "seconds": 1.0,
        }
        for contender, values in accuracies.items()
        for seed in (0, 1, 2)
    ]


def _three(one: float, two: float, apart: float = 0.0) -> Accuracies:
    """A dense head and grids of one and two modes, whose differences are so far apart."""
    seeds = (0.0, 0.01, 0.02)
    return {
        DENSE: tuple(0.7 + seed for seed in seeds),
        Contender("cp", (64,)): tuple(one + seed for seed in seeds),
        Contender("cp", (8, 8)): (two - apart, two + 0.01, two + apart + 0.02),
    }


def test_verdicts_come_from_the_runs() -> None:
    same = page(_runs(_three(0.7, 0.7)))
    assert "More modes cost no accuracy: **reproduced**; of 1 comparisons 1 no worse, 0 worse, 0 undecided" in same
    assert "as accurate as the linear head: **reproduced**; of 2 comparisons 2 no worse" in same
    assert "Every mode is used: **reproduced**; made idle, 2 of 2 modes" in same
    assert "| CP | 8 x 8 | 134 | 5 | 0.710 (0.010) | +0.000 ± 0.000 | 0.100 ± 0.000, 0.100 ± 0.000 | 0.610 |" in same
    worse = page(_runs(_three(0.7, 0.6), idle=(-0.01, -0.01, -0.01)))
    assert "More modes cost no accuracy: **not reproduced**; of 1 comparisons 0 no worse, 1 worse" in worse
    assert "the linear head: **reproduced in part**; of 2 comparisons 1 no worse, 1 worse" in worse
    assert "on average -0.050 ± 0.000, with one mode +0.000 ± 0.000" in worse
    assert "Every mode is used: **not reproduced**; made idle, 0 of 2 modes" in worse
    assert picture(_runs(_three(0.7, 0.6))).startswith(b"<?xml")


def test_what_seeds_do_not_agree_on_is_undecided() -> None:
    # differences -0.01, 0, 0.01: an error of 0.0058, so 0.0248 on each side by t, 0.0115 by two errors
    open_ = page(_runs(_three(0.7, 0.7, apart=0.01), idle=(0.01, 0.0, 0.05)))
    assert "More modes cost no accuracy: **cannot tell**; of 1 comparisons 0 no worse, 0 worse, 1 undecided" in open_
    assert "| +0.000 ± 0.006 | [-0.025, +0.025] | undecided |" in open_
    assert "Every mode is used: **cannot tell**; made idle, 0 of 2 modes" in open_
    fine = page(_runs(_three(0.7, 0.702, apart=0.01)))
    assert "1 undecided (margin 0.01; at two errors 1, 0, 0)" in fine
    assert "0 of 1 intervals lie below 0 altogether, 0 above" in fine
    assert "Of the 1 comparisons between grids of one learning rate: 0 no worse, 0 worse, 1 undecided" in fine
    runs = _runs(_three(0.7, 0.702))
    for entry in runs[-3:]:
        entry["settings"] = {**entry["settings"], "learning_rate": 0.01}
    assert "| **0.01**, 0.001 | +0.002 ± 0.000 | [+0.002, +0.002] | no worse |" in page(runs)
    assert "Of the 0 comparisons between grids of one learning rate" in page(runs)


def test_a_mode_is_useful_if_the_grid_is_worse_with_it_uniform() -> None:
    frozen = Contender("cp", (8, 8), frozen=True)
    useful, useless = ({**_three(0.7, 0.7), frozen: (low, low + 0.01, low + 0.02)} for low in (0.6, 0.75))
    assert "- Used is useful: trained with" in page(_runs(useful))
    assert "Head on glosses: CP 8 x 8 +0.100 ± 0.000)" in page(_runs(useful))
    assert "- Used is not shown to be useful: trained with" in page(_runs(useless))
    assert "in 0 of 1 comparisons" in page(_runs(useless))


def test_what_the_search_for_rates_says() -> None:
    """Four modes cost 0.3 at the lower rate and nothing at the higher, which the loss does not choose."""
    searched = []
    for form in ("cp", "tr"):
        for modes, dims in enumerate(SMALL):
            for rate, loss, accuracy in ((0.001, 1.0, 0.6 - 0.1 * modes), (0.01, 2.0, 0.7)):
                settings = {"problem": "head", **Contender(form, dims).settings, "seed": 100, "learning_rate": rate}
                searched += [{"settings": settings, "result": {"loss": loss, "accuracy": accuracy}}]
    found = page([*_runs(_three(0.7, 0.7)), *searched])
    assert "| CP | 4 x 4 x 2 x 2 | **0.300** | 0.700 |" in found
    assert "By accuracy 8 of 8 grids would have taken another rate" in found
    assert "CP -0.300, +0.000; tensor ring -0.300, +0.000." in found
    assert "What modes cost the head depends on the learning rate" in found
    alone = page(
        [*_runs(_three(0.7, 0.7)), *(entry for entry in searched if entry["settings"]["learning_rate"] == 0.01)]
    )
    assert "CP +0.000; tensor ring +0.000." in alone
    assert "depends on the learning rate" not in alone
    assert "Learning rates of the head" not in page(_runs(_three(0.7, 0.7)))


def test_ranks_of_the_page_are_those_of_the_layers() -> None:
    for contender in (c for c in CONTENDERS["head"] if c.expert_dims):
        experts = GridForm.of(contender).head(384, 239).experts
        rank = experts.rank if contender.form == "cp" else 4 * experts.rank[-2]
        assert matrix_rank("head", contender) == min(rank, 239)
    block = GridForm.of(Contender("cp", (100, 100, 100))).mlp(64, 256)
    assert matrix_rank("mixer", Contender("cp", (100, 100, 100))) == block.first.rank
