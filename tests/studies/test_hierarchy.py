"""The study of several expert modes in seconds: idle and frozen modes by hand, equal parameters, verdicts from runs."""

from pathlib import Path

import pytest
import torch

from factorized_moe import MuMoE
from studies.common.images import FASHION_MNIST
from studies.common.runs import read
from studies.hierarchy.contenders import CONTENDERS, DENSE, TWO_MAPS, Contender, GridForm, freeze_mode, rated_by
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


def _runs(one: float, two: float, idle: float) -> list[dict[str, object]]:
    """A dense head and grids of one and two modes, in three seeds."""
    given = ((DENSE, 0.7), (Contender("cp", (64,)), one), (Contender("cp", (8, 8)), two))
    return [
        {
            "settings": {"problem": "head", **contender.settings, "seed": seed, "learning_rate": 1e-3},
            "result": {
                "accuracy": accuracy + 0.01 * seed,
                "samples": 9,
                "parameters": 5,
                "constant": 0.1,
                "modes": [
                    {"experts": 4, "in_use": 3, "bits": 1.0, "without": accuracy + 0.01 * seed - idle - 0.001 * seed}
                    for _ in contender.expert_dims
                ],
            },
            "seconds": 1.0,
        }
        for contender, accuracy in given
        for seed in (0, 1, 2)
    ]


def test_verdicts_come_from_the_runs() -> None:
    same = page(_runs(0.7, 0.7, idle=0.1))
    assert "More modes cost no accuracy: **reproduced**; 1 of 1" in same
    assert "as accurate as the linear head (Head on glosses): **reproduced**; 2 of 2" in same
    assert "Every mode is used: **reproduced**; 3 of 3" in same
    assert "| 75%, 75% | 0.101, 0.101 |" in same
    worse = page(_runs(0.7, 0.6, idle=-0.01))
    assert "More modes cost no accuracy: **not reproduced**; 0 of 1" in worse
    assert "as accurate as the linear head (Head on glosses): **reproduced in part**; 1 of 2" in worse
    assert "Every mode is used: **not reproduced**; 0 of 3" in worse
    assert picture(_runs(0.7, 0.6, 0.0)).startswith(b"<?xml")
