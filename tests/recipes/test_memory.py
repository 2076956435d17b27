"""What is said about memory beforehand is what real ranks hold, and what a real forward pass keeps."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.distributed.tensor import DTensor

import recipes.checkpoints
import recipes.train
from recipes import memory
from recipes.gpt.language import GPTOptions, build_gpt
from recipes.gpt.tokens import Bytes
from tests.recipes.small_runs import gpt_options, run_gpt, write_text
from tests.recipes.test_ranks import run_on_ranks

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("memory")
    write_text(place / "text")
    return place


def numbers(tensor: Any) -> int:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel()


def measured(options: GPTOptions) -> float:
    """Train, and count what this rank holds: parameters, gradients, and the optimiser's two averages."""
    found: dict[str, int] = {}
    clip, save = recipes.train.clip_gradients, recipes.checkpoints.Checkpoints.save

    def at_clipping(groups: list[dict[str, Any]], *others: Any) -> None:
        held = [p for group in groups for p in group["params"]]
        found["parameters"], found["gradients"] = sum(map(numbers, held)), sum(numbers(p.grad) for p in held)
        clip(groups, *others)

    def at_saving(self: Any, progress: Any) -> None:
        for name in ("exp_avg", "exp_avg_sq"):
            found[name] = sum(numbers(state[name]) for state in self.optimizer.state.values())
        save(self, progress)

    recipes.train.clip_gradients, recipes.checkpoints.Checkpoints.save = at_clipping, at_saving
    run_gpt(options)
    assert len(found) == memory.STATES
    assert len(set(found.values())) == 1
    return found["parameters"]


@pytest.mark.parametrize(
    ("ranks", "spread"),
    [
        (2, {}),
        (2, {"fully_shard": True}),
        (2, {"expert_ranks": 2, "label": "rank"}),
        (2, {"expert_ranks": 2, "label": "out"}),
        (4, {"expert_ranks": 2, "label": "rank"}),
    ],
)
def test_ranks_hold_what_was_said(folder: Path, ranks: int, spread: dict[str, Any]) -> None:
    given = {"expert_label" if name == "label" else name: value for name, value in spread.items()}
    options = gpt_options(folder, f"{ranks}-{'-'.join(map(str, spread.values()))}", width=64, steps=4, **given)
    held = [rank["loss"] for rank in run_on_ranks(options, ranks, run=measured)]
    model = build_gpt(options, Bytes(), "meta")
    assert max(held) == memory.parameters_of_a_rank(model, ranks, **spread)
    if spread:
        assert max(held) < memory.parameters_of_a_rank(model, 1)


@pytest.mark.parametrize("form", ["dense", "cp", "tr"])
def test_a_forward_pass_keeps_what_was_said(folder: Path, form: str) -> None:
    options = gpt_options(folder, "x", width=64, tokens=32, form=form, experts=(16,), gate_norm="layer")
    tokens = torch.zeros(1, 32, dtype=torch.long)
    said = memory.kept_for_backward(build_gpt(options, Bytes(), "meta"), tokens.to("meta"))
    with mock.patch.object(memory._Attention, "of", torch.nn.functional.scaled_dot_product_attention):
        assert said == memory.kept_for_backward(build_gpt(options, Bytes()), tokens)


def test_the_guide_has_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.main([]) == 0
    table = capsys.readouterr().out
    assert len(table.splitlines()) == 7
    assert table in (Path(memory.__file__).parents[1] / "docs" / "how-to" / "train-at-scale.md").read_text()


def test_the_table_names_its_sizes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SIZES", {"small": (1, 64)})
    assert memory.main(["--ranks", "2", "--tokens", "16", "--experts", "4"]) == 0
    first, dense, experts = capsys.readouterr().out.splitlines()
    assert "FSDP2" in first
    assert dense.split()[:2] == ["small", "dense"]
    assert experts.split()[:2] == ["small", "cp"]
