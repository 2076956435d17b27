"""The study of experts on a trained backbone, on tiny models with random weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model

from studies.common.command import DOCS
from studies.fine_tuned import page, pictures, run
from studies.fine_tuned.backbone import Features, Sizes, embedded
from studies.fine_tuned.texts import LastLayers, prepare
from studies.real_models.sentences import mean_of_tokens

pytestmark = pytest.mark.thorough

SIZES = Sizes(classes=3, train=16, test=8, tokens=8, layers=1, epochs=4, batch_size=8)


class Letters:
    """A tokenizer of letters, with padding."""

    def __call__(self, texts: Sequence[str], **options: object) -> dict[str, Tensor]:
        length = max(map(len, texts))
        ids = torch.tensor([[ord(letter) - 90 for letter in text.ljust(length, "[")] for text in texts])
        return {"input_ids": ids, "attention_mask": (ids != 1).long()}


def model() -> BertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 40}
    return BertModel(BertConfig(**sizes, num_attention_heads=2)).eval()


TEXTS = [[letter * 2 + "xyz"[k % 3] * (1 + k % 4) for k in range(24)] for letter in "abc"]


@pytest.fixture(scope="module")
def data() -> Features:
    return prepare(model(), Letters(), TEXTS, SIZES)


def test_the_trained_layers_give_what_the_whole_encoder_gives(data: Features) -> None:
    texts = ["aax", "aayyyy"]
    batch = Letters()(texts)
    whole = model()
    exact = mean_of_tokens(whole, batch)
    below = whole(**batch, output_hidden_states=True).hidden_states[1]
    found = LastLayers(whole, 1).eval()(below, batch["attention_mask"])
    assert torch.allclose(torch.nn.functional.normalize(found, dim=-1), exact, atol=1e-5)


def test_texts_are_split_and_scaled(data: Features) -> None:
    assert data.train.labels.bincount().tolist() == [16] * 3
    assert data.test.labels.bincount().tolist() == [8] * 3
    rows = data.scaled(embedded(data.model, data.train))
    assert torch.allclose(rows.mean(0), torch.zeros(32), atol=1e-4)
    assert torch.allclose(rows.std(0), torch.ones(32), atol=1e-3)


def test_an_epoch_has_every_text_once_and_batches_of_like_lengths(data: Features) -> None:
    seen = list(data.train.epoch(8, torch.Generator().manual_seed(0)))
    assert sorted(k for batch in seen for k in batch) == list(range(48))
    padded, mask = data.train.batch([0, 1, 3])
    assert padded.shape[:2] == mask.shape
    assert mask.sum(1).tolist() == [len(data.train.hidden[k]) for k in (0, 1, 3)]


@pytest.mark.parametrize("experts", [4, 0])
@pytest.mark.parametrize("backbone", page.BACKBONES)
def test_runs_learn_and_only_the_trained_backbone_moves(data: Features, backbone: str, experts: int) -> None:
    found = run.measure_run(data, SIZES, {"backbone": backbone, "experts": experts, "seed": 0}, rank=8)
    assert found["train accuracy"] > 0.6  # chance is a third
    assert (found["moved"] > 1e-3) == (backbone == "trained")
    assert ("measures" in found) == (experts > 0)
    assert all(parameter.grad is None for parameter in data.model.parameters())


def test_gradients_are_finite_where_a_feature_hardly_varies() -> None:
    given = model()
    given.encoder.layer[-1].output.LayerNorm.weight.data[3] = 0.0  # a constant feature
    data = prepare(given, Letters(), TEXTS, SIZES)
    found = run.measure_run(data, SIZES, {"backbone": "trained", "experts": 0, "seed": 0})
    assert found["train accuracy"] > 0.5  # chance is a third
    assert found["moved"] > 1e-3


# -- the page


def entry(backbone: str, experts: int, seed: int, value: float) -> Any:
    result = {
        "test accuracy": value,
        "train accuracy": 0.9,
        "moved": 0.3 if backbone == "trained" else 0.0,
        "with effect": experts,
        "used": 2.0,
        "machine": {"cores": "2"},
    }
    if experts:
        names = (*page.MEASURES, "mean_dead_one")
        result["measures"] = {name: [value, 0.5, 0.01] for name in names}
    settings = {"backbone": backbone, "experts": experts, "seed": seed}
    return {"settings": settings, "result": result, "seconds": 60.0}


def entries(frozen: tuple[float, float], trained: tuple[float, float]) -> list[Any]:
    return [
        entry(backbone, experts, seed, value + 0.01 * seed)
        for backbone, values in (("frozen", frozen), ("trained", trained))
        for experts, value in ((16, values[0]), (256, values[1]), (0, 0.7))
        for seed in (0, 1)
    ]


def part(found: Sequence[Any]) -> page.Part:
    return page.Part("Texts on MiniLM", "fine-tuned.jsonl", found, SIZES, "texts", ("Glosses.",))


def page_of(found: Sequence[Any]) -> str:
    return page.page([part(found), part([])], "python -m studies fine_tuned", run.TRAINING)


def test_verdicts_follow_from_the_figures() -> None:
    text = page_of(entries((0.9, 0.4), (0.8, 0.3)))
    assert "experts are** by polysemanticity further beyond chance with 16, 256. By concentration less far with" in text
    assert (
        "polysemanticity in 2 of 4 frozen, 2 of 4 trained; concentration in 2 of 4 frozen, 2 of 4 trained; mutual"
        in text
    )
    assert "| polysemanticity | 16 | -0.1000 | +0.0000 | +0.1000 ± 0.0000 | 2 | further beyond chance |" in text
    assert "| concentration | 256 | -0.1000 | +0.0000 | -0.1000 ± 0.0000 | 2 | less far |" in text
    assert "*Test accuracy less a linear head's*, frozen backbone: 16 experts +0.2000 ± 0.0000 (n 2)" in text
    assert "*Test accuracy, trained less frozen*: 16 experts -0.1000 ± 0.0000 (n 2); 256 experts" in text
    assert "**Not all was run**: 12 of 24 planned runs are missing" in text


def test_a_difference_within_its_interval_is_not_told_apart() -> None:
    """Of three seeds the interval reaches 4.3 errors, not two."""
    frozen = [entry("frozen", 16, seed, 0.5) for seed in range(3)]
    trained = [entry("trained", 16, seed, value) for seed, value in enumerate((0.51, 0.53, 0.55))]
    text = page_of([*frozen, *trained])
    assert "| concentration | 16 | +0.0300 | +0.0000 | +0.0300 ± 0.0115 | 3 | not told apart |" in text
    assert "by polysemanticity not told apart with 16. By concentration not told apart with 16." in text
    assert "(one seed)" in page_of([frozen[0], trained[0]])
    assert "| concentration | 16 | +0.0100 | +0.0000 | +0.0100 | 1 | not told apart |" in page_of(
        [frozen[0], trained[0]]
    )
    assert "experts are**" not in page_of([frozen[0], trained[0]])


def test_page_has_every_run(tmp_path: Path) -> None:
    parts = [part(entries((0.9, 0.4), (0.8, 0.3))), part(entries((0.9, 0.4), (0.8, 0.3)))]
    page.write(parts, tmp_path, "python -m studies fine_tuned", run.TRAINING)
    text = (tmp_path / "fine-tuned.md").read_text(encoding="utf-8")
    assert text.count("| trained | 256 | 2 | 0.305 [0.300, 0.310] |") == 2
    assert text.count("| frozen | linear head | 2 | 0.705 [0.700, 0.710] |") == 2
    for table in text.split("\n\n"):
        if table.startswith("|"):
            rows = [line for line in table.splitlines() if line.startswith("|")]
            assert len({line.count("|") for line in rows}) == 1
    assert (tmp_path / page.FIGURE).read_text(encoding="utf-8").startswith("<?xml")


def test_published_page_is_that_of_the_published_runs(tmp_path: Path) -> None:
    for problem in run.PROBLEMS.values():
        if (DOCS / problem.file).exists():
            shutil.copy(DOCS / problem.file, tmp_path)
    run.main(["--page", "--out", str(tmp_path)])
    assert (tmp_path / "fine-tuned.md").read_bytes() == (DOCS / "fine-tuned.md").read_bytes()


def test_the_last_layers_give_the_class_token_of_the_whole_transformer() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    whole = Dinov2Model(Dinov2Config(**sizes)).eval()
    images, labels = torch.randn(6, 3, 28, 28), torch.arange(6) % 2
    data = pictures.prepare(whole, (images, labels), (images[:2], labels[:2]), Sizes(classes=2, layers=2))
    with torch.no_grad():
        exact = whole(pixel_values=images).pooler_output
    assert torch.allclose(embedded(data.model, data.train), exact, atol=2e-3)  # kept in half precision
    assert torch.equal(data.train.labels, labels)
    settings = {"backbone": "trained", "experts": 4, "seed": 0}
    found = run.measure_run(data, Sizes(classes=2, epochs=20, batch_size=6), settings, rank=8)
    assert found["moved"] > 1e-3
    assert found["train accuracy"] > 0.8
