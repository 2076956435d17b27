"""The study of gates for many experts in seconds; product keys held to a dense sum over all experts."""

from math import prod
from pathlib import Path

import pytest
import torch

from studies.common.images import FASHION_MNIST
from studies.many_experts.contenders import DENSE, EXPERT_DIMS, PRODUCT_KEYS, GateForm, cells
from studies.many_experts.page import page
from studies.many_experts.product_keys import ProductKeys
from studies.many_experts.run import main

pytestmark = pytest.mark.thorough


def test_quick_form_runs_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = ["gpt", "mixer"] if FASHION_MNIST.exists() else ["gpt"]
    main(["--quick", "--out", str(tmp_path), "--only", *only])
    contenders = {contender for contender, _ in cells()}  # each chooses a learning rate, and each cell has one seed
    assert capsys.readouterr().out.count(" s)") == (len(contenders) + len(cells())) * len(only)
    main(["--quick", "--out", str(tmp_path), "--only", *only])
    assert capsys.readouterr().out == ""
    assert "# A gate for many experts" in (tmp_path / "many-experts.md").read_text()


@pytest.mark.parametrize(("contender", "dims"), cells())
def test_forms_have_as_many_parameters_as_the_dense_one(contender: str, dims: tuple[int, ...]) -> None:
    dense, mine = (
        sum(p.numel() for p in form.mlp(64, 256).parameters())
        for form in (GateForm.of(DENSE, ()), GateForm.of(contender, dims))
    )
    assert (0.88 if contender == PRODUCT_KEYS else 0.96) * dense <= mine <= dense


def test_product_keys_sum_over_the_chosen_experts() -> None:
    torch.manual_seed(0)
    layer = ProductKeys(6, 5, heads=2, query=4, chosen=3).double().eval()
    x = torch.randn(7, 6, dtype=torch.float64)
    query = layer.norm(layer.queries(x)).view(7, 2, 2, 2)
    expected = torch.zeros(7, 6, dtype=torch.float64)
    for sample in range(7):
        for head in range(2):
            halves = [query[sample, head, half] @ layer.keys[half].T for half in (0, 1)]
            scores = (halves[0][:, None] + halves[1]).flatten()  # all 25 experts
            best = scores.topk(3)
            for weight, expert in zip(best.values.softmax(-1), best.indices, strict=True):
                hidden = torch.nn.functional.gelu(layer.inward[expert] @ x[sample])
                expected[sample] += weight * hidden * layer.outward[expert]
    torch.testing.assert_close(layer(x), expected)


def entry(name: str, dims: list[int], loss: float, seed: int = 0) -> dict[str, object]:
    settings = {"problem": "gpt", "contender": name, "expert_dims": dims, "seed": seed, "learning_rate": 1e-3}
    return {
        "settings": settings,
        "result": {"loss": loss, "accuracy": 0.5, "mlp_parameters": 9, "in_use": [[3, 4]]},
    }


def test_more_modes_are_compared_with_two_of_as_many_experts() -> None:
    runs = [
        entry("full gate, entmax", [32, 32], 1.0),
        entry("full gate, entmax", [64, 64], 3.0),
        entry("four modes, entmax", [8, 8, 8, 8], 3.5),
    ]
    verdict = "**four modes, entmax**, loss less that of **full gate, entmax**: GPT 4,096 experts +0.500"
    assert verdict in page(runs)


@pytest.mark.parametrize(("experts", "arranged"), EXPERT_DIMS.items())
def test_experts_are_arranged_in_as_many_modes_as_said(experts: int, arranged: dict[int, tuple[int, ...]]) -> None:
    assert {(modes, len(dims), prod(dims)) for modes, dims in arranged.items()} == {
        (modes, modes, experts) for modes in arranged
    }


def test_a_verdict_comes_from_the_runs() -> None:
    def runs(full: float, low: float, spread: float = 0.0) -> list[dict[str, object]]:
        pairs = (("full gate, entmax", full, 0.0), ("rank 16, entmax", low, spread))
        return [
            entry(name, [32, 32], loss + 0.01 * seed + sign * apart, seed)
            for name, loss, apart in pairs
            for seed, sign in ((0, -1), (1, 1))
        ]

    assert "**rank 16, entmax**, loss less that of **full gate, entmax**: GPT 1,024 experts -0.500" in page(
        runs(2, 1.5)
    )
    assert "(better)" in page(runs(2, 1.5))
    assert "(worse)" in page(runs(2, 2.5))
    assert "75%" in page(runs(2, 2.5))
    assert "(not told apart)" in page(runs(2, 2.5, spread=0.1))  # 5 standard errors, where two seeds need 12.7
