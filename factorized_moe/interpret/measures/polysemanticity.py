"""How many classes each expert matters to, from the samples that are lost without it, beside what chance gives.

Legend: ``N`` experts of one mode, ``C`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from factorized_moe._scalars import is_number, is_whole
from factorized_moe._text_tables import text_table
from factorized_moe._validation import check_kind, check_size
from factorized_moe.interpret.measures.measurement import Measurement
from factorized_moe.interpret.measures.nulls import BesideNull

__all__ = ["Polysemanticity", "PolysemanticitySummary"]


@dataclass(frozen=True, eq=False)
class Polysemanticity(Measurement):
    """The classes that each expert of a mode matters to.

    Attributes:
        accuracy_drop: ``d``, the share of a class's accuracy lost without the expert, ``(N, C)``, from 0 to
            1.
        scores: The polysemanticity of each expert, ``(N,)``; NaN for an expert without effect.
        lost: How many correct predictions of each class are lost without the expert, ``(N, C)``, int64; gains count as
            0. ``None`` where accuracies were given and no counts.
        correct: How many predictions of each class are correct with all experts, ``(C,)``, int64; ``None`` likewise.
    """

    accuracy_drop: Tensor
    scores: Tensor
    lost: Tensor | None = None
    correct: Tensor | None = None

    @classmethod
    def of_accuracies(cls, before: Tensor, after: Tensor) -> Polysemanticity:
        """The scores from the accuracies on each class, as `class_level_polysemanticity` defines them.

        Args:
            before: With all experts, ``(C,)``, from 0 to 1; NaN for a class without samples, which counts as not lost.
            after: Without each expert of the mode in turn, ``(N, C)``.

        Raises:
            TypeError: If one is no tensor of floating-point numbers.
            ValueError: If the shapes do not fit each other, or a class with samples has an accuracy outside 0 to 1.

        Examples:
            >>> Polysemanticity.of_accuracies(torch.tensor([0.5, 1.0]), torch.tensor([[0.0, 1.0], [0.5, 0.5]])).scores
            tensor([0.0000, 0.5000])
        """
        check_kind("before", before, Tensor)
        check_kind("after", after, Tensor)
        if not (before.is_floating_point() and after.is_floating_point()):
            raise TypeError(
                f"before and after are accuracies as floating-point numbers, got {before.dtype}, {after.dtype}"
            )
        _check_shapes("before", before, "after", after)
        known = ~before.isnan()
        for name, given in (("before", before[known]), ("after", after[:, known])):
            if bad := given[~((given >= 0) & (given <= 1))].tolist():  # NaN too
                raise ValueError(f"{name} has the accuracy {bad[0]}, expected numbers from 0 to 1")
        drop = torch.where(before > 0, (before - after).clamp(min=0) / before, 0.0)
        return cls(drop, _scores(drop))

    @classmethod
    def of_counts(cls, correct: Tensor, correct_without: Tensor) -> Polysemanticity:
        """The scores from the numbers of correct predictions of each class, which also allow a null and weights.

        Args:
            correct: With all experts, ``(C,)``, int64.
            correct_without: Without each expert of the mode in turn, ``(N, C)``, int64.

        Raises:
            TypeError: If one is no tensor of ints.
            ValueError: If the shapes do not fit each other, or a number is negative.

        Examples:
            >>> found = Polysemanticity.of_counts(torch.tensor([4, 4]), torch.tensor([[0, 4], [2, 1], [4, 4]]))
            >>> found.scores
            tensor([0.0000, 0.5590,    nan], dtype=torch.float64)
            >>> found.num_lost.tolist(), round(found.weighted_mean, 4)  # (4 * 0 + 5 * 0.559) / 9
            ([4, 5, 0], 0.3106)
        """
        check_kind("correct", correct, Tensor)
        check_kind("correct_without", correct_without, Tensor)
        for name, given in (("correct", correct), ("correct_without", correct_without)):
            if given.dtype == torch.bool or given.is_floating_point() or given.is_complex():
                raise TypeError(f"{name} has counts, expected ints, got {given.dtype}")
        _check_shapes("correct", correct, "correct_without", correct_without)
        for name, given in (("correct", correct), ("correct_without", correct_without)):
            if bool((given < 0).any()):
                raise ValueError(f"{name} has the count {int(given.min())}, expected 0 or more")
        return cls._of_losses(correct, (correct - correct_without).clamp(min=0))

    @classmethod
    def _of_losses(cls, correct: Tensor, lost: Tensor) -> Polysemanticity:
        drop = torch.where(correct > 0, lost.double() / correct, 0.0)
        return cls(drop, _scores(drop), lost, correct)

    @property
    def has_effect(self) -> Tensor:
        """Whether some class loses accuracy without the expert, ``(N,)``, bool."""
        return (self.accuracy_drop > 0).any(dim=-1)

    @property
    def most_affected_class(self) -> Tensor:
        """The class that loses the largest share without the expert, ``(N,)``; -1 where none loses any."""
        return torch.where(self.has_effect, self.accuracy_drop.argmax(dim=-1), -1)

    @property
    def num_without_effect(self) -> int:
        """The number of experts without which no class loses accuracy; they have no score."""
        return int((~self.has_effect).sum())

    @property
    def num_lost(self) -> Tensor:
        """How many correct predictions are lost without each expert, ``(N,)``, int64.

        Raises:
            ValueError: If there are no counts.
        """
        return self._counts()[0].sum(dim=-1)

    @property
    def concentration(self) -> Tensor:
        """The largest entry of ``d`` over its sum, ``(N,)``: 1 for an effect on one class; NaN without effect."""
        return self.accuracy_drop.amax(dim=-1) / self.accuracy_drop.sum(dim=-1)

    @property
    def effective_classes(self) -> Tensor:
        """How many classes an expert matters to: ``exp`` of the entropy of ``d / sum d``, ``(N,)``; NaN without effect.

        It is ``k`` where ``k`` classes lose the same share of their accuracy and the others none.
        """
        shares = self.accuracy_drop / self.accuracy_drop.sum(dim=-1, keepdim=True)
        found: Tensor = torch.special.entr(shares).sum(dim=-1).exp()
        return found

    def columns(self) -> dict[str, list[Any]]:
        """One row for each expert."""
        return {
            "expert": list(range(len(self.scores))),
            "polysemanticity": self.scores.tolist(),
            "most_affected_class": self.most_affected_class.tolist(),
            "largest_drop": self.accuracy_drop.amax(dim=-1).tolist(),
        }

    @property
    def mean(self) -> float:
        """The mean score of the experts that have an effect; NaN if none has."""
        return self.mean_score()

    def mean_score(self, without_effect: float | None = None) -> float:
        """The mean score under a stated rule for experts without effect, which can turn a comparison round.

        Args:
            without_effect: What an expert without effect scores: 1 is what the formula gives it, 0 calls it perfectly
                specialised. ``None``, the default, leaves it out.

        Raises:
            TypeError: If it is no number.

        Examples:
            >>> found = Polysemanticity.of_counts(torch.tensor([4, 4]), torch.tensor([[2, 4], [4, 4]]))
            >>> found.mean_score(), found.mean_score(1.0), found.mean_score(0.0)
            (0.5, 0.75, 0.25)
        """
        if without_effect is None:
            return float(self.scores[self.has_effect].mean())
        if not is_number(without_effect):
            raise TypeError(f"without_effect is a number, or None to leave such experts out, got {without_effect!r}")
        return float(torch.where(self.has_effect, self.scores, float(without_effect)).mean())

    @property
    def weighted_mean(self) -> float:
        """The mean score, each expert weighing as many samples as are lost without it; NaN if none are.

        An expert without effect weighs nothing, so no rule is needed for it.

        Raises:
            ValueError: If there are no counts.
        """
        weights = self.num_lost.double()
        return float((self.scores.nan_to_num() * weights).sum() / weights.sum())

    def null(self, draws: int = 20, seed: int = 0) -> Iterator[Polysemanticity]:
        """The same measure where chance says which samples an expert's removal loses.

        In each draw an expert loses as many samples as it really does, drawn without replacement from all samples that
        are predicted correctly, so that a class loses in proportion to what it has to lose. An expert that loses few
        samples scores near 1 by chance alone.

        Args:
            draws: How many.
            seed: The seed of the draws; torch's and NumPy's own generators stay as they are.

        Raises:
            TypeError: If an argument is no int.
            ValueError: If there are no counts, or ``draws`` is not positive.

        Examples:
            >>> found = Polysemanticity.of_counts(torch.tensor([50, 50]), torch.tensor([[0, 50]]))
            >>> [round(drawn.mean, 1) for drawn in found.null(draws=3)]  # half of each class, against all of one
            [0.7, 0.7, 0.7]
        """
        check_size("draws", draws)
        if not is_whole(seed):
            raise TypeError(f"seed is an int, got {seed!r}")
        lost, correct = self._counts()
        generator = np.random.default_rng(seed)
        sizes, totals = correct.cpu().numpy(), lost.sum(dim=-1).tolist()

        def draw() -> Polysemanticity:
            rows = [generator.multivariate_hypergeometric(sizes, total) for total in totals]
            return Polysemanticity._of_losses(correct, torch.from_numpy(np.stack(rows)).to(lost))

        return (draw() for _ in range(draws))

    def summary(self, draws: int = 20, seed: int = 0) -> PolysemanticitySummary:
        """The means under each rule for experts without effect, and the other measures, all beside the null.

        Args:
            draws: How many draws of the null.
            seed: Their seed.

        Raises:
            TypeError: If an argument is no int.
            ValueError: If there are no counts, or ``draws`` is not positive.

        Examples:
            >>> Polysemanticity.of_counts(torch.tensor([50, 50]), torch.tensor([[0, 50], [50, 50]])).summary(draws=10)
            measure            value   null  spread of the null
            mean               0.000  0.670               0.019
            mean_dead_one      0.500  0.835               0.010
            mean_dead_zero     0.000  0.335               0.010
            weighted_mean      0.000  0.670               0.019
            concentration      1.000  0.526               0.013
            effective_classes  1.000  1.997               0.003
            2 experts, 1 without effect; the null of 10 draws
        """
        drawn = [_means(null) for null in self.null(draws, seed)]
        beside = {
            name: BesideNull(value, torch.tensor([null[name] for null in drawn], dtype=torch.float64))
            for name, value in _means(self).items()
        }
        return PolysemanticitySummary(len(self.scores), self.num_without_effect, draws, **beside)

    def _counts(self) -> tuple[Tensor, Tensor]:
        if self.lost is None or self.correct is None:
            raise ValueError("this Polysemanticity is of accuracies; samples are known to one made by of_counts")
        return self.lost, self.correct


@dataclass(frozen=True, eq=False)
class PolysemanticitySummary(Measurement):
    """The polysemanticity of a mode's experts in single figures, each beside its null; its ``repr`` is a table.

    Attributes:
        num_experts: ``N``.
        num_without_effect: How many of them cost no class any accuracy.
        draws: The number of draws of the null.
        mean: The mean score of the experts with an effect: the library's convention.
        mean_dead_one: The mean over all experts, those without effect counting 1, as the formula has it.
        mean_dead_zero: The mean over all experts, those without effect counting 0.
        weighted_mean: The mean weighted by the samples lost without each expert.
        concentration: `Polysemanticity.concentration`, mean over the experts with an effect.
        effective_classes: `Polysemanticity.effective_classes`, mean over the experts with an effect.
    """

    num_experts: int
    num_without_effect: int
    draws: int
    mean: BesideNull
    mean_dead_one: BesideNull
    mean_dead_zero: BesideNull
    weighted_mean: BesideNull
    concentration: BesideNull
    effective_classes: BesideNull

    @property
    def measures(self) -> dict[str, BesideNull]:
        """The figures by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, BesideNull)}

    def columns(self) -> dict[str, list[Any]]:
        """One row for each figure."""
        found = self.measures
        return {
            "measure": list(found),
            "value": [each.value for each in found.values()],
            "null_mean": [each.null_mean for each in found.values()],
            "null_spread": [each.null_spread for each in found.values()],
        }

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name, each figure as a dictionary."""
        return super().to_dict() | {name: each.to_dict() for name, each in self.measures.items()}

    def __repr__(self) -> str:
        rows = [("measure", "value", "null", "spread of the null")]
        for name, value, mean, spread in zip(*self.columns().values(), strict=True):
            rows.append((name, f"{value:.3f}", f"{mean:.3f}", f"{spread:.3f}"))
        count = f"{self.num_experts:,} experts, {self.num_without_effect:,} without effect"
        return f"{text_table(rows, left=1)}\n{count}; the null of {self.draws:,} draws"


def _check_shapes(name: str, whole: Tensor, other: str, without: Tensor) -> None:
    """Refuse what are no values of each class, with all experts and without each."""
    if whole.ndim != 1 or without.ndim != 2 or without.shape[1] != len(whole) or not len(whole):
        raise ValueError(
            f"{name} has shape {tuple(whole.shape)} and {other} {tuple(without.shape)}, expected (C,) and (N, C): of "
            "each class with all experts, and without each expert in turn"
        )


def _scores(drop: Tensor) -> Tensor:
    largest = torch.nn.functional.one_hot(drop.argmax(dim=-1), drop.shape[-1])
    scores = torch.linalg.vector_norm(drop - largest, dim=-1)
    return torch.where((drop > 0).any(dim=-1), scores, math.nan)


def _means(found: Polysemanticity) -> dict[str, float]:
    return {
        "mean": found.mean_score(),
        "mean_dead_one": found.mean_score(1.0),
        "mean_dead_zero": found.mean_score(0.0),
        "weighted_mean": found.weighted_mean,
        "concentration": float(found.concentration.nanmean()),
        "effective_classes": float(found.effective_classes.nanmean()),
    }
