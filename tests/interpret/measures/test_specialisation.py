"""Measures of specialisation against cases worked out by hand."""

import math

import pytest
import torch

from factorized_moe import CPMuMoE
from factorized_moe.interpret import (
    Load,
    Measurement,
    Polysemanticity,
    class_accuracy,
    class_level_polysemanticity,
    measure_load,
    record,
)

LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])


def correct_but(*wrong: int) -> torch.Tensor:
    """Every prediction is correct but those of these inputs, ``(B,)``."""
    correct = torch.ones(len(LABELS), dtype=torch.bool)
    correct[list(wrong)] = False
    return correct


def test_expert_load_counts_the_threshold_itself() -> None:
    coefficients = torch.tensor([[0.5, 0.5, 0.0], [0.49, 0.51, 0.0], [0.0, 1.0, 0.0]])
    load = Load.of(coefficients)
    assert load.counts.tolist() == [1, 3, 0]
    assert (load.num_active, load.threshold) == (2, 0.5)
    assert Load.of(coefficients, threshold=0.49).counts.tolist() == [2, 3, 0]


def test_expert_load_takes_any_leading_shape() -> None:
    coefficients = torch.rand(3, 5, 4)
    assert torch.equal(Load.of(coefficients).counts, Load.of(coefficients.reshape(15, 4)).counts)
    assert Load.of(torch.rand(4)).counts.shape == (4,)
    assert Load.of(torch.rand(0, 4)).counts.tolist() == [0, 0, 0, 0]


def test_expert_load_wants_an_expert_axis() -> None:
    with pytest.raises(ValueError, match=r"coefficients are a single number, expected \(\*batch, N\)"):
        Load.of(torch.tensor(0.5))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5])
def test_a_load_at_hand_is_the_load_of_a_recording(threshold: float) -> None:
    torch.manual_seed(0)
    layer = CPMuMoE(6, 3, [5], rank=2).eval()
    torch.nn.init.normal_(layer.gate.projection.weight, std=3.0)
    x = torch.randn(50, 6)
    with record(layer) as log:
        layer(x)
    recorded = measure_load(log.recording, threshold)
    at_hand = Load.of(layer.gate(x)[0], threshold)
    assert torch.equal(recorded.counts, at_hand.counts)
    torch.testing.assert_close(recorded.means, at_hand.means)
    torch.testing.assert_close(recorded.largest, at_hand.largest)
    assert recorded.counts.sum() < 250  # entmax gives zeros, which no threshold counts


def test_every_result_turns_into_a_table() -> None:
    def found(kind: type) -> list[type]:
        return [*kind.__subclasses__(), *(deeper for child in kind.__subclasses__() for deeper in found(child))]

    names = {kind.__name__ for kind in found(Measurement)}
    assert {"Load", "Polysemanticity", "Counterfactuals", "GroupMeasures", "ModeUsage", "ExpertSpectra"} <= names
    scores = Polysemanticity.of_accuracies(torch.tensor([0.5, 1.0]), torch.tensor([[0.0, 1.0], [0.5, 1.0]]))
    assert scores.columns()["most_affected_class"] == [0, -1]
    assert "null" in scores.to_json()  # JSON has no NaN: the second expert has no effect and no score


def test_class_accuracy() -> None:
    correct = torch.stack([correct_but(0, 4, 5), correct_but(*range(10))])
    assert class_accuracy(correct, LABELS, 3).tolist() == [[0.75, 0.5, 1.0], [0.0, 0.0, 0.0]]
    assert class_accuracy(correct[0], LABELS, 4)[3].isnan()


@pytest.mark.parametrize(
    ("correct", "labels", "classes", "error", "message"),
    [
        (torch.ones(10), LABELS, 3, TypeError, "correct must be a bool tensor, got torch.float32"),
        (correct_but()[:9], LABELS, 3, ValueError, r"correct has shape \(9,\) and labels \(10,\), expected"),
        (correct_but(), LABELS[None], 3, ValueError, r"labels \(1, 10\), expected"),
        (correct_but(), LABELS, 2, ValueError, "labels are from 0 to 2, expected 0 to 1 for 2 classes"),
        (correct_but(), LABELS - 1, 3, ValueError, "labels are from -1 to 1, expected 0 to 2"),
    ],
)
def test_class_accuracy_refuses(
    correct: torch.Tensor, labels: torch.Tensor, classes: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        class_accuracy(correct, labels, classes)


def test_expert_that_carries_one_class_scores_exactly_zero() -> None:
    found = class_level_polysemanticity(correct_but(), correct_but(4, 5, 6, 7)[None], LABELS, 3)
    assert found.accuracy_drop.tolist() == [[0.0, 1.0, 0.0]]
    assert found.scores.tolist() == [0.0]
    assert found.most_affected_class.tolist() == [1]


def test_polysemanticity_of_known_experts() -> None:
    # Before: class accuracies 1/2, 1, 1. An accuracy that rises without the expert counts as no drop.
    before = correct_but(0, 1)
    after = torch.stack(
        [
            correct_but(0, 1, 2, 4),  # half of class 0's accuracy, a quarter of class 1's
            correct_but(0, 1, 2, 3, 4, 5, 6, 7, 8, 9),  # all of everything
            correct_but(0, 8),  # class 0 gains, half of class 2's
            correct_but(0, 1),  # nothing
            correct_but(0),  # only a gain
        ]
    )
    found = class_level_polysemanticity(before, after, LABELS, 3)
    assert found.accuracy_drop.tolist() == [[0.5, 0.25, 0], [1, 1, 1], [0, 0, 0.5], [0, 0, 0], [0, 0, 0]]
    expected = [math.hypot(0.5, 0.25), math.sqrt(2), 0.5]
    assert found.scores[:3].tolist() == pytest.approx(expected, abs=1e-15)
    assert found.scores[3:].isnan().all()
    assert found.has_effect.tolist() == [True, True, True, False, False]
    assert found.most_affected_class.tolist() == [0, 0, 2, -1, -1]
    assert found.num_without_effect == 2
    assert found.mean == pytest.approx(sum(expected) / 3, abs=1e-15)


def test_class_without_correct_predictions_or_inputs_has_nothing_to_lose() -> None:
    before = correct_but(8, 9)
    found = class_level_polysemanticity(before, correct_but(4, 5, 6, 7, 8, 9)[None], LABELS, 4)
    assert found.accuracy_drop.tolist() == [[0.0, 1.0, 0.0, 0.0]]
    assert found.scores.tolist() == [0.0]


def test_no_expert_with_an_effect_has_no_mean() -> None:
    found = class_level_polysemanticity(correct_but(), correct_but().expand(3, -1), LABELS, 3)
    assert math.isnan(found.mean)
    assert found.num_without_effect == 3


def test_polysemanticity_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"correct_after \(10,\), expected \(B,\) and \(N, B\)"):
        class_level_polysemanticity(correct_but(), correct_but(), LABELS, 3)
