"""Distilling a GPT's last MLPs: in two processes as in one, and on from a stop to the bit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch import Tensor

import factorized_moe.surgery.distillation.distilling as distilling
from factorized_moe.surgery.distillation.training_state import read_state
from recipes.distil import STATE, DistilOptions, distil, main
from tests.recipes.small_runs import forget, gpt_options, killed_at, run_gpt, write_text
from tests.recipes.test_ranks import run_on_ranks

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("distil")
    write_text(place / "text")
    run_gpt(gpt_options(place, "dense", form="dense", width=32))
    return place


def options_of(folder: Path, out: Path) -> DistilOptions:
    return DistilOptions(
        model=str(folder / "dense" / "huggingface"),
        data=folder / "text",
        out=out,
        steps=60,
        batch=8,
        tokens=8,
        experts=(4,),
        held_out=20,
        checkpoint_every=6,
        learning_rate=2e-3,
        gate_norm="layer",
        cpu=True,
        quiet=True,
    )


def run(options: DistilOptions) -> float:
    forget()
    found: dict[str, Any] = distil(options, PartialState(cpu=True))
    (values,) = found["mlps"].values()
    return values["after"] / values["before"]


def replacements(out: Path) -> dict[str, Tensor]:
    return {name: value for name, value in read_state(out / STATE)[0].items() if name.startswith("replacements.")}


def test_two_processes_equal_one_that_accumulates(folder: Path, tmp_path: Path) -> None:
    one, two = options_of(folder, tmp_path / "one"), options_of(folder, tmp_path / "two")
    assert run(dataclasses.replace(one, accumulate=2)) < 0.9
    run_on_ranks(two, run=run)
    found, expected = replacements(two.out), replacements(one.out)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-5)
    assert (two.out / "model" / "model.safetensors").exists()
    assert set(json.loads((two.out / "results.json").read_text())["loss"]) == {"original", "distilled"}


def test_a_killed_run_goes_on_to_the_bit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(options_of(folder, tmp_path / "whole"))
    options = options_of(folder, tmp_path / "killed")
    with killed_at(monkeypatch, distilling, "write_state", 2):
        run(options)
    run(options)
    found, expected = replacements(options.out), replacements(tmp_path / "whole")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_what_does_not_fit_is_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data", str(folder / "text"), "--model", str(folder / "dense" / "huggingface"), "--out", str(tmp_path)]
    forget()
    assert main([*given, "--form", "dense"]) == 1
    assert "has no experts to distil into; name a decomposition" in capsys.readouterr().err
    description = folder / "text" / "shards.json"
    content = description.read_text()
    description.write_text(content.replace('"vocabulary": 257', '"vocabulary": 300'))
    assert main(given) == 1
    description.write_text(content)
    assert "make shards with its tokenizer" in capsys.readouterr().err
