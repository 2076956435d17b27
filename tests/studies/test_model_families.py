"""The families that are tried, a small part of them anew, and the page that the whole made."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers

from studies.model_families import trial
from studies.model_families.families import DENSE, SPARSE, Family
from studies.model_families.report import page
from studies.model_families.trial import Trial, attempt

PAGE = Path(__file__).parents[2] / "docs" / "studies" / "model-families.md"
STORED = json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))
DENSE_HERE = (
    *("GPTNeoXForCausalLM", "OPTForCausalLM", "GPTJForCausalLM", "BloomForCausalLM", "FalconForCausalLM"),
    *("MptForCausalLM", "Gemma3nForCausalLM", "Phi3ForCausalLM", "AlbertModel", "DebertaV2Model", "ModernBertModel"),
    *("XLMModel", "BartForConditionalGeneration", "SiglipTextModel", "DINOv3ViTModel", "ConvNextModel"),
    *("DINOv3ConvNextModel", "Wav2Vec2Model", "WhisperForConditionalGeneration", "EsmModel"),
    "T5ForConditionalGeneration (T5 1.1)",
)
SPARSE_HERE = ["GptOssForCausalLM", "Llama4ForCausalLM", "DeepseekV3ForCausalLM", "NemotronHForCausalLM"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, of tiny settings
        yield
    transformers.logging.set_verbosity(level)
    transformers.logging.enable_progress_bar()


def stored(kind: str) -> dict[str, Trial]:
    return {one["name"]: Trial(**one) for one in STORED[kind]}


def check(family: Family, sparse: bool) -> None:
    """The family does what the page says of it."""
    found, said = attempt(family, sparse), stored("sparse" if sparse else "dense")[family.name]
    assert not found.failed
    assert (found.changed, found.generates, found.refused) == (said.changed, said.generates, said.refused)


@pytest.mark.parametrize("name", DENSE_HERE)
def test_dense_families(name: str) -> None:
    check(next(family for family in DENSE if family.name == name), sparse=False)


@pytest.mark.parametrize("name", SPARSE_HERE)
def test_sparse_families(name: str) -> None:
    check(next(family for family in SPARSE if family.name == name), sparse=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", DENSE, ids=lambda family: family.name)
def test_every_dense_family(family: Family) -> None:
    check(family, sparse=False)


@pytest.mark.slow
@pytest.mark.parametrize("family", SPARSE, ids=lambda family: family.name)
def test_every_sparse_family(family: Family) -> None:
    check(family, sparse=True)


def test_the_page_is_made_from_the_stored_trials() -> None:
    dense, sparse = list(stored("dense").values()), list(stored("sparse").values())
    assert page(dense, sparse, STORED["versions"]) == PAGE.read_text(encoding="utf-8")
    assert [one.name for one in dense] == [family.name for family in DENSE]
    assert [one.name for one in sparse] == [family.name for family in SPARSE]
    assert not any(one.failed for one in (*dense, *sparse))
    assert sum(not one.refused for one in dense) >= 45
    assert sum(not one.refused for one in sparse) >= 40


def test_a_fault_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    family = next(family for family in DENSE if family.model == "LlamaForCausalLM")
    with monkeypatch.context() as patch:
        patch.setattr(
            trial, "replace", lambda model, target, config: model.model.layers[0].mlp.up_proj.weight.data.mul_(2)
        )
        assert attempt(family, sparse=False).failed == "it computes something else"
    with monkeypatch.context() as patch:
        patch.setattr(trial, "load", lambda model, folder: model)
        assert attempt(family, sparse=False).failed == "load gives another model"
    with monkeypatch.context() as patch:
        patch.setattr("factorized_moe.surgery.hugging_face.attach", lambda model: None)
        assert attempt(family, sparse=False).failed.startswith("from_pretrained ")
    failed = page([Trial("broken", "text", 1, failed="it is broken")], [], "none")
    assert "- `broken`: it is broken" in failed
    assert "**0 of 1 dense families**" in failed
