"""Recordings labelled anew, filtered, joined and made of coefficients at hand; nothing is copied or read too early."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from factorized_moe import MuMoE
from factorized_moe.interpret import (
    LabelSet,
    Recording,
    count_labels,
    find_top_samples,
    measure_load,
    open_recording,
    record,
)
from factorized_moe.interpret.recording import given as limits
from factorized_moe.interpret.recording import views
from factorized_moe.interpret.recording.chunks import StoredChunk

SAMPLES = 30


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of seven samples, and means of three groups at a time."""
    monkeypatch.setattr(limits, "CHUNK_ELEMENTS", 7 * 5)
    monkeypatch.setattr(views, "MEAN_ELEMENTS", 3 * 5)


def matrix(dense: bool) -> Tensor:
    torch.manual_seed(0)
    found = torch.softmax(3 * torch.randn(SAMPLES, 5), dim=1)
    return found if dense else found * (found > 0.3)


def stored(coefficients: Tensor, folder: Path | None, ids: Tensor | None = None) -> Recording:
    """A recording in a folder, or of coefficients at hand."""
    texts = [f"w{number}" for number in range(len(coefficients))]
    labels = torch.arange(len(coefficients)) % 3
    if folder is None:
        return Recording.from_coefficients(
            coefficients, labels=labels, texts=texts, ids=ids, class_names=["x", "y", "z"]
        )

    class Given(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (coefficients[x[:, 0].long()],)

    layer = MuMoE(1, 1, [coefficients.shape[1]], rank=1, gate=Given())
    with record(layer, folder=folder, class_names=["x", "y", "z"]) as log:
        layer(torch.arange(float(len(coefficients)))[:, None])
        log.annotate(labels=labels, texts=texts, ids=ids)
    return open_recording(folder)


@pytest.fixture(params=["memory", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "run" if request.param == "folder" else None


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "sparse"])
def test_select_concatenate_and_select_again(place: Path | None, dense: bool) -> None:
    a = matrix(dense)
    recording = stored(a, place)
    chosen = torch.arange(SAMPLES) % 4 != 1
    some = recording.select(chosen)
    assert torch.equal(some.coefficients(), a[chosen])
    assert torch.equal(some.labels, recording.labels[chosen])
    assert some.class_names == ("x", "y", "z")
    assert some.texts == tuple(text for text, kept in zip(recording.texts, chosen.tolist(), strict=True) if kept)
    both = Recording.concatenate([some, recording, some.select(some.labels == 0)])
    expected = torch.cat([a[chosen], a, a[chosen][some.labels == 0]])
    assert torch.equal(both.coefficients(), expected)
    assert [part.start for part in both.chunks()] == sorted(part.start for part in both.chunks())
    assert both.num_samples == len(expected) == len(both.labels) == len(both.texts)
    assert both.complete
    last = both.select(torch.arange(len(expected)) % 2 == 0)
    assert torch.equal(last.coefficients(), expected[::2])
    torch.testing.assert_close(measure_load(last).means, expected[::2].double().mean(0))
    assert recording.select(torch.zeros(SAMPLES, dtype=torch.bool)).num_samples == 0


def test_what_is_on_a_disk_is_read_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = stored(matrix(True), tmp_path / "run", ids=torch.arange(SAMPLES) // 2)
    reads: list[int] = []
    plain = StoredChunk.modes
    monkeypatch.setattr(StoredChunk, "modes", lambda part, layer: (reads.append(part.start), plain(part, layer))[1])
    labelled = recording.with_labels(other=torch.zeros(SAMPLES, dtype=torch.int64))
    chosen = torch.arange(SAMPLES) >= 14
    some = Recording.concatenate([labelled, labelled]).select(torch.cat([chosen, ~chosen]))
    means = recording.mean_by_id()
    assert reads == []
    measure_load(some)
    assert reads == [14, 21, 28, 0, 7]
    reads.clear()
    measure_load(means)
    assert len(reads) <= 5 + len(list(means.chunks()))  # one part more for a chunk of means that straddles two


def test_coefficients_at_hand_are_not_copied() -> None:
    a, b = matrix(True).reshape(5, 6, 5), torch.rand(30, 2)
    recording = Recording.from_coefficients({"router": [a, b], "other": b})
    assert (recording.layers, recording.expert_dims("router")) == (("router", "other"), (5, 2))
    assert recording.coefficients("router", "product").shape == (30, 10)
    a[0, 0, 0] = 0.125
    assert recording.coefficients("router")[0, 0] == 0.125
    assert Recording.from_coefficients(torch.zeros(0, 3)).num_samples == 0


def test_several_label_sets() -> None:
    recording = stored(matrix(False), None)
    keys = ["C", "G", "a"] * 10
    several = recording.with_labels(key=keys, composer=torch.arange(SAMPLES) % 2)
    assert several.label_names == ("labels", "key", "composer")
    assert torch.equal(several.labels, recording.labels)
    assert several.class_names == ("x", "y", "z")
    counts = count_labels(several, labels="key")
    assert counts.class_names == ("C", "G", "a")
    assert torch.equal(counts.counts, count_labels(recording).counts)  # the same classes under other names
    pairs = several.label_set("key").crossed(several.label_set("composer"))
    crossed = count_labels(several.with_labels(pairs), 0.4)
    grid = crossed.counts.unflatten(1, (3, 2))
    assert crossed.class_names[:2] == ("C, 0", "C, 1")
    for name, group in several.groups("composer"):
        assert torch.equal(count_labels(group, 0.4, labels="key").counts, grid[:, :, int(name)])
    assert several.with_labels([0] * SAMPLES, ["all"]).class_names == ("all",)
    bare = Recording.from_coefficients(matrix(True)).with_labels(key=keys)
    assert bare.has("labels")
    assert bare.class_names == ("C", "G", "a")
    assert count_labels(bare).class_names == ("C", "G", "a")
    assert bare.select(bare.label_set("key").mask("G", "a")).num_samples == 20
    two = bare.with_labels(other=keys)
    assert not two.has("labels")
    with pytest.raises(ValueError, match="the recording has 2 label sets, name one of them: 'key', 'other'"):
        _ = two.labels
    with pytest.raises(ValueError, match="no label set 'mood'; it has 'key', 'other': give it by with_labels"):
        count_labels(two, labels="mood")
    with pytest.raises(ValueError, match="layer 'gone' was not recorded; the recording has 'model'"):
        bare.in_step_with("gone")
    joined = Recording.concatenate([bare.with_labels(key=["C"] * SAMPLES), bare.with_labels(key=["F"] * SAMPLES)])
    assert joined.label_set("key").class_names == ("C", "F")
    assert joined.label_set("key").labels.tolist() == [0] * SAMPLES + [1] * SAMPLES


@pytest.mark.parametrize("order", ["windows", "scattered"])
def test_means_over_samples_of_one_id(place: Path | None, order: str) -> None:
    torch.manual_seed(1)
    ids = torch.arange(SAMPLES) // 3 * 2 + 5 if order == "windows" else torch.randint(9, (SAMPLES,))
    a = matrix(False)
    recording = stored(a, place, ids).with_labels(key=["C", "G", "a"] * 10)
    means = recording.mean_by_id()
    known = list(dict.fromkeys(ids.tolist()))
    assert means.ids.tolist() == known
    expected = torch.stack([a[ids == number].double().mean(0) for number in known]).float()
    torch.testing.assert_close(means.coefficients(), expected)
    first = [ids.tolist().index(number) for number in known]
    assert torch.equal(means.labels, recording.labels[first])
    assert means.texts == tuple(recording.texts[place] for place in first)
    assert torch.equal(means.label_set("key").labels, recording.label_set("key").labels[first])
    torch.testing.assert_close(measure_load(means).means, expected.double().mean(0))
    assert find_top_samples(means, 1).ids[0, 0] == known[int(expected[:, 0].argmax())]


def test_refused() -> None:
    recording = stored(matrix(True), None)
    other = Recording.from_coefficients(torch.rand(4, 6))
    for call, error, message in [
        (lambda: recording.select([0, 1]), TypeError, "mask is bool, one entry for each sample, got torch.int64"),
        (lambda: recording.select([True]), ValueError, r"mask has shape \(1,\), expected \(30,\), one for each sample"),
        (lambda: recording.with_labels([1]), ValueError, "got 1 labels for 30 samples; give one for each"),
        (
            lambda: recording.with_labels(key=[0.5] * 30),
            TypeError,
            "key are ints, or a string for each sample, got tor",
        ),
        (lambda: recording.with_labels([-1] * 30), ValueError, "label -1 is negative; classes are numbered from 0"),
        (
            lambda: recording.with_labels([3] * 30, ["a"]),
            ValueError,
            "a sample has label 3, but there are 1 class names",
        ),
        (
            lambda: recording.with_labels(["b"] * 30, ["a"]),
            ValueError,
            "the label 'b', which is none of the class names",
        ),
        (lambda: Recording.concatenate([]), ValueError, "there is no recording to concatenate"),
        (lambda: Recording.concatenate([recording, other]), ValueError, "recording 1 has layers .* concatenate rec"),
        (lambda: Recording.from_coefficients({}), ValueError, "coefficients are of no layer"),
        (lambda: Recording.from_coefficients("x"), TypeError, "of layer 'model' are a tensor .*, got str"),
        (lambda: Recording.from_coefficients(torch.ones(3)), ValueError, r"have shape \(3,\), expected \(n, N\)"),
        (lambda: Recording.from_coefficients(torch.ones(3, 2).bfloat16()), TypeError, "bfloat16, expected float16, fl"),
        (
            lambda: Recording.from_coefficients([torch.ones(3, 2), torch.ones(4, 2)]),
            ValueError,
            "coefficients have different numbers of samples",
        ),
        (lambda: Recording.from_coefficients(torch.ones(3, 2), ids=[1]), ValueError, "got 1 ids for 3 samples"),
        (
            lambda: recording.label_set().mask("w"),
            ValueError,
            "there is no class 'w'; the label set has classes 'x', 'y'",
        ),
        (lambda: recording.label_set().crossed(LabelSet.of("a", [0])), ValueError, "label sets of 30 and 1 samples"),
        (
            lambda: LabelSet.concatenate([LabelSet.of("a", [0]), LabelSet.of("a", ["b"])]),
            ValueError,
            "some of the label sets have class names and some have none",
        ),
    ]:
        with pytest.raises(error, match=message):
            call()
