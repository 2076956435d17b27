"""The same loop in two processes: DDP, FSDP2, shared experts, and both, against one process with the same batches."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

import recipes.train
from factorized_moe.testing.processes import on_ranks
from recipes.checkpoints import BEST, LAST
from recipes.options import Options
from tests.recipes.small_runs import assert_close, assert_equal, gpt_options, parameters, run_gpt, write_text

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ranks")
    write_text(place / "text")
    run_gpt(gpt_options(place, "one"))
    return place


def run_on_ranks(options: Options, ranks: int = 2, run: Callable[[Any], float] = run_gpt) -> list[dict[str, Any]]:
    """Train on several ranks; of each, how its parameters lay when the first gradient was clipped, and the loss."""

    def work(rank: int) -> dict[str, Any]:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29511",
            "OMP_NUM_THREADS": "1",
        }
        seen: dict[str, Any] = {}
        real = recipes.train.gradient_norms

        def looked(groups):
            if not seen:
                held = [p for group in groups for p in group["params"]]
                local = [p.to_local() if isinstance(p, DTensor) else p for p in held]
                seen["sharded"] = {g["name"]: sum(isinstance(p, DTensor) for p in g["params"]) for g in groups}
                seen["share"] = sum(p.numel() for p in local) / sum(p.numel() for p in held)
            return real(groups)

        recipes.train.gradient_norms = looked
        seen["loss"] = run(options)
        return seen

    return on_ranks(ranks, work)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_two_processes_equal_one(folder: Path, norm: str) -> None:
    if norm == "layer":
        run_gpt(gpt_options(folder, "one-layer", gate_norm=norm))
    one = folder / ("one" if norm == "batch" else "one-layer")
    options = gpt_options(folder, f"two-{norm}", gate_norm=norm)
    found = run_on_ranks(options)
    assert [rank["sharded"] for rank in found] == [dict.fromkeys(("factors", "gates", "matrices", "rest"), 0)] * 2
    assert found[0]["loss"] == pytest.approx(found[1]["loss"])
    assert_close(parameters(options.out), parameters(one))
    assert_close(parameters(options.out, BEST), parameters(one, BEST))
    assert (options.out / "report.html").exists()
    assert len((options.out / "log.jsonl").read_text().splitlines()) == 7


def test_parameters_are_fully_sharded(folder: Path) -> None:
    options = gpt_options(folder, "fsdp", fully_shard=True)
    for rank in run_on_ranks(options):
        assert all(rank["sharded"][name] > 0 for name in ("factors", "gates", "matrices", "rest"))
        assert 0.45 < rank["share"] < 0.55
    assert_close(parameters(options.out), parameters(folder / "one"))


def test_experts_are_shared(folder: Path) -> None:
    options = gpt_options(folder, "experts", expert_ranks=2, expert_label="rank")
    for rank in run_on_ranks(options):
        assert rank["sharded"]["factors"] > 0
        assert rank["sharded"]["gates"] == rank["sharded"]["matrices"] == rank["sharded"]["rest"] == 0
        assert rank["share"] < 0.95
    assert_close(parameters(options.out), parameters(folder / "one"))


def test_experts_are_shared_and_all_fully_sharded(folder: Path) -> None:
    options = gpt_options(folder, "both", expert_ranks=2, expert_label="rank")
    for rank in run_on_ranks(options, 4):
        assert all(rank["sharded"][name] > 0 for name in ("factors", "gates", "matrices", "rest"))
    assert_close(parameters(options.out), parameters(folder / "one"))


def test_a_run_goes_on_with_another_number_of_processes(folder: Path) -> None:
    options = gpt_options(folder, "grown", checkpoint_every=6)
    whole = recipes.train.clip_gradients
    calls = 0

    def stopped(*arguments):
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return whole(*arguments)

    recipes.train.clip_gradients = stopped
    try:
        with pytest.raises(KeyboardInterrupt):
            run_gpt(options)
    finally:
        recipes.train.clip_gradients = whole
    run_on_ranks(replace(options, fully_shard=True))
    assert_close(parameters(options.out), parameters(folder / "one"))


def test_two_processes_go_on_to_the_bit(folder: Path) -> None:
    """Each with its own generator, which dropout reads."""
    whole, options = (gpt_options(folder, name, dropout=0.2) for name in ("whole-two", "stopped-two"))
    run_on_ranks(whole)
    with pytest.raises(AssertionError, match="KeyboardInterrupt"):
        run_on_ranks(options, run=stopped_early)
    assert (options.out / LAST).exists()
    assert not (options.out / "results.json").exists()
    run_on_ranks(options)
    assert_equal(parameters(options.out), parameters(whole.out))


def stopped_early(options: Options) -> float:
    real, calls = recipes.train.clip_gradients, []

    def clip(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        real(*arguments)

    recipes.train.clip_gradients = clip
    return run_gpt(options)


def test_processes_that_cannot_be_divided_are_refused(folder: Path) -> None:
    with pytest.raises(AssertionError, match="--expert-ranks 3 does not divide the 2 processes"):
        run_on_ranks(gpt_options(folder, "three", expert_ranks=3))
    assert torch.distributed.is_available()
