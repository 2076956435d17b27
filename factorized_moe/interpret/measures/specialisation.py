"""Which classes need each expert: class-level polysemanticity, by taking experts out.

Legend: ``*batch`` any leading shape, ``B`` inputs, ``N`` experts of one mode, ``C`` classes.

The measure is that of Oldfield et al. 2024 (arXiv 2402.12550). It looks at one expert mode; call it once for each
mode of a layer with several. How many inputs each expert takes is what `measure_load` tells.
"""

from __future__ import annotations

import torch
from torch import Tensor

from factorized_moe._validation import check_size, check_values
from factorized_moe.interpret.measures.polysemanticity import Polysemanticity

__all__ = ["class_accuracy", "class_level_polysemanticity"]


def class_accuracy(correct: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The share of correct predictions among the inputs of each class.

    Args:
        correct: Whether each prediction is correct, ``(*batch, B)``, bool.
        labels: The class of each input, ``(B,)``, integers from 0.
        num_classes: ``C``.

    Returns:
        The accuracies, ``(*batch, C)``, float64; NaN for a class without inputs.

    Raises:
        TypeError: If ``correct`` is not bool.
        ValueError: If the shapes do not fit, or a label is out of range.

    Examples:
        >>> class_accuracy(torch.tensor([True, True, False]), torch.tensor([0, 1, 1]), num_classes=2).tolist()
        [1.0, 0.5]
    """
    correct_ones = _correct_of_classes(correct, labels, num_classes)
    return correct_ones.double() / labels.bincount(minlength=num_classes)


def _correct_of_classes(correct: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The number of correct predictions among the inputs of each class, ``(*batch, C)``, int64."""
    for name, values in (("correct", correct), ("labels", labels)):
        check_values(name, values)
    check_size("num_classes", num_classes)
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if correct.dtype != torch.bool:
        raise TypeError(f"correct must be a bool tensor, got {correct.dtype}; compare predictions with the labels")
    if labels.ndim != 1 or correct.shape[-1:] != labels.shape:
        raise ValueError(
            f"correct has shape {tuple(correct.shape)} and labels {tuple(labels.shape)}, "
            "expected (*batch, B) and (B,): one label for each input"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels are from {int(labels.min())} to {int(labels.max())}, expected 0 to {num_classes - 1} "
            f"for {num_classes} classes"
        )
    members = torch.nn.functional.one_hot(labels.long(), num_classes).double()  # (B, C)
    return (correct.double() @ members).long()


def class_level_polysemanticity(
    correct_before: Tensor, correct_after: Tensor, labels: Tensor, num_classes: int
) -> Polysemanticity:
    r"""How far each expert is from serving exactly one class, by taking it out.

    With ``y_c`` the accuracy on class ``c`` and ``yhat_c`` the accuracy without the expert, the share lost is
    ``d_c = max(y_c - yhat_c, 0) / y_c`` and the score ``p = || d - onehot(argmax d) ||_2``. It is 0 when the
    expert carries all of exactly one class's accuracy, 1 in the limit of a vanishing effect, and more when it
    carries several classes (at most ``sqrt(C - 1)``).

    This is the form chosen here for the measure of Oldfield et al. 2024; that the paper's own is the same to
    the letter has not been confirmed. Two cases are this library's choice: a class that is never predicted
    correctly, or has no inputs, has ``d_c = 0`` (nothing to lose); an expert with ``d = 0`` has no score and
    is left out of the mean, since it would score 1 without doing anything. `Polysemanticity.summary` sets the mean
    beside those that count such experts, and beside a null.

    Args:
        correct_before: Whether each prediction is correct with all experts, ``(B,)``, bool.
        correct_after: The same without each expert of the mode in turn, ``(N, B)``, bool. `counterfactuals` makes
            do without it, and its result has the same measure.
        labels: The class of each input, ``(B,)``, integers from 0.
        num_classes: ``C``.

    Raises:
        TypeError: If a tensor of correct predictions is not bool.
        ValueError: If the shapes do not fit, or a label is out of range.

    Examples:
        Without expert 0 all of class 1 is lost, without expert 1 half of each class,
        without expert 2 nothing.

        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> before = torch.tensor([True, True, True, True])
        >>> after = torch.tensor([[True, True, False, False], [True, False, False, True], [True, True, True, True]])
        >>> found = class_level_polysemanticity(before, after, labels, num_classes=2)
        >>> found.scores
        tensor([0.0000, 0.7071,    nan], dtype=torch.float64)
        >>> found.num_without_effect, round(found.mean, 4)
        (1, 0.3536)
    """
    if correct_before.ndim != 1 or correct_after.ndim != 2:
        raise ValueError(
            f"correct_before has shape {tuple(correct_before.shape)} and correct_after "
            f"{tuple(correct_after.shape)}, expected (B,) and (N, B): with all experts, and without each in turn"
        )
    before = _correct_of_classes(correct_before, labels, num_classes)  # (C,)
    after = _correct_of_classes(correct_after, labels, num_classes)  # (N, C)
    return Polysemanticity.of_counts(before, after)
