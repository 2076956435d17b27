"""The study of defaults in seconds: its gates held to batch normalisation, its verdicts to numbers by hand."""

from pathlib import Path

import pytest
import torch

from studies.common.images import FASHION_MNIST
from studies.training_defaults.contenders import CONFIRM, DEFAULT, DENSE, SCREEN, Contender, form_of
from studies.training_defaults.gates import CANDIDATES, InputMoments
from studies.training_defaults.page import page
from studies.training_defaults.rule import Cells, cells_of, choose, ranking, worst_regret
from studies.training_defaults.run import main

pytestmark = pytest.mark.thorough


def test_quick_form_runs_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = ["gpt", "mixer"] if FASHION_MNIST.exists() else ["gpt"]
    main(["--quick", "--out", str(tmp_path), "--only", *only])
    assert capsys.readouterr().out.count(" s)") == 3 * len(only)
    main(["--quick", "--out", str(tmp_path), "--only", *only])
    assert capsys.readouterr().out == ""
    assert "# Which defaults train" in (tmp_path / "training-defaults.md").read_text()


@pytest.mark.parametrize("gate", CANDIDATES)
def test_gates_give_coefficients_of_each_mode(gate: str) -> None:
    torch.manual_seed(0)
    made = CANDIDATES[gate](6, (4, 3))
    found = made(torch.randn(8, 6))
    assert [tuple(a.shape) for a in found] == [(8, 4), (8, 3)]
    for a in found:
        torch.testing.assert_close(a.sum(-1), torch.ones(8))
        assert (a >= 0).all()


def test_moments_of_the_newest_batch_are_batch_normalisation() -> None:
    torch.manual_seed(0)
    gate = InputMoments(6, (5,), momentum=1.0).double()
    torch.nn.init.normal_(gate.weight)
    x = torch.randn(64, 6, dtype=torch.float64)
    weight = gate.weight.detach().clone().requires_grad_()
    expected = torch.nn.functional.batch_norm(x @ weight.t(), None, None, training=True)
    torch.testing.assert_close(gate.logits(x), expected)
    cotangent = torch.randn_like(expected)
    (mine,) = torch.autograd.grad(gate.logits(x), gate.weight, cotangent)
    (theirs,) = torch.autograd.grad(expected, weight, cotangent)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dims", CONFIRM.expert_dims)
def test_forms_have_as_many_parameters_as_the_dense_one(dims: tuple[int, ...]) -> None:
    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    dense, experts = form_of(DENSE, (), ""), form_of(DEFAULT, dims, "cp")
    assert 0.99 * count(dense.mlp(128, 512)) <= count(experts.mlp(128, 512)) <= count(dense.mlp(128, 512))
    assert 0.99 * count(dense.head(384, 239)) <= count(experts.head(384, 239)) <= count(dense.head(384, 239))


def entry(stage: str, who: Contender, dims: tuple[int, ...], seed: int, loss: float, in_use: int = 0) -> dict:
    settings = {"stage": stage, "problem": "gpt", "init": who.init, "gate": who.gate}
    settings |= {"decomposition": "cp" if dims else "", "expert_dims": list(dims)}
    use = {"in_use": in_use, "perplexity": 7.5, "mutual_information": 0.5}
    usage = {"400": [{"mode": mode, **use} for mode in range(len(dims))]} if dims else {}
    result = {"loss": loss, "accuracy": 0.5, "parameters": 10, "usage": usage}
    return {"settings": {**settings, "seed": seed}, "result": result, "seconds": 30.0}


def test_verdicts_are_made_of_the_runs() -> None:
    old = Contender("paper", "layer")
    runs = []
    for seed, noise in enumerate((0.0, 0.01, -0.01)):
        runs += [
            entry(CONFIRM.name, DENSE, (), seed, 2.0 + noise),
            entry(CONFIRM.name, DEFAULT, (8, 8), seed, 1.9, 8),
            entry(CONFIRM.name, old, (8, 8), seed, 2.1 + noise, 4),
            entry(SCREEN.name, DEFAULT, (8, 8), seed, 1.9, 8),
            entry(SCREEN.name, old, (8, 8), seed, 2.1),
        ]
    text = page(runs)
    assert "- paper, layer, an old default: 0 of 2 modes dead at the end; loss of the default lower in 1 cells" in text
    assert "gpt: the default less the dense model of equal parameters: 8 x 8 -0.100 ± 0.006" in text
    assert "| balanced, batch, half | 0.000 ± 0.000 | gpt 8 x 8 |  | 0 of 2 | 100% | 0.50 |" in text
    assert "| paper, layer | 0.200 ± 0.006 | gpt 8 x 8 | 1, 0, 0 | 0 of 2 | 50% | 0.50 |" in text
    assert "| paper, layer | a dead mode | 0% | 0.200 |" in text
    assert "| balanced, batch, half | 0.000 | 100% | 0.000 |" in text
    assert "**The rule chooses balanced, batch, half** (worst regret 0.000, gpt 8 x 8; alone)" in text
    assert "the 15 runs of this page took 8" in text


def cells(losses: dict[str, tuple[float, ...]], in_use: int = 8) -> Cells:
    runs = [
        entry("made", Contender("balanced", gate), (8, 8), seed, loss, in_use)
        for gate, values in losses.items()
        for seed, loss in enumerate(values)
    ]
    return cells_of(runs, "made")


def test_the_rule_by_hand() -> None:
    found = cells({"batch": (1.0, 1.2, 1.1), "layer": (1.1, 1.2, 1.15), "unit rows": (1.5, 1.6, 1.7)})
    regret, where = worst_regret(found, Contender("balanced", "unit rows"))  # type: ignore[misc]
    assert (round(regret.mean, 12), round(regret.error, 12), where) == (0.5, 0.057735026919, "gpt 8 x 8")
    chosen = choose(found)
    assert chosen is not None
    assert chosen[0].gate == "layer"  # 0.05 ± 0.029 behind: a tie, and it reads no batch
    assert {who.gate for who in chosen[1]} == {"layer", "batch"}


def test_who_leaves_a_mode_dead_is_not_chosen() -> None:
    found = cells({"layer": (0.5, 0.5)}, in_use=0)
    assert choose(found) is None
    found[("gpt", (8, 8))].update(cells({"batch": (1.0, 1.0)})[("gpt", (8, 8))])
    chosen = choose(found)
    assert chosen is not None
    assert chosen[0].gate == "batch"
    assert [who.gate for who, _, _ in ranking(found)] == ["batch", "layer"]
