"""Corrections of a trained classifier for a group it wrongs, learned from the coefficients of the group's experts.

Legend: ``m`` samples, ``N`` experts of one mode, ``O`` outputs, ``a`` a sample's coefficients, ``abar`` their mean over
the group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from factorized_moe.interpret.interventions.kinds import Bias
from factorized_moe.interpret.measures.fairness import GroupMeasures

__all__ = ["ExpertThreshold", "choose_strength"]


@dataclass(frozen=True, eq=False)
class ExpertThreshold:
    """Expert thresholding: ``y_o + strength * abar^T a``, more for a sample the more it shares the group's experts.

    ``abar`` is the mean of the coefficients over the group's training samples; so the rule never looks at the group of
    the sample it is applied to. The name is of Oldfield et al. 2024 (arXiv 2402.12550); the rule is this library's
    form of it, and that the paper's own is the same to the letter has not been confirmed. It is one `Bias` for each
    expert: ``strength * abar[n]`` on output ``o``.

    Its baseline, a *blind* threshold, adds the same to ``y_o`` of every sample. The *excess* rule counts only what
    sets the group apart: ``abar`` less the mean over everyone, 0 where that is negative. So experts that everybody uses
    shift nobody.

    Attributes:
        mean_coefficients: ``abar``, ``(N,)``; of the excess rule, its excess over everyone's mean.
        output: The output that is shifted, ``o``.

    Examples:
        >>> import torch
        >>> rule = ExpertThreshold.of(torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), output=1)
        >>> rule.mean_coefficients
        tensor([0.7500, 0.2500, 0.0000])
        >>> rule.affinity(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))  # how much of the shift a sample gets
        tensor([0.2500, 0.0000])
        >>> everyone = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> ExpertThreshold.of(everyone[:2], output=1, everyone=everyone).mean_coefficients
        tensor([0.3750, 0.0000, 0.0000])
    """

    mean_coefficients: Tensor
    output: int

    @classmethod
    def of(cls, coefficients: Tensor, output: int, *, everyone: Tensor | None = None) -> ExpertThreshold:
        """Learn the rule from the coefficients of the group's training samples.

        Args:
            coefficients: Those of one expert mode, ``(m, N)``.
            output: The output to shift.
            everyone: The coefficients of all training samples, those of the group among them, ``(m', N)``: for the
                excess rule.

        Raises:
            TypeError: If they are no tensor, such as the tuple that a gate returns.
            ValueError: If they are no matrix, there is no sample, or everyone's are of another number of experts.
        """
        for name, given in (("coefficients", coefficients), ("everyone's coefficients", everyone)):
            if given is not None and not isinstance(given, Tensor):
                raise TypeError(
                    f"ExpertThreshold: {name} are one tensor (m, N), got {type(given).__name__}; a gate returns a "
                    "tuple with one for each expert mode, of which gate(x)[0] is the first"
                )
        if coefficients.ndim != 2 or not len(coefficients):
            raise ValueError(
                f"ExpertThreshold: coefficients of shape {tuple(coefficients.shape)}, expected (m, N) with at least "
                "one sample of the group"
            )
        mean = coefficients.detach().mean(dim=0)
        if everyone is None:
            return cls(mean, output)
        if everyone.ndim != 2 or not len(everyone) or everyone.shape[1] != len(mean):
            raise ValueError(
                f"ExpertThreshold: everyone's coefficients have shape {tuple(everyone.shape)}, expected "
                f"(m', {len(mean)}) with at least one sample"
            )
        return cls((mean - everyone.detach().mean(dim=0)).clamp(min=0), output)

    def affinity(self, coefficients: Tensor) -> Tensor:
        """``abar^T a``: what the strength is multiplied by.

        Args:
            coefficients: ``(*batch, N)``.

        Returns:
            ``(*batch,)``.
        """
        return coefficients @ self.mean_coefficients.to(coefficients)

    def intervention(self, strength: float, *, layer: str | None = None, mode: int = 0) -> Bias:
        """The rule as an intervention, for `intervene`.

        Args:
            strength: How much of it.
            layer: As for `Intervention`; a layer whose outputs are the model's.
            mode: The expert mode that the coefficients are of.
        """
        amount = strength * self.mean_coefficients[:, None]
        return Bias(range(len(amount)), amount, [self.output], layer=layer, mode=mode)


def choose_strength(
    candidates: Sequence[float], measure: Callable[[float], GroupMeasures], most_accuracy_lost: float
) -> float:
    """The strength of a correction, chosen on validation data.

    It is the candidate with the smallest difference of opportunity among those that cost no more accuracy than
    allowed, and the smallest in size among equals.

    Args:
        candidates: Strengths; 0, no correction, is always one of them.
        measure: The measures of the validation data with a correction of this strength.
        most_accuracy_lost: The most accuracy that may be lost, as a share of all: 0.01 is one point.

    Raises:
        ValueError: If the accuracy that may be lost is negative or no number.

    Examples:
        >>> found = {0.0: GroupMeasures(0.8, 0.3, 0, 0, {}, {}), 1.0: GroupMeasures(0.795, 0.1, 0, 0, {}, {})}
        >>> choose_strength([1.0], found.__getitem__, most_accuracy_lost=0.01)
        1.0
        >>> choose_strength([1.0], found.__getitem__, most_accuracy_lost=0.001)
        0.0
    """
    if not most_accuracy_lost >= 0:
        raise ValueError(f"choose_strength: most_accuracy_lost is a share from 0, got {most_accuracy_lost}")
    measured = {strength: measure(strength) for strength in sorted({0.0, *candidates}, key=abs)}
    least = measured[0.0].accuracy - most_accuracy_lost
    allowed = [strength for strength, found in measured.items() if found.accuracy >= least]
    return min(allowed, key=lambda strength: measured[strength].equality_of_opportunity)
