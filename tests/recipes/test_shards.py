"""Shards of tokens: what is written is read, every token once an epoch, damage named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.gpt.prepare import main, prepare
from recipes.gpt.shards import Shards, documents_of, read_description, write_shards
from recipes.gpt.tokens import Bytes, Pairs, read_tokenizer, train_pairs

pytestmark = pytest.mark.thorough

TEXTS = [f"document {k}: " + "abc " * (k % 7 + 3) for k in range(60)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", TEXTS, Bytes(), "made up", size=500)
    return tmp_path / "shards"


def read(folder: Path, split: str) -> list[int]:
    files = [entry["file"] for entry in read_description(folder)["shards"][split]]
    return np.concatenate([np.fromfile(folder / file, dtype="<u2") for file in files]).tolist()


def test_all_documents_are_there_in_order(folder: Path) -> None:
    held_out = TEXTS[10::20]
    training = [text for text in TEXTS if text not in held_out]
    for split, texts in (("train", training), ("held_out", held_out)):
        assert read(folder, split) == [n for text in texts for n in (*text.encode(), 256)]
    sizes = [entry["tokens"] for entry in read_description(folder)["shards"]["train"]]
    assert len(sizes) > 2
    assert set(sizes[:-1]) == {500}


def test_an_epoch_has_every_block_once(folder: Path) -> None:
    shards = Shards(folder, "train", 10, seed=0)
    for epoch in range(2):
        starts = [tuple(shards.training(epoch * len(shards) + k)[0].tolist()) for k in range(len(shards))]
        everything = read(folder, "train")
        blocks = {tuple(everything[k : k + 10]) for k in range(len(everything))}
        assert set(starts) <= blocks
    orders = [[shards.training(e * len(shards) + k)[0].tolist() for k in range(8)] for e in (0, 1)]
    assert orders[0] != orders[1]
    x, y = shards.training(3)
    assert torch.equal(x[1:], y[:-1])
    assert torch.equal(Shards(folder, "train", 10, seed=0).training(3)[1], y)
    assert not torch.equal(Shards(folder, "train", 10, seed=1).training(3)[1], y)


def test_samples_stay_within_a_shard(folder: Path) -> None:
    shards = Shards(folder, "train", 16, seed=0)
    for number in range(3 * len(shards)):
        x, y = shards.training(number)
        assert (x.shape, y.shape) == ((16,), (16,))


def test_damage_is_named(folder: Path) -> None:
    file = folder / "train-00000.bin"
    content = file.read_bytes()
    file.write_bytes(content[:-2])
    with pytest.raises(ValueError, match=r"train-00000.bin is damaged: 998 bytes, 1,000 bytes expected"):
        Shards(folder, "train", 10, 0)
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    shards = Shards(folder, "train", 10, 0)
    with pytest.raises(ValueError, match=r"train-00000.bin is damaged: its content is not what was written"):
        [shards.training(number) for number in range(len(shards))]
    file.unlink()
    with pytest.raises(ValueError, match="is damaged: missing"):
        Shards(folder, "train", 10, 0)


def test_a_description_of_too_small_a_vocabulary_is_refused(folder: Path) -> None:
    file = folder / "shards.json"
    file.write_text(file.read_text().replace('"vocabulary": 257', '"vocabulary": 100'))
    with pytest.raises(ValueError, match="holds token 256, but the vocabulary has 100"):
        Shards(folder, "train", 10, 0).training(0)
    file.write_text("{}")
    with pytest.raises(ValueError, match="does not describe shards of this version"):
        Shards(folder, "train", 10, 0)


def test_too_little_text_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no shard of train has 2000 tokens"):
        Shards(folder, "train", 1000, 0)
    with pytest.raises(ValueError, match="too few documents: none is held_out; 20 or more"):
        write_shards(tmp_path / "few", TEXTS[:5], Bytes(), "made up")


def test_a_trained_tokenizer_lies_beside_its_shards(tmp_path: Path) -> None:
    tokenizer = train_pairs(TEXTS, 300)
    write_shards(tmp_path, TEXTS, tokenizer, "made up")
    found = read_tokenizer(tmp_path)
    assert isinstance(found, Pairs)
    assert found.vocabulary == read_description(tmp_path)["vocabulary"] <= 300
    assert found.decode(found.encode("document é 1")) == "document é 1"
    assert len(found.encode(TEXTS[0])) < len(TEXTS[0].encode())
    assert read(tmp_path, "train").count(found.end) == 57


def test_a_data_set_of_hugging_face_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "set")
    assert list(documents_of(str(tmp_path / "set"), "", "text")) == TEXTS
    both = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"words": TEXTS})})
    both.save_to_disk(tmp_path / "sets")
    capsys.readouterr()
    assert main(["--text", str(tmp_path / "sets"), "--column", "words", "--out", str(tmp_path / "out")]) == 0
    assert "train: 2," in capsys.readouterr().out
    assert main(["--text", str(tmp_path / "sets"), "--out", str(tmp_path / "other")]) == 1
    assert "has no column 'text' but ['words']; name one by --column" in capsys.readouterr().err


def test_a_folder_of_files(tmp_path: Path) -> None:
    for k, text in enumerate(TEXTS):
        (tmp_path / f"{k:02}.txt").write_text(text)
    assert list(documents_of(str(tmp_path), "**/*.txt", "")) == TEXTS
    prepare(str(tmp_path), tmp_path / "out", tokenizer=None)
    assert json.loads((tmp_path / "out" / "shards.json").read_text())["source"] == tmp_path.name
    with pytest.raises(ValueError, match=r"no file '\*.md'"):
        list(documents_of(str(tmp_path), "*.md", ""))
    with pytest.raises(ValueError, match=r"has no tokenizer.json"):
        prepare(str(tmp_path), tmp_path / "out", tokenizer=tmp_path)
