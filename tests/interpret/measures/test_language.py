"""Tokens written towards, sparse probes, attribution and values per position, each against the slow way."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from factorized_moe import CPMuMoE, GatedMuMoEBlock, MuMoE
from factorized_moe.interpret import (
    Add,
    Force,
    Recording,
    attribute_to_experts,
    average_inputs,
    find_written_tokens,
    intervene,
    probe_labels,
    record,
)


class InputAsCoefficients(nn.Module):
    """A gate that returns what it is given, so that any coefficients can be recorded."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,)


class TwoLayers(nn.Module):
    """Two layers one after the other, on sequences."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = CPMuMoE(6, 6, expert_dims=[4, 3], rank=5)
        self.second = CPMuMoE(6, 9, expert_dims=[5], rank=5)
        for layer in (self.first, self.second):
            nn.init.normal_(layer.gate.projection.weight, std=0.5)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + torch.tanh(self.first(x)))


def sequences() -> Tensor:
    return torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_written_tokens_are_those_of_the_dense_experts() -> None:
    model, x = TwoLayers(), sequences()
    unembedding = torch.randn(50, 6, dtype=torch.float64)
    inputs = average_inputs(model, [x[:1], x[1:]], layer="first")
    found = find_written_tokens(model.first.experts, unembedding, inputs, k=3)
    with torch.no_grad():
        a, b = model.first.gate(x)
        weights = (a[..., :, None] * b[..., None, :]).flatten(2)  # (2, 4, 12)
        means = torch.einsum("btn,bti->ni", weights, x) / weights.sum(dim=(0, 1))[:, None]
        assert torch.allclose(inputs, means)
        for number in range(12):
            matrix = model.first.experts.expert(*divmod(number, 3))
            logits = unembedding @ (means[number] @ matrix[:-1] + matrix[-1])
            best = logits.topk(3)
            assert found.tokens[number].tolist() == best.indices.tolist()
            assert torch.allclose(found.logits[number], best.values)
    assert found.to_pandas().shape == (36, 6)


def test_written_tokens_of_thousands_of_experts() -> None:
    w = MuMoE(16, 16, [4096], rank=2).experts
    found = find_written_tokens(w, torch.eye(16), torch.randn(16), k=1)
    assert found.tokens.shape == (4096, 1)


def test_the_input_of_a_blocks_last_tensor_is_meant() -> None:
    block = GatedMuMoEBlock(6, 10, 6, expert_dims=[3], rank=2).eval()
    last = list(block.expert_tensors.values())[-1]
    assert average_inputs(block, [torch.randn(4, 6)]).shape == (3, last.in_features)
    with pytest.raises(ValueError, match="no expert tensor 'none'"):
        average_inputs(block, [torch.randn(4, 6)], tensor="none")
    with pytest.raises(ValueError, match=r"expected \(10,\) for all experts or \(3, 10\)"):
        find_written_tokens(last, torch.eye(6), torch.randn(6), k=2)


def test_a_probe_finds_the_experts_of_a_label() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (600,), generator=generator)
    a = torch.rand(600, 8, generator=generator) * 0.3
    a[labels == 0, 5] += 0.6  # told by one expert
    both = torch.rand(600, generator=generator) < 0.5  # told by two together
    a[(labels == 1) & both, 2] += 0.6
    a[(labels == 1) & ~both, 7] += 0.6
    head = MuMoE(8, 1, [8], rank=1, gate=InputAsCoefficients())
    with record(head, class_names=["one", "two", "none", "unused"]) as log:
        for rows, some in zip(a.split(100), labels.split(100), strict=True):
            head(rows)
            log.annotate(labels=some)
    one, two = (probe_labels(log.recording, k) for k in (1, 2))
    assert one.experts[0].tolist() == [5]
    assert one.accuracy[0] > 0.99
    assert one.f1[0] > 0.99
    assert set(two.experts[1].tolist()) == {2, 7}
    assert one.accuracy[1] < 0.8 < 0.95 < two.accuracy[1]
    assert (two.weights[1] > 0).all()
    assert two.accuracy[3].isnan()
    assert one.class_sizes.tolist() == [*torch.bincount(labels).tolist(), 0]
    assert list(one.to_pandas()["class"]) == ["one", "two", "none", "unused"]
    with pytest.raises(ValueError, match="k is 9, but there are 8 experts"):
        probe_labels(log.recording, 9)


def random_run(seed: int, samples: int, experts: int, share: float, shift: float) -> Any:
    """Noise as coefficients, of which the first is larger where the label is 1; a share of the labels is."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(samples, generator=generator) < share).long()
    a = torch.randn(samples, experts, generator=generator)
    a[:, 0] += shift * labels
    a[:, 1] += 5  # of all
    return Recording.from_coefficients(a, labels=labels)


def test_a_probe_is_tested_on_what_it_has_not_seen() -> None:
    """Experts chosen, or weights learned, on the samples that are tested would tell labels that mean nothing."""
    found = [probe_labels(random_run(seed, 80, 60, 0.5, 0.0), 8, seed=seed).accuracy.mean() for seed in range(40)]
    assert float(torch.stack(found).mean()) == pytest.approx(0.5, abs=0.035)


def test_both_sides_of_a_probe_weigh_alike() -> None:
    """One sample in 20 has the label: a probe by plain likelihood would say no to nearly all."""
    found = [probe_labels(random_run(seed, 2000, 3, 0.05, 1.0), 1, seed=seed) for seed in range(10)]
    accuracy = torch.stack([probe.accuracy[1] for probe in found]).mean()
    assert float(accuracy) == pytest.approx(0.69, abs=0.03)  # of two normals one deviation apart, 0.691


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_labels_of_the_probes_own_seed_fall_into_both_halves(share: float) -> None:
    """The first numbers of a seed draw the labels here, and could draw the halves."""
    for seed in range(5):
        found = probe_labels(random_run(seed, 200, 3, share, 2.0), 2, seed=seed)
        assert not found.accuracy.isnan().any()
        assert not found.weights.isnan().any()


def test_a_class_needs_samples_in_both_halves() -> None:
    """Four samples of it and five others are enough, wherever they lie; without any such class there is nothing."""
    a = torch.rand(9, 3, generator=torch.Generator().manual_seed(0))
    for before, seed in itertools.product(range(6), range(5)):
        labels = torch.tensor([0] * before + [1] * 4 + [2] * (5 - before))
        found = probe_labels(Recording.from_coefficients(a, labels=labels), seed=seed)
        assert not found.accuracy[1].isnan()
        assert not found.f1[1].isnan()
        few = found.class_sizes < 4
        assert found.accuracy[few].isnan().all()
        assert found.weights[few].isnan().all()
    for unfit in ([0] * 9, [0, 1, 2] * 3, [0] * 8 + [1]):
        with pytest.raises(ValueError, match=r"no class has two samples to learn from, .* are labelled, record more"):
            probe_labels(Recording.from_coefficients(a, labels=torch.tensor(unfit)))


@pytest.mark.parametrize("shift", [3.0, -3.0])
def test_a_probe_takes_the_experts_that_differ_not_those_that_are_large(shift: float) -> None:
    assert probe_labels(random_run(0, 500, 6, 0.3, shift), 1).experts.tolist() == [[0], [0]]


def test_negative_coefficients_weigh_nothing() -> None:
    layer = MuMoE(3, 2, [3], rank=2, gate=InputAsCoefficients())
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    weights = x.clamp(min=0).double()
    expected = weights.T @ x.double() / weights.sum(dim=0)[:, None]
    assert torch.allclose(average_inputs(layer, [x]), expected)


def test_a_probe_of_chance_is_near_one_half() -> None:
    generator = torch.Generator().manual_seed(3)
    head = MuMoE(40, 1, [40], rank=1, gate=InputAsCoefficients())
    with record(head) as log:
        head(torch.rand(4000, 40, generator=generator))
        log.annotate(labels=torch.randint(2, (4000,), generator=generator))
    assert probe_labels(log.recording, 5).accuracy.tolist() == pytest.approx([0.5, 0.5], abs=0.06)


@pytest.mark.parametrize("frozen", [False, True])
def test_attribution_is_the_finite_difference(frozen: bool) -> None:
    """Of the score by each coefficient's factor, through everything behind it, other gates included."""
    model, x = TwoLayers(), sequences()
    model.requires_grad_(not frozen)

    def score(logits: Tensor) -> Tensor:
        return logits[..., 3] ** 2

    with torch.no_grad():
        found = attribute_to_experts(model, x, score)
    assert list(found) == ["first", "second"]
    step = 1e-5
    for layer, modes in found.items():
        for mode, values in enumerate(modes):
            (a,) = (getattr(model, layer).gate(x)[mode],) if layer == "first" else (values,)
            assert values.shape[:2] == a.shape[:2] == (2, 4)
            for expert in range(values.shape[-1]):
                ends = []
                for sign in (1, -1):
                    change = Scaled(expert, sign * step, layer=layer, mode=mode)
                    with torch.no_grad(), intervene(model, change):
                        ends.append(score(model(x)))
                slope = (ends[0] - ends[1]) / (2 * step)  # a position's score depends on its own coefficients alone
                assert torch.allclose(values[..., expert], slope, atol=1e-8, rtol=1e-5)
    assert all(p.grad is None for p in model.parameters())


def Scaled(expert: int, by: float, **place: Any) -> Any:  # stands where an intervention's name would
    from factorized_moe.interpret import Scale

    return Scale(expert, 1 + by, **place)


def test_attribution_refuses_a_score_without_experts() -> None:
    model, x = TwoLayers(), sequences()
    with pytest.raises(ValueError, match="does not depend"):
        attribute_to_experts(model, x, lambda y: torch.ones(3))
    with pytest.raises(TypeError, match="tensor of floating-point numbers"):
        attribute_to_experts(model, x, lambda y: y.argmax(-1))
    assert not model.first.gate._forward_hooks


@pytest.mark.parametrize("kind", [Force, Add])
def test_a_value_for_each_position(kind: type[Force]) -> None:
    model, x = TwoLayers(), sequences()
    values = torch.tensor([0.0, 0.5, 1.0, 2.0])[:, None]
    with torch.no_grad():
        with intervene(model, kind([1, 2], values, layer="second")):
            together = model(x)
        for position in range(4):
            with intervene(model, kind([1, 2], float(values[position]), layer="second")):
                assert torch.allclose(model(x)[:, position], together[:, position])
    each = torch.rand(2, 4, 2)
    a = torch.rand(2, 4, 5)
    changed = kind([3, 0], each).change(a)
    assert torch.allclose(changed[..., [3, 0]], each if kind is Force else a[..., [3, 0]] + each)
    assert torch.equal(changed[..., [1, 2, 4]], a[..., [1, 2, 4]])
    with pytest.raises(ValueError, match=r"has shape \(3, 1\), which does not broadcast to \(2, 4, 2\)"):
        kind([3, 0], torch.ones(3, 1)).change(a)
    with pytest.raises(ValueError, match="must be finite"):
        kind(0, torch.tensor([1.0, float("nan")]))
