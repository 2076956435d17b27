"""Classes of samples: one of several ways to look at a recording.

Legend: ``n`` samples, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factorized_moe._scalars import is_whole
from factorized_moe._validation import check_strings

__all__ = ["LabelSet"]


@dataclass(frozen=True, eq=False)
class LabelSet:
    """The class of each sample in one respect, such as its composer or its key.

    Attributes:
        labels: The class of each sample, ``(n,)``, int64, from 0.
        class_names: The names of the classes; empty if they have none.

    Raises:
        TypeError: If the labels are no int64, or a name is no string.
        ValueError: If a label is negative or beyond the names.

    Examples:
        >>> keys = LabelSet.of("key", ["C", "G", "C"])
        >>> keys.labels.tolist(), keys.class_names
        ([0, 1, 0], ('C', 'G'))
    """

    labels: Tensor
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", check_strings("class_names", self.class_names))
        if not isinstance(self.labels, Tensor) or self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise TypeError("labels of a LabelSet are an int64 tensor (n,); LabelSet.of makes one of ints or strings")
        low, high = (int(end) for end in self.labels.aminmax()) if len(self.labels) else (0, -1)
        if low < 0:
            raise ValueError(f"label {low} is negative; classes are numbered from 0")
        if self.class_names and high >= len(self.class_names):
            raise ValueError(
                f"a sample has label {high}, but there are {len(self.class_names)} class names, for labels from 0"
            )

    @classmethod
    def of(cls, name: str, given: Tensor | Sequence[int] | Sequence[str], class_names: Sequence[str] = ()) -> LabelSet:
        """Labels as a user has them: ints from 0 of any shape, taken in order, or a string for each sample.

        Args:
            name: What the labels are called, for messages.
            given: The labels. Strings are the classes' names, numbered in alphabetical order.
            class_names: The names of the classes; with strings, the classes and their order.

        Raises:
            TypeError: If they are neither ints nor strings.
            ValueError: If one is negative, beyond the class names, or none of them.
        """
        names = check_strings("class_names", class_names)
        if not isinstance(given, Tensor) and len(given) and all(isinstance(each, str) for each in given):
            texts = [str(each) for each in given]
            names = names or tuple(sorted(set(texts)))
            number = {text: place for place, text in enumerate(names)}
            if unknown := sorted(set(texts) - number.keys()):
                raise ValueError(f"{name} has the label {unknown[0]!r}, which is none of the class names {list(names)}")
            return cls(torch.tensor([number[text] for text in texts]), names)
        try:
            tensor = torch.as_tensor(given).detach().cpu().reshape(-1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} are ints, or a string for each sample, got {type(given).__name__}") from error
        if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
            raise TypeError(f"{name} are ints, or a string for each sample, got {tensor.dtype}")
        return cls(tensor.to(torch.int64), names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, samples: Tensor) -> LabelSet:
        """Those of samples given by number or by a mask."""
        return LabelSet(self.labels[samples], self.class_names)

    def mask(self, *classes: int | str) -> Tensor:
        """Which samples are of one of these classes, ``(n,)``, bool: for `Recording.select`.

        Args:
            classes: Numbers or names of classes.

        Raises:
            ValueError: If a class has no such number or name.

        Examples:
            >>> LabelSet.of("key", ["C", "G", "C"]).mask("C").tolist()
            [True, False, True]
        """
        names = self.class_names
        numbers = []
        for given in classes:
            if given in names:
                numbers.append(names.index(str(given)))
            elif is_whole(given) and given >= 0 and (not names or given < len(names)):
                numbers.append(int(given))
            else:
                known = f"classes {', '.join(map(repr, names[:20]))}" if names else "classes by numbers from 0"
                raise ValueError(f"there is no class {given!r}; the label set has {known}")
        return torch.isin(self.labels, torch.tensor(numbers, dtype=torch.int64))

    def crossed(self, other: LabelSet) -> LabelSet:
        """The pairs of two label sets as classes, those of the other fastest: to group by a second variable.

        Args:
            other: Of the same samples.

        Returns:
            A label set of ``C * C'`` classes; counts by it are a grid after ``counts.unflatten(1, (C, C'))``.

        Raises:
            ValueError: If it is of another number of samples.

        Examples:
            >>> keys, composers = (
            ...     LabelSet.of("key", ["C", "G", "C"]),
            ...     LabelSet.of("composer", ["Bach", "Bach", "Ravel"]),
            ... )
            >>> pairs = keys.crossed(composers)
            >>> pairs.class_names, pairs.labels.tolist()
            (('C, Bach', 'C, Ravel', 'G, Bach', 'G, Ravel'), [0, 2, 1])
        """
        if len(self) != len(other):
            raise ValueError(f"label sets of {len(self):,} and {len(other):,} samples; cross two of one recording")
        mine, theirs = self.names(), other.names()
        return LabelSet(
            self.labels * len(theirs) + other.labels, tuple(f"{first}, {second}" for first in mine for second in theirs)
        )

    def names(self) -> tuple[str, ...]:
        """The classes' names; their numbers if they have none."""
        highest = int(self.labels.max()) if len(self.labels) else -1
        return self.class_names or tuple(map(str, range(highest + 1)))

    @classmethod
    def concatenate(cls, pieces: Sequence[LabelSet]) -> LabelSet:
        """Those of several recordings, one after the other; classes of one name are one class.

        Raises:
            ValueError: If some have class names and some have none.

        Examples:
            >>> both = LabelSet.concatenate([LabelSet.of("key", ["C"]), LabelSet.of("key", ["G", "C"])])
            >>> both.labels.tolist(), both.class_names
            ([0, 1, 0], ('C', 'G'))
        """
        if len({piece.class_names for piece in pieces}) == 1:
            return cls(torch.cat([piece.labels for piece in pieces]), pieces[0].class_names)
        if not all(piece.class_names for piece in pieces):
            raise ValueError("some of the label sets have class names and some have none; name the classes of all")
        names = tuple(dict.fromkeys(name for piece in pieces for name in piece.class_names))
        places = [torch.tensor([names.index(name) for name in piece.class_names]) for piece in pieces]
        return cls(torch.cat([place[piece.labels] for place, piece in zip(places, pieces, strict=True)]), names)
