"""Corrections do what their rule says, strengths are chosen by the rule, and fairness is what fairlearn measures."""

import pytest
import torch
from torch import nn

from factorized_moe import MuMoE
from factorized_moe.interpret import (
    ExpertThreshold,
    GroupMeasures,
    balancing_weights,
    choose_strength,
    intervene,
    measure_groups,
)


def test_expert_threshold_is_the_bias_it_says() -> None:
    torch.manual_seed(0)
    layer = MuMoE(6, 2, [5, 3], rank=4, gate_norm="layer", dtype=torch.float64)
    nn.init.normal_(layer.gate.get_parameter("projection.weight"))
    x = torch.randn(20, 6, dtype=torch.float64)
    for mode, a in enumerate(layer.gate(x)):
        rule = ExpertThreshold.of(a[:7], output=1)
        expected = layer(x).detach()
        expected[:, 1] += 2.5 * (a @ a[:7].mean(dim=0)).detach()
        torch.testing.assert_close(rule.affinity(a), a @ a[:7].mean(dim=0))
        with intervene(layer, rule.intervention(2.5, mode=mode)):
            torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("shape", [(3,), (0, 3)])
def test_expert_threshold_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"coefficients of shape \(.*\), expected \(m, N\) with at least one sample"):
        ExpertThreshold.of(torch.zeros(shape), 1)


def test_expert_threshold_refuses_the_tuple_that_a_gate_returns() -> None:
    coefficients = MuMoE(6, 2, [5, 3], rank=4, gate_norm="layer").gate(torch.randn(7, 6))
    with pytest.raises(
        TypeError, match=r": coefficients are one tensor \(m, N\), got tuple; .* gate\(x\)\[0\] is the first"
    ):
        ExpertThreshold.of(coefficients, 1)
    with pytest.raises(TypeError, match=r"everyone's coefficients are one tensor \(m, N\), got tuple"):
        ExpertThreshold.of(coefficients[0], 1, everyone=coefficients)


def measures(accuracy: float, difference: float) -> GroupMeasures:
    return GroupMeasures(accuracy, difference, 0.0, 0.0, {}, {})


def test_strength_is_the_fairest_that_is_allowed_and_the_smallest_of_equals() -> None:
    table = {
        0.0: measures(0.80, 0.20),
        1.0: measures(0.79, 0.10),
        -1.0: measures(0.80, 0.15),
        2.0: measures(0.791, 0.10),
        3.0: measures(0.70, 0.0),
    }
    assert choose_strength([3.0, 2.0, 1.0, -1.0], table.__getitem__, 0.0101) == 1.0
    assert choose_strength([3.0, 2.0, 1.0, -1.0], table.__getitem__, 0.0) == -1.0
    assert choose_strength([3.0], table.__getitem__, 0.01) == 0.0
    assert choose_strength([3.0], table.__getitem__, 0.2) == 3.0
    with pytest.raises(ValueError, match="most_accuracy_lost is a share from 0, got nan"):
        choose_strength([1.0], table.__getitem__, float("nan"))


LABELS = torch.tensor([1, 1, 1, 1, 0, 0, 1, 1, 0, 0])
GROUPS = torch.tensor([7, 7, 7, 7, 7, 7, 2, 2, 2, 2])


def test_group_measures_of_a_case_by_hand() -> None:
    predictions = torch.tensor([1, 1, 1, 0, 0, 1, 1, 0, 0, 0])
    found = measure_groups(LABELS, predictions, GROUPS)
    assert found.accuracy == pytest.approx(0.7)
    assert found.true_positive_rates == {2: 0.5, 7: 0.75}
    assert found.equality_of_opportunity == pytest.approx(0.25)
    assert found.accuracies == pytest.approx({2: 3 / 4, 7: 4 / 6})
    assert found.worst_accuracy == pytest.approx(4 / 6)
    assert found.std_of_accuracies == pytest.approx((3 / 4 - 4 / 6) / 2)


@pytest.mark.parametrize(
    ("labels", "predictions", "groups", "message"),
    [
        (LABELS[:9], LABELS, GROUPS, r"labels \(9,\), predictions \(10,\), groups \(10,\); expected one entry"),
        (LABELS * 2, LABELS, GROUPS, r"labels are 0 or 1, got \[0, 2\]"),
        (LABELS, LABELS / 2, GROUPS, r"predictions are 0 or 1, got \[0.0, 0.5\]"),
        (LABELS, LABELS, GROUPS * 0, "1 groups, expected two or more to compare"),
        (LABELS * (GROUPS == 7), LABELS, GROUPS, "nobody of group 2 has label 1, so it has no true-positive rate"),
    ],
    ids=["shapes", "labels", "predictions", "one group", "no positives"],
)
def test_group_measures_refuse(
    labels: torch.Tensor, predictions: torch.Tensor, groups: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        measure_groups(labels, predictions, groups)


@pytest.mark.parametrize("numbers", [(0, 1, 2), (-3, 40, 41), (5, 10**12, -(10**12)), (0.5, 2.5, 3.5)])
@pytest.mark.parametrize("seed", range(3))
def test_group_measures_are_those_of_fairlearn(seed: int, numbers: tuple[float, ...]) -> None:
    metrics = pytest.importorskip("fairlearn.metrics")
    generator = torch.Generator().manual_seed(seed)
    labels, predictions = torch.randint(2, (2, 200), generator=generator)
    place = torch.randint(3, (200,), generator=generator)
    groups = torch.tensor(numbers)[place]
    rates = {"accuracy": lambda truth, given: float((truth == given).mean()), "tpr": metrics.true_positive_rate}
    frame = metrics.MetricFrame(
        metrics=rates, y_true=labels.numpy(), y_pred=predictions.numpy(), sensitive_features=groups.numpy()
    )
    found = measure_groups(labels, predictions, groups)
    assert found.accuracy == pytest.approx(float(frame.overall["accuracy"]), abs=1e-6)
    assert found.equality_of_opportunity == pytest.approx(float(frame.difference()["tpr"]), abs=1e-6)
    assert found.std_of_accuracies == pytest.approx(float(frame.by_group["accuracy"].std(ddof=0)), abs=1e-6)
    assert found.worst_accuracy == pytest.approx(float(frame.group_min()["accuracy"]), abs=1e-6)
    assert found.accuracies == pytest.approx({int(k): v for k, v in frame.by_group["accuracy"].items()}, abs=1e-6)
    assert found.true_positive_rates == pytest.approx({int(k): v for k, v in frame.by_group["tpr"].items()}, abs=1e-6)


def test_excess_rule_counts_what_sets_the_group_apart() -> None:
    everyone = torch.tensor([[0.5, 0.5, 0.0], [0.7, 0.1, 0.2], [0.5, 0.1, 0.4], [0.5, 0.1, 0.4]])
    rule = ExpertThreshold.of(everyone[:2], output=0, everyone=everyone)
    torch.testing.assert_close(rule.mean_coefficients, torch.tensor([0.6 - 0.55, 0.3 - 0.2, 0.0]))
    torch.testing.assert_close(rule.affinity(everyone[2]), torch.tensor(0.5 * 0.05 + 0.1 * 0.1))
    with pytest.raises(ValueError, match=r"everyone's coefficients have shape \(4, 2\), expected \(m', 3\)"):
        ExpertThreshold.of(everyone[:2], 0, everyone=everyone[:, :2])


def test_balancing_weights_make_every_cell_count_the_same() -> None:
    weights = balancing_weights(LABELS, GROUPS)
    # Group 7 has 4 with label 1 and 2 with 0, group 2 has 2 and 2: ten people in four cells, 2.5 for each.
    assert weights.tolist() == pytest.approx([2.5 / 4] * 4 + [2.5 / 2] * 6)
    with pytest.raises(ValueError, match="nobody of group 2 has label 0, so nobody to draw"):
        balancing_weights(torch.where(GROUPS == 2, 1, LABELS), GROUPS)
    with pytest.raises(ValueError, match=r"balancing_weights: labels \(9,\), groups \(10,\); expected one entry"):
        balancing_weights(LABELS[:9], GROUPS)
    with pytest.raises(ValueError, match=r"labels are 0 or 1, got \[0, 2\]"):
        balancing_weights(LABELS * 2, GROUPS)
