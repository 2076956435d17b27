"""The loop: it learns, goes on to the bit, stops with the last good checkpoint, and says what it did."""

import errno
import json
import math
from pathlib import Path

import pytest
import torch
from accelerate.tracking import GeneralTracker
from transformers import AutoModelForCausalLM

import recipes.checkpoints
import recipes.command
import recipes.finishing
import recipes.logbook
import recipes.train
from factorized_moe import MuMoEBlock
from factorized_moe.surgery import load
from recipes.checkpoints import BEST, LAST
from recipes.command import told
from recipes.gpt.language import GPTOptions, build_gpt, gpt
from recipes.gpt.tokens import Bytes
from recipes.options import parse
from recipes.placing import Place
from tests.recipes.small_runs import (
    assert_close,
    assert_equal,
    forget,
    gpt_options,
    killed_at,
    parameters,
    run_gpt,
    write_text,
)

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, and a run of it that was never stopped."""
    place = tmp_path_factory.mktemp("runs")
    write_text(place / "text")
    run_gpt(gpt_options(place, "whole", dropout=0.1))
    return place


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def without_speed(out: Path) -> list[dict[str, object]]:
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines(out)]


@pytest.mark.parametrize(
    ("where", "name", "call"),
    [
        (recipes.train, "clip_gradients", 1),
        (recipes.train, "clip_gradients", 7),
        (recipes.train, "evaluate", 2),
        (recipes.checkpoints, "write_state", 3),
        (recipes.finishing, "save_model", 1),
        (recipes.finishing, "write_report", 1),
    ],
)
def test_a_killed_run_ends_as_one_that_was_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: object, name: str, call: int
) -> None:
    options = gpt_options(folder, tmp_path / "run", dropout=0.1)
    with killed_at(monkeypatch, where, name, call):
        run_gpt(options)
    run_gpt(options)
    for file in (LAST, BEST):
        assert_equal(parameters(options.out, file), parameters(folder / "whole", file))
    assert without_speed(options.out) == without_speed(folder / "whole")
    assert (options.out / "sample.txt").read_text() == (folder / "whole" / "sample.txt").read_text()


def test_another_position_of_the_data_would_be_seen(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """The check above bites: a run that reads its data from the start again after a stop ends elsewhere."""
    options = gpt_options(folder, tmp_path / "run", dropout=0.1)
    with killed_at(monkeypatch, recipes.train, "clip_gradients", 7):
        run_gpt(options)
    real = recipes.train._batches
    monkeypatch.setattr(recipes.train, "_batches", lambda training, o, where, step: real(training, o, where, 0))
    run_gpt(options)
    found, whole = parameters(options.out), parameters(folder / "whole")
    assert not all(torch.equal(found[name], whole[name]) for name in whole)


def test_readers_in_processes_of_their_own_change_nothing(folder: Path, tmp_path: Path) -> None:
    options = gpt_options(folder, tmp_path / "run", dropout=0.1, workers=2)
    run_gpt(options)
    assert_equal(parameters(options.out), parameters(folder / "whole"))


def test_parts_of_a_step_add_up(folder: Path, tmp_path: Path) -> None:
    """With gates that look at one token: those that look at the batch see the parts."""
    ends = []
    for parts in (1, 4):
        options = gpt_options(folder, tmp_path / str(parts), accumulate=parts, gate_norm="layer")
        run_gpt(options)
        ends.append(parameters(options.out))
    assert_close(*ends)


def test_the_log_says_how_it_went(folder: Path) -> None:
    found = lines(folder / "whole")
    steps = [line for line in found if "loss" in line]
    assert [line["step"] for line in steps] == [3, 6, 9, 12]
    assert steps[-1]["loss"] < steps[0]["loss"]
    for line in steps:
        assert line["tokens_per_second"] > 0
        assert set(line["gradient_norms"]) == {"factors", "gates", "matrices", "rest"}
        assert all(0 < norm < math.inf for norm in line["gradient_norms"].values())
        assert [(mode["mode"], mode["experts"]) for mode in line["experts"]] == [(0, 3), (1, 2)] * 2
        assert all(0 <= mode["in_use"] <= mode["experts"] for mode in line["experts"])
        assert all(0 <= mode["entropy"] <= math.log2(mode["experts"]) + 1e-6 for mode in line["experts"])
    evaluated = [line for line in found if "held_out_loss" in line]
    assert [line["step"] for line in evaluated] == [5, 10, 12]
    assert evaluated[-1]["held_out_loss"] < evaluated[0]["held_out_loss"]


def test_the_model_that_is_left_is_the_one_that_was_trained(folder: Path) -> None:
    options = gpt_options(folder, "whole", dropout=0.1)
    model = load(build_gpt(gpt_options(folder, "whole", form="dense"), Bytes()), options.out / "model")
    trained = parameters(options.out)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, trained[f"model.{name}"])
    theirs = AutoModelForCausalLM.from_pretrained(options.out / "huggingface")
    x = torch.arange(8).unsqueeze(0)
    assert torch.equal(theirs.eval()(x).logits, model.eval()(x).logits)
    assert sum(isinstance(part, MuMoEBlock) for part in theirs.modules()) == 2
    result = json.loads((options.out / "results.json").read_text())
    assert result["held_out"]["loss"] == pytest.approx(lines(options.out)[-1]["held_out_loss"])
    assert "new line" in (options.out / "report.html").read_text()


def test_an_evaluation_counts_each_sample_once(folder: Path) -> None:
    """Twenty samples in batches of eight: what fills the last one up does not count."""
    forget()
    options = gpt_options(folder, "whole", dropout=0.1)
    recipe = gpt(options)
    model = recipe.build().eval()
    losses = [
        recipes.train.cross_entropy(model(x.unsqueeze(0)), y.unsqueeze(0)) for x, y in map(recipe.held_out, range(20))
    ]
    assert recipe.num_held_out == 20
    found = recipes.train.evaluate(model, recipe, options, Place(), recipes.train.Accelerator(cpu=True))
    assert found["loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert model.training


def test_both_forms_have_as_many_parameters(folder: Path) -> None:
    sizes = {}
    for form in ("dense", "cp", "tr"):
        model = build_gpt(gpt_options(folder, "x", form=form, width=64, experts=(16,)), Bytes())
        sizes[form] = sum(parameter.numel() for parameter in model.parameters())
    for form in ("cp", "tr"):
        assert 0.97 * sizes["dense"] < sizes[form] <= sizes["dense"]


def test_a_dense_run_leaves_its_model(folder: Path, tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    options = gpt_options(folder, tmp_path / "run", form="dense", steps=3)
    run_gpt(options)
    model = GPT2LMHeadModel.from_pretrained(options.out / "huggingface")
    assert torch.equal(
        model.transformer.h[0].mlp.c_fc.weight, parameters(options.out)["model.transformer.h.0.mlp.c_fc.weight"]
    )
    assert "experts" not in lines(options.out)[0]
    assert not (options.out / "report.html").exists()


def test_another_run_in_the_folder_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"of another run \(options steps: 12 there, 13 now\)"):
        run_gpt(gpt_options(folder, "whole", dropout=0.1, steps=13))
    with pytest.raises(ValueError, match="options form: 'cp' there, 'dense' now"):
        run_gpt(gpt_options(folder, "whole", dropout=0.1, form="dense"))


def test_a_damaged_checkpoint_is_named(folder: Path, tmp_path: Path) -> None:
    options = gpt_options(folder, tmp_path / "run", dropout=0.1)
    options.out.mkdir()
    (options.out / LAST).write_bytes((folder / "whole" / LAST).read_bytes()[:-100])
    with pytest.raises(ValueError, match="not readable as the state of a run"):
        run_gpt(options)


def test_a_gradient_that_is_not_finite_stops_the_run(folder: Path, tmp_path: Path, monkeypatch) -> None:
    options = gpt_options(folder, tmp_path / "run")
    forget()
    recipe, steps = gpt(options), 0
    real = recipes.train.cross_entropy

    def spoilt(output, labels, reduction="mean"):
        nonlocal steps
        steps += reduction == "mean"
        return real(output, labels, reduction) * (math.nan if steps == 7 else 1.0)

    monkeypatch.setattr(recipes.train, "cross_entropy", spoilt)
    with pytest.raises(FloatingPointError, match=r"not finite at step 7 of 12.*Try a learning rate below 0.005"):
        recipes.train.train(recipe, options)
    monkeypatch.undo()
    run_gpt(options)  # the checkpoint of step 4 was kept, and was good
    other = gpt_options(folder, tmp_path / "other")
    run_gpt(other)
    assert_equal(parameters(options.out), parameters(other.out))


def test_a_full_disk_is_said_and_the_checkpoint_kept(folder: Path, tmp_path: Path, monkeypatch) -> None:
    options = gpt_options(folder, tmp_path / "run", dropout=0.1)
    real, calls = recipes.checkpoints.write_state, []

    def full(path, tensors, values):
        calls.append(path)
        if len([path for path in calls if path.name == LAST]) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, tensors, values)

    monkeypatch.setattr(recipes.checkpoints, "write_state", full)
    with pytest.raises(OSError, match="No space left") as caught:
        run_gpt(options)
    assert "the disk is full" in told(caught.value, options)
    assert "last.safetensors is whole. Free some space" in told(caught.value, options)
    monkeypatch.undo()
    run_gpt(options)
    assert_equal(parameters(options.out), parameters(folder / "whole"))


def test_a_batch_that_cannot_be_divided_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--batch 8 is to be divided among 1 processes and 3 parts of each"):
        run_gpt(gpt_options(folder, tmp_path / "run", accumulate=3))


def test_a_tracker_gets_the_numbers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[tuple[int, dict[str, float]]] = []

    class Kept(GeneralTracker):
        name, requires_logging_directory, tracker = "kept", False, None

        def store_init_configuration(self, values: dict[str, object]) -> None:
            got.append((-1, values))

        def log(self, values: dict[str, float], step: int, **others: object) -> None:
            got.append((step, values))

    real = recipes.train.Accelerator
    monkeypatch.setattr(recipes.train, "Accelerator", lambda **given: real(**{**given, "log_with": [Kept()]}))
    run_gpt(gpt_options(folder, tmp_path / "run"))
    assert got[0][1]["depth"] == 2
    assert [step for step, _ in got[1:]] == [3, 5, 6, 9, 10, 12, 12]
    assert {"loss", "gradient_norms/gates", "in_use/transformer.h.1.mlp.c_fc.1"} <= got[1][1].keys()
    assert all(isinstance(value, float | int) for _, values in got[1:] for value in values.values())


def test_a_tracker_that_is_not_installed_is_told(folder: Path, tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match="no supported trackers"),
        pytest.raises(ModuleNotFoundError, match="--tracker wandb: it is not installed; pip install wandb"),
    ):
        run_gpt(gpt_options(folder, tmp_path / "run", tracker="wandb"))


def test_options_come_from_flags(capsys: pytest.CaptureFixture[str]) -> None:
    options = parse(GPTOptions, ["--experts", "4", "2", "--fully-shard", "--form", "tr"], "")
    assert (options.experts, options.fully_shard, options.form, options.features) == ((4, 2), True, "tr", 128)
    for wrong, message in (
        (["--steps", "0"], "--steps is 1 or more, got 0"),
        (["--warm-up", "2"], "share of the steps"),
    ):
        with pytest.raises(SystemExit):
            parse(GPTOptions, wrong, "")
        assert message in capsys.readouterr().err


def test_the_command_tells_errors(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forget()
    status = recipes.command.run(GPTOptions, gpt, "", ["--data", str(tmp_path), "--cpu"])
    assert status == 1
    assert "has no shards.json; make shards by python -m recipes.gpt.prepare" in capsys.readouterr().err
