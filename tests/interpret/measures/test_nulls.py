"""Polysemanticity, label information and their nulls, against cases worked out by hand."""

import json
import math
import re

import pytest
import torch

from factorized_moe import CPMuMoE
from factorized_moe.interpret import (
    Add,
    BesideNull,
    LabelInformation,
    Polysemanticity,
    Scale,
    class_level_polysemanticity,
    counterfactuals,
    intervene,
    measure_label_information,
    record,
)
from factorized_moe.interpret.recording.streaming import finite_blocks

CORRECT = torch.tensor([40, 10, 0])
WITHOUT = torch.tensor([[0, 10, 0], [20, 5, 0], [40, 10, 3], [39, 12, 0]])


def test_counts_give_scores_weights_and_each_rule_for_experts_without_effect() -> None:
    found = Polysemanticity.of_counts(CORRECT, WITHOUT)
    assert found.accuracy_drop.tolist() == [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 0], [1 / 40, 0, 0]]
    half, vanishing = math.sqrt(0.5), 1 - 1 / 40
    assert found.scores[[0, 1, 3]].tolist() == pytest.approx([0, half, vanishing])
    assert found.num_lost.tolist() == [40, 25, 0, 1]  # a gain is no loss
    assert found.mean_score() == found.mean == pytest.approx((0 + half + vanishing) / 3)
    assert found.mean_score(1.0) == pytest.approx((0 + half + 1 + vanishing) / 4)
    assert found.mean_score(0.0) == pytest.approx((0 + half + 0 + vanishing) / 4)
    assert found.weighted_mean == pytest.approx((25 * half + 1 * vanishing) / 66)


def test_concentration_and_effective_classes_by_hand() -> None:
    drops = torch.tensor([[0.6, 0.2, 0.0], [0.3, 0.3, 0.3], [0.0, 0.0, 0.0]], dtype=torch.float64)
    found = Polysemanticity.of_accuracies(torch.ones(3, dtype=torch.float64), 1 - drops)
    assert found.concentration[:2].tolist() == pytest.approx([0.75, 1 / 3])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found.effective_classes[:2].tolist() == pytest.approx([math.exp(entropy), 3.0])
    assert found.concentration[2].isnan()
    assert found.effective_classes[2].isnan()


@pytest.mark.parametrize("shapes", [((3,), (3,)), ((3,), (2, 4)), ((3, 1), (2, 3)), ((1,), (2, 3)), ((0,), (2, 0))])
def test_accuracies_and_counts_of_other_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    first, second = shapes
    wanted = re.escape(f"has shape {first} and correct_without {second}, expected (C,) and (N, C)")
    with pytest.raises(ValueError, match=wanted):
        Polysemanticity.of_counts(torch.zeros(first, dtype=torch.int64), torch.zeros(second, dtype=torch.int64))
    with pytest.raises(ValueError, match=wanted.replace("correct_without", "after")):
        Polysemanticity.of_accuracies(torch.zeros(first), torch.zeros(second))


def test_what_are_no_accuracies_or_counts_is_refused() -> None:
    for before, after, error, message in [
        ([1.0], torch.ones(1, 1), TypeError, "before"),
        (torch.ones(1), [[1.0]], TypeError, "after"),
        (
            torch.ones(1),
            torch.ones(1, 1).long(),
            TypeError,
            "as floating-point numbers, got torch.float32, torch.int64",
        ),
        (
            torch.tensor([1.5]),
            torch.ones(1, 1),
            ValueError,
            "before has the accuracy 1.5, expected numbers from 0 to 1",
        ),
        (torch.ones(1), torch.tensor([[math.nan]]), ValueError, "after has the accuracy nan, expected numbers from 0"),
        (
            torch.ones(1),
            torch.tensor([[-0.5]]),
            ValueError,
            "after has the accuracy -0.5, expected numbers from 0 to 1",
        ),
    ]:
        with pytest.raises(error, match=message):
            Polysemanticity.of_accuracies(before, after)
    for correct, without, error, message in [
        ([4], torch.ones(1, 1).long(), TypeError, "correct"),
        (torch.tensor([4]), [[4]], TypeError, "correct_without"),
        (torch.ones(1), torch.ones(1, 1).long(), TypeError, r"correct has counts, expected ints, got torch\.float32"),
        (
            torch.tensor([4]),
            torch.ones(1, 1).bool(),
            TypeError,
            r"correct_without has counts, expected ints, got torch",
        ),
        (torch.tensor([4, -1]), torch.ones(1, 2).long(), ValueError, "correct has the count -1, expected 0 or more"),
        (torch.tensor([4]), torch.tensor([[-2]]), ValueError, "correct_without has the count -2, expected 0 or more"),
    ]:
        with pytest.raises(error, match=message):
            Polysemanticity.of_counts(correct, without)


def test_a_class_without_samples_has_no_accuracy_to_lose() -> None:
    before, after = torch.tensor([0.5, math.nan]), torch.tensor([[0.25, math.nan]])
    assert Polysemanticity.of_accuracies(before, after).accuracy_drop.tolist() == [[0.5, 0.0]]


def test_accuracies_alone_have_no_null() -> None:
    found = Polysemanticity.of_accuracies(torch.ones(2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="is of accuracies; samples are known to one made by of_counts"):
        found.summary()
    with pytest.raises(TypeError, match="without_effect is a number, or None to leave such experts out, got 'zero'"):
        found.mean_score("zero")  # type: ignore[arg-type]


def test_the_null_keeps_what_is_lost_and_spreads_it_by_what_there_is_to_lose() -> None:
    found = Polysemanticity.of_counts(CORRECT, WITHOUT)
    drawn = list(found.null(draws=400, seed=1))
    for null in drawn:
        assert torch.equal(null.num_lost, found.num_lost)
        assert null.lost is not None
        assert bool((null.lost <= CORRECT).all())
    lost = torch.stack([null.lost for null in drawn if null.lost is not None]).double().mean(dim=0)
    expected = found.num_lost[:, None] * CORRECT / CORRECT.sum()
    assert float((lost - expected).abs().max()) < 0.25  # 25 of 50: a deviation of 1.4 in one draw, .07 in the mean
    again = [null.mean for null in found.null(draws=3, seed=1)]
    assert again == [null.mean for null in drawn[:3]] != [null.mean for null in found.null(draws=3, seed=2)]


def test_an_expert_that_loses_one_sample_scores_its_null_exactly() -> None:
    """All classes are as large, so it does not matter whose sample it is: chance alone gives 1 - 1/20."""
    found = Polysemanticity.of_counts(torch.tensor([20, 20]), torch.tensor([[19, 20]]))
    summary = found.summary(draws=5)
    assert summary.mean.value == pytest.approx(0.95)
    assert summary.mean.null.tolist() == pytest.approx([0.95] * 5)
    assert summary.weighted_mean.null_spread == pytest.approx(0.0, abs=1e-12)


def test_a_summary_is_a_table_and_json() -> None:
    summary = Polysemanticity.of_counts(CORRECT, WITHOUT).summary(draws=4)
    assert (summary.num_experts, summary.num_without_effect) == (4, 1)
    table = summary.columns()
    assert table["measure"][:4] == ["mean", "mean_dead_one", "mean_dead_zero", "weighted_mean"]
    assert table["value"][0] == Polysemanticity.of_counts(CORRECT, WITHOUT).mean
    stored = json.loads(summary.to_json())
    assert len(stored["weighted_mean"]["null"]) == 4
    assert stored["draws"] == 4
    assert "4 experts, 1 without effect; the null of 4 draws" in repr(summary)


def test_counterfactuals_know_the_samples() -> None:
    torch.manual_seed(0)
    layer = CPMuMoE(6, 3, [5], rank=4).eval()
    torch.nn.init.normal_(layer.gate.projection.weight, std=3.0)
    x, labels = torch.randn(60, 6), torch.randint(3, (60,))
    found = counterfactuals(layer, [(x, labels)])
    assert found.correct is not None
    assert found.correct_without is not None
    lost = (found.correct - found.correct_without).clamp(min=0)
    assert found.polysemanticity().num_lost.tolist() == lost.sum(dim=1).tolist()
    assert int(lost.sum()) > 0


def test_correct_predictions_are_counted() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    found = class_level_polysemanticity(torch.ones(4).bool(), torch.tensor([[True, False, False, False]]), labels, 2)
    assert found.lost is not None
    assert found.correct is not None
    assert (found.lost.tolist(), found.correct.tolist()) == ([[1, 2]], [2, 2])


def test_a_gate_that_names_the_class_tells_all_of_it() -> None:
    labels = torch.arange(4).repeat(50)
    found = LabelInformation.of(torch.eye(4)[labels], labels, draws=5)
    assert found.mutual_information.value == pytest.approx(2.0)
    assert found.label_entropy == pytest.approx(2.0)
    assert found.classes_per_expert.tolist() == pytest.approx([1.0] * 4)
    assert found.best_class.tolist() == [0, 1, 2, 3]
    assert 0 < found.mutual_information.null_mean < 0.1  # about (4 - 1)**2 / (2 * 200 * ln 2) = .03


def test_information_of_a_mixed_gate_by_hand() -> None:
    # Joint of experts and classes: ((3, 1), (1, 3), (0, 0)) / 8, whatever the coefficients' scale.
    a = torch.tensor([[0.75, 0.25, 0.0], [0.5, 1.5, 0.0]], dtype=torch.float64)
    found = LabelInformation.of(a, torch.tensor([0, 1]), 3, draws=2)
    torch.testing.assert_close(found.joint * 8, torch.tensor([[3.0, 1, 0], [1, 3, 0], [0, 0, 0]], dtype=torch.float64))
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert found.mutual_information.value == pytest.approx(1 - entropy)
    assert found.concentration.value == pytest.approx(0.75)
    assert found.effective_classes.value == pytest.approx(2**entropy)
    assert found.use.tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert found.num_in_use == 2
    assert found.best_class.tolist() == [0, 1, -1]
    assert found.classes_per_expert[2].isnan()
    assert found.concentrations[2].isnan()


def test_a_gate_that_knows_nothing_is_its_null() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2000, 16, generator=generator)
    found = LabelInformation.of(a, torch.randint(10, (2000,), generator=generator), draws=20)
    beside = found.mutual_information
    assert abs(beside.value - beside.null_mean) < 4 * beside.null_spread
    assert found.effective_classes.value == pytest.approx(found.effective_classes.null_mean, rel=0.01)


def test_samples_without_a_coefficient_are_left_out_and_negative_ones_are_none() -> None:
    a = torch.tensor([[0.0, 0.0], [-1.0, 2.0], [-1.0, -1.0]])
    found = LabelInformation.of(a, torch.tensor([0, 1, 0]), draws=1)
    assert found.num_samples == 1
    assert found.joint.tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("mode", [0, 1, "product"])
def test_a_recording_has_the_information_of_its_coefficients(sparse: bool, mode: int | str) -> None:
    torch.manual_seed(0)
    layer = CPMuMoE(6, 3, [40, 30], rank=2, gate="entmax" if sparse else "softmax").eval()
    torch.nn.init.normal_(layer.gate.projection.weight, std=3.0)
    x, labels = torch.randn(300, 6), torch.randint(3, (300,))
    odd = intervene(layer, Scale(0, 3.0), Add(1, -0.05))  # neither from 0 nor of sum 1
    with odd, torch.no_grad(), record(layer, class_names=["a", "b", "c"]) as log:
        for some in torch.arange(300).split(70):
            layer(x[some])
            log.annotate(labels=labels[some])
    assert all(block.rows.is_sparse == sparse for block in finite_blocks(log.recording, None, mode))
    recorded = measure_label_information(log.recording, mode=mode, draws=3)
    at_hand = LabelInformation.of(log.recording.coefficients(mode=mode), labels, draws=3)
    torch.testing.assert_close(recorded.joint, at_hand.joint)
    assert recorded.mutual_information.value == pytest.approx(at_hand.mutual_information.value)
    torch.testing.assert_close(recorded.mutual_information.null, at_hand.mutual_information.null)
    assert recorded.class_names == ("a", "b", "c")
    assert recorded.grid == ((40, 30) if mode == "product" else ((40,), (30,))[int(mode)])
    assert len(recorded.to_pandas()) == math.prod(recorded.grid)
    assert len(json.loads(recorded.to_json())["mutual_information"]["null"]) == 3


def test_the_generator_of_torch_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    a, labels = torch.eye(2), torch.tensor([0, 1])
    one, same, other = (LabelInformation.of(a.repeat(9, 1), labels.repeat(9), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.mutual_information.null, same.mutual_information.null)
    assert not torch.equal(one.mutual_information.null, other.mutual_information.null)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": torch.tensor([0, 1, 2])}, ValueError, r"coefficients have shape \(2, 2\) and labels \(3,\)"),
        ({"labels": torch.tensor([0, 2]), "num_classes": 2}, ValueError, "labels are from 0 to 2, expected 0 to 1"),
        ({"labels": torch.tensor([0.0, 1.0])}, TypeError, "of a floating type and labels integers"),
        ({"coefficients": torch.eye(2) / 0}, ValueError, "coefficients have a value that is not finite"),
        ({"draws": 0}, ValueError, "draws must be at least 1, got 0"),
        ({"seed": 0.5}, TypeError, "seed is an int, got 0.5"),
    ],
)
def test_information_refuses(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    given = {"coefficients": torch.eye(2), "labels": torch.tensor([0, 1])} | arguments
    with pytest.raises(error, match=message):
        LabelInformation.of(**given)  # type: ignore[arg-type]


def test_a_single_draw_has_no_spread() -> None:
    assert math.isnan(BesideNull(1.0, torch.ones(1)).null_spread)
