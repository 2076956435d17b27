"""Predictions whose label is the ignore index are in no result of `counterfactuals`: padding of language models."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

from factorized_moe.interpret import Ablate, Counterfactuals, counterfactuals, intervene
from factorized_moe.interpret.interventions import last_layer
from tests.interpret.interventions.test_counterfactuals import CLASSES, KINDS, experts_layer, make

IGNORED = -100


def padded(samples: int, positions: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Inputs and labels of which about a third are padding, with some samples of nothing else."""
    inputs, labels = torch.randn(samples, *positions, 4), torch.randint(CLASSES, (samples, *positions))
    labels[torch.rand(labels.shape) < 0.3] = IGNORED
    labels[3] = IGNORED
    return inputs.double(), labels


class Attending(nn.Module):
    """A model whose positions depend on each other, behind its layer of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.rest = experts_layer(8), nn.Linear(8, CLASSES).double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.rest(torch.tanh(y) + y.mean(dim=1, keepdim=True))


@pytest.mark.parametrize("positions", [(), (3,)], ids=["rows", "tokens"])
@pytest.mark.parametrize("kind", [*KINDS, "attending"])
def test_equal_to_separate_runs_without_the_ignored(
    kind: str, positions: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_layer, "MOST_ELEMENTS", 200)  # several times what is gathered
    monkeypatch.setattr(last_layer, "GROUP_ELEMENTS", 100)  # several groups of experts
    if kind == "attending":
        torch.manual_seed(0)
        model, name, sizes, options = Attending().double(), "layer", (6,), {}
        inputs, labels = padded(40, (3,))
        inputs = torch.cat([inputs, inputs], dim=-1)
    else:
        model, name, sizes, options = make(kind, torch.float64)
        inputs, labels = padded(40, positions)
    call = options.get("forward", model.eval())
    there = labels.flatten() != IGNORED
    true = labels.flatten()[there]
    before = call(inputs).flatten(0, -2)[there]
    for mode, size in enumerate(sizes):
        found = counterfactuals(model, zip(inputs.split(16), labels.split(16), strict=True), name, mode, **options)
        assert found.num_predictions == len(true) < labels.numel()
        assert found.class_sizes.tolist() == true.bincount(minlength=CLASSES).tolist()
        assert found.correct.tolist() == true[before.argmax(-1) == true].bincount(minlength=CLASSES).tolist()
        assert found.remade.max() <= len(true)
        for expert in range(size):
            with intervene(model, Ablate(expert, layer=name, mode=mode)):
                after = call(inputs).flatten(0, -2)[there]
            right = true[after.argmax(-1) == true].bincount(minlength=CLASSES)
            assert found.changed[expert] == (before.argmax(-1) != after.argmax(-1)).sum()
            assert found.correct_without[expert].tolist() == right.tolist()
            torch.testing.assert_close(found.mean_effect[expert], (before - after).mean(dim=0), rtol=0, atol=1e-6)
        assert found.changed.sum() > 0


def same(one: Counterfactuals, other: Counterfactuals) -> bool:
    return all(torch.equal(*(torch.as_tensor(getattr(f, p.name)) for f in (one, other))) for p in fields(one))


@pytest.mark.parametrize("kind", ["sparsemax", "after"])
def test_the_same_as_rows_dropped_by_hand(kind: str) -> None:
    model, name, _, options = make(kind, torch.float64)
    inputs, labels = padded(40, (3,))
    there = labels != IGNORED
    by_hand = counterfactuals(model.eval(), [(inputs[there], labels[there])], name, **options)
    found = counterfactuals(model, [(inputs, labels)], name, **options)
    assert found.remade.tolist() == by_hand.remade.tolist()
    torch.testing.assert_close(found.mean_effect, by_hand.mean_effect, rtol=0, atol=1e-12)
    assert torch.equal(found.polysemanticity().lost, by_hand.polysemanticity().lost)
    some = counterfactuals(model, [(inputs, labels)], name, experts=[4, 1], **options)
    assert some.changed.tolist() == by_hand.changed[[4, 1]].tolist()


@pytest.mark.parametrize("kind", ["sparsemax", "inner"])
@pytest.mark.parametrize("ignored", [2, -1, 250])
def test_any_label_may_be_the_ignored_one(kind: str, ignored: int) -> None:
    model, name, _, _ = make(kind, torch.float64)
    inputs, labels = padded(40, (3,))
    usual = counterfactuals(model.eval(), [(inputs, labels)], name)
    other = labels.where(labels != 2, IGNORED) if ignored == 2 else labels
    given = other.where(other != IGNORED, ignored)
    found = counterfactuals(model, [(inputs, given)], name, ignore_index=ignored)
    assert same(found, usual if ignored != 2 else counterfactuals(model, [(inputs, other)], name))


def test_bytes_have_no_negative_label() -> None:
    """-100 as a byte is 156."""
    model = make("sparsemax", torch.float64)[0].eval()
    inputs, labels = torch.randn(4, 4).double(), torch.tensor([0, 1, 156, 2], dtype=torch.uint8)
    with pytest.raises(ValueError, match="labels are from 0 to 156, expected 0 to 4 for 5 classes, or -100"):
        counterfactuals(model, [(inputs, labels)])
    found = counterfactuals(model, [(inputs, labels)], ignore_index=156)
    assert found.num_predictions == 3


def test_what_is_ignored_may_be_nan() -> None:
    """Attention over nothing but masked positions gives NaN."""
    model, name, _, _ = make("inner", torch.float64)
    inputs, labels = padded(10, (3,))
    usual = counterfactuals(model.eval(), [(inputs, labels)], name)
    broken = inputs.masked_fill((labels == IGNORED)[..., None], torch.nan)
    model[1].gate.register_forward_hook(lambda module, arguments, output: tuple(a.nan_to_num(0.5) for a in output))
    found = counterfactuals(model, [(broken, labels)], name)
    assert found.correct_without.tolist() == usual.correct_without.tolist()
    torch.testing.assert_close(found.mean_effect, usual.mean_effect)


def test_samples_in_which_nothing_counts_do_not_run_again() -> None:
    model, rows = make("inner", torch.float64)[0].eval(), []
    inputs, labels = torch.randn(10, 4).double(), torch.zeros(10, dtype=torch.int64)
    labels[4:] = IGNORED
    used = int((model[1].gate(model[0](inputs[:4]))[0] != 0).sum())
    model[0].register_forward_hook(lambda module, arguments, output: rows.append(len(output)))
    found = counterfactuals(model, [(inputs, labels)], "1", 0)
    assert sum(rows) == 10 + used
    assert found.remade.sum() == used


def test_an_expert_that_no_counted_sample_uses() -> None:
    model = make("inner", torch.float64)[0].eval()
    inputs, labels = torch.randn(40, 4).double(), torch.zeros(40, dtype=torch.int64)
    (a, _) = model[1].gate(model[0](inputs))
    unused = int((a == 0).any(dim=1).nonzero()[0])
    expert = int((a[unused] == 0).nonzero()[0])
    labels[torch.arange(40) != unused] = IGNORED
    found = counterfactuals(model, [(inputs, labels)], "1", 0, experts=[expert])
    assert found.remade.tolist() == [0]
    assert not found.mean_effect.any()
    alone = counterfactuals(model, [(inputs[unused : unused + 1], labels[unused : unused + 1])], "1", experts=[expert])
    assert same(alone, found)


def test_refuses_a_batch_in_which_nothing_counts() -> None:
    model = make("sparsemax", torch.float64)[0].eval()
    inputs, labels = padded(8, (3,))
    message = "all labels of a batch are -100, the ignore_index, so that no prediction of it counts"
    with pytest.raises(ValueError, match=message):
        counterfactuals(model, [(inputs, labels), (inputs, torch.full_like(labels, IGNORED))])
    with pytest.raises(ValueError, match="labels are from -1 to 4, expected 0 to 4 for 5 classes, or -100, the ignore"):
        counterfactuals(model, [(inputs, labels.where(labels != IGNORED, -1))])
    with pytest.raises(TypeError, match="ignore_index is an int, a label, got 'pad'"):
        counterfactuals(model, [(inputs, labels)], ignore_index="pad")  # type: ignore[arg-type]
