"""Interventions: what a model would do if some experts' coefficients, or what they add to the output, were others.

Each intervention is a function of the coefficients of one expert mode, applied by a forward hook on the layer's gate,
or of the layer's output, applied by a forward hook on the layer. Nothing else of the model is touched.

Legend: ``*batch`` any leading shape, ``N`` experts of one mode, ``O`` out_features, ``a_n`` expert n's coefficient.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._scalars import is_number, is_whole
from factorized_moe._validation import check_values
from factorized_moe.interpret.interventions.addressing import check_experts, expert_numbers
from factorized_moe.layers import ExpertLayer
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = [
    "Ablate",
    "Add",
    "Bias",
    "CoefficientIntervention",
    "Force",
    "Intervention",
    "Scale",
    "Swap",
]


@dataclass(frozen=True)
class Intervention(ABC):
    """A change of some experts of one expert mode. Put it in force with `factorized_moe.interpret.intervene`.

    Args:
        experts: The experts' numbers in their mode, counted from 0: one or several, also as a tensor such as
            ``load.dead()``.
        layer: The layer's name in ``model.named_modules()``, or a pattern such as ``"blocks.*.mlp"`` for several
            layers; not needed where the model has only one.
        mode: The expert mode, counted from 0.

    Raises:
        TypeError: If an expert or the mode is not an int.
        ValueError: If no expert is given, or one is given twice.
    """

    experts: int | Sequence[int] | Tensor
    layer: str | None = field(default=None, kw_only=True)
    mode: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "experts", expert_numbers(type(self).__name__, self.experts, self.mode))

    @property
    def numbers(self) -> tuple[int, ...]:
        """The experts' numbers as a tuple."""
        assert isinstance(self.experts, tuple)  # made one at construction
        return self.experts

    def check(self, name: str, layer: ExpertLayer) -> None:
        """Refuse a layer that has no such mode or no such expert.

        Args:
            name: The layer's name, for the message.
            layer: The layer.

        Raises:
            ValueError: If the mode, an expert or an output is out of range.
        """
        check_experts(type(self).__name__, name, layer, self.mode, self.numbers)

    @abstractmethod
    def attach(self, layer: ExpertLayer, undo: ExitStack) -> None:
        """Register the hooks on a layer.

        Args:
            layer: The layer.
            undo: Takes the callbacks that remove them.
        """

    def _index(self, like: Tensor) -> Tensor:
        return torch.tensor(self.numbers, device=like.device)


@dataclass(frozen=True)
class CoefficientIntervention(Intervention):
    """A change of coefficients: a function of those of one expert mode, applied to the gate's output."""

    @abstractmethod
    def change(self, coefficients: Tensor) -> Tensor:
        """The changed coefficients.

        Args:
            coefficients: Those of the expert mode, ``(*batch, N)``; they are not written to.

        Returns:
            The changed ones, ``(*batch, N)``.
        """

    def attach(self, layer: ExpertLayer, undo: ExitStack) -> None:
        """Register the hook on the layer's gate."""
        undo.callback(layer.gate.register_forward_hook(self._at_gate).remove)

    # A method, not a closure: with the model it is copied and pickled.
    def _at_gate(self, module: nn.Module, inputs: object, output: Sequence[Tensor]) -> tuple[Tensor, ...]:
        changed = list(output)
        changed[self.mode] = self.change(changed[self.mode])
        return tuple(changed)


@dataclass(frozen=True)
class Ablate(CoefficientIntervention):
    """Take experts out: ``a_n = 0``, the others kept and not renormalised.

    The same as weights of 0 for these experts: the counterfactual of Oldfield et al. 2024 (arXiv 2402.12550).

    Examples:
        >>> Ablate([0, 2]).change(torch.tensor([0.25, 0.25, 0.5]))
        tensor([0.0000, 0.2500, 0.0000])
    """

    def change(self, coefficients: Tensor) -> Tensor:
        """``a_n = 0``."""
        return coefficients.index_fill(-1, self._index(coefficients), 0.0)


@dataclass(frozen=True)
class Scale(CoefficientIntervention):
    """Multiply experts' coefficients: ``a_n * factor``, the others kept.

    Args:
        experts: As for `Intervention`.
        factor: The factor.

    Raises:
        ValueError: If the factor is not finite.

    Examples:
        >>> Scale(1, 2.0).change(torch.tensor([0.25, 0.25, 0.5]))
        tensor([0.2500, 0.5000, 0.5000])
    """

    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number(self, "factor", self.factor)

    def change(self, coefficients: Tensor) -> Tensor:
        """``a_n * factor``."""
        factors = coefficients.new_ones(coefficients.shape[-1])
        return coefficients * factors.index_fill(0, self._index(coefficients), self.factor)


@dataclass(frozen=True, eq=False)
class Force(CoefficientIntervention):
    """Give experts a coefficient: ``a_n = value``, the others kept and not renormalised.

    Args:
        experts: As for `Intervention`.
        value: The coefficient, a number for every input, or a tensor that broadcasts to ``(*batch, experts)``: of shape
            ``(tokens, 1)``, one for each position of a sequence.

    Raises:
        TypeError: If the value is no number and no tensor of numbers.
        ValueError: If the value is not finite, or a tensor does not fit the coefficients when the model runs.

    Examples:
        >>> Force(0, 1.0).change(torch.tensor([0.25, 0.25, 0.5]))
        tensor([1.0000, 0.2500, 0.5000])
        >>> Force(0, torch.tensor([[1.0], [0.0]])).change(torch.full((2, 2), 0.5))
        tensor([[1.0000, 0.5000],
                [0.0000, 0.5000]])
    """

    value: float | Tensor = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_values(self, "value", self.value)

    def change(self, coefficients: Tensor) -> Tensor:
        """``a_n = value``."""
        values = _for_experts(self, "value", self.value, coefficients)
        return coefficients.index_copy(-1, self._index(coefficients), values)


@dataclass(frozen=True, eq=False)
class Add(CoefficientIntervention):
    """Add to experts' coefficients: ``a_n + amount``, the others kept.

    Args:
        experts: As for `Intervention`.
        amount: What is added, as for `Force`: a number, or a tensor with a value for each position.

    Raises:
        TypeError: As for `Force`.
        ValueError: As for `Force`.

    Examples:
        >>> Add(2, 1.5).change(torch.tensor([0.25, 0.25, 0.5]))
        tensor([0.2500, 0.2500, 2.0000])
    """

    amount: float | Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_values(self, "amount", self.amount)

    def change(self, coefficients: Tensor) -> Tensor:
        """``a_n + amount``."""
        amounts = _for_experts(self, "amount", self.amount, coefficients)
        return coefficients.index_add(-1, self._index(coefficients), amounts)


@dataclass(frozen=True)
class Swap(CoefficientIntervention):
    """Exchange two experts' coefficients for every input, as if their weights had changed places.

    Raises:
        ValueError: If they are not two experts.

    Examples:
        >>> Swap((0, 2)).change(torch.tensor([0.2, 0.3, 0.5]))
        tensor([0.5000, 0.3000, 0.2000])
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.numbers) != 2:
            raise ValueError(f"Swap: experts are the two to exchange, got {list(self.numbers)}")

    def change(self, coefficients: Tensor) -> Tensor:
        """``a_m`` and ``a_n`` exchanged."""
        order = list(range(coefficients.shape[-1]))
        first, second = self.numbers
        order[first], order[second] = second, first
        return coefficients.index_select(-1, torch.tensor(order, device=coefficients.device))


@dataclass(frozen=True, eq=False)
class Bias(Intervention):
    """Give experts a bias of their own on chosen outputs: ``y_o + sum_n a_n * amount[n, o]``.

    The coefficients are those that the layer computes with, other interventions included.

    Args:
        experts: As for `Intervention`.
        amount: What an expert adds to an output where its coefficient is 1: a number, or a tensor that broadcasts to
            ``(experts, outputs)``.
        outputs: The outputs' numbers, counted from 0; all by default.

    Raises:
        TypeError: If an output is not an int.
        ValueError: If an amount is not finite or its shape does not fit; an output is given twice.

    Examples:
        Expert 3 pulls the first of three logits up.

        >>> from factorized_moe import CPMuMoE
        >>> from factorized_moe.interpret import intervene
        >>> layer, x = CPMuMoE(8, 3, expert_dims=[4], rank=2, gate_norm=None), torch.randn(5, 8)
        >>> with torch.no_grad(), intervene(layer, Bias(3, 2.0, outputs=[0])):
        ...     changed = layer(x)
        >>> (changed - layer(x)).round(decimals=3)[0].tolist()  # an untrained gate gives 1/4 to each expert
        [0.5, 0.0, 0.0]
    """

    amount: float | Tensor
    outputs: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.amount, Tensor):
            check_values("Bias: amount", self.amount)
        elif not is_number(self.amount):
            raise TypeError(f"Bias: amount is a number or a tensor, got {self.amount!r}")
        if not torch.as_tensor(self.amount).isfinite().all():
            raise ValueError(f"Bias: amount must be finite, got {self.amount}")
        if self.outputs is not None:
            if isinstance(self.outputs, type) or not isinstance(self.outputs, Iterable):
                raise TypeError(f"Bias: outputs are ints counted from 0, got {self.outputs!r}")
            given = list(self.outputs)
            if not all(is_whole(o) for o in given):
                raise TypeError(f"Bias: outputs are ints counted from 0, got {given}")
            if not given or len(set(given)) < len(given):
                raise ValueError(f"Bias: outputs are one or several different numbers, got {given}")
            object.__setattr__(self, "outputs", tuple(int(o) for o in given))

    def check(self, name: str, layer: ExpertLayer) -> None:
        """Refuse a layer that has no such mode, expert or output, or that the amount does not fit."""
        super().check(name, layer)
        size = _last_experts(layer).out_features
        outside = [o for o in self.outputs or () if not 0 <= o < size]
        if outside:
            raise ValueError(
                f"Bias: output {outside[0]} is out of range for the {size} outputs of layer {name!r}, counted from 0"
            )
        expected = (len(self.numbers), size if self.outputs is None else len(self.outputs))
        given = tuple(torch.as_tensor(self.amount).shape)
        if len(given) > 2 or any(m not in (1, n) for m, n in zip(given[::-1], expected[::-1], strict=False)):
            raise ValueError(
                f"Bias: amount has shape {given}, which does not broadcast to {expected}: experts, then outputs"
            )

    def attach(self, layer: ExpertLayer, undo: ExitStack) -> None:
        """Register a hook that sees the coefficients, and one that adds to the output."""
        hooks = _BiasHooks(self)
        undo.callback(_last_experts(layer).register_forward_pre_hook(hooks.look).remove)
        undo.callback(layer.register_forward_hook(hooks.add).remove)

    def add_to(self, output: Tensor, coefficients: Tensor) -> Tensor:
        """The changed output.

        Args:
            output: The layer's, ``(*batch, O)``; it is not written to.
            coefficients: Those of the expert mode, ``(*batch, N)``.

        Returns:
            ``(*batch, O)``.
        """
        mine = coefficients.index_select(-1, self._index(output))  # (*batch, experts)
        chosen = range(output.shape[-1]) if self.outputs is None else self.outputs
        amount = torch.as_tensor(self.amount, device=output.device, dtype=output.dtype)
        added = mine.to(output.dtype) @ amount.expand(len(self.numbers), len(chosen))  # (*batch, outputs)
        return output.index_add(-1, torch.tensor(chosen, device=output.device), added)


class _BiasHooks:
    """The two hooks of a bias on one layer; with the model they are copied and pickled."""

    def __init__(self, bias: Bias) -> None:
        self._bias = bias
        self._call = threading.local()  # the layer's call that is under way: every thread has its own

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._bias,)

    def look(self, module: nn.Module, arguments: tuple[Tensor, Sequence[Tensor]]) -> None:
        self._call.coefficients = arguments[1][self._bias.mode]

    def add(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return self._bias.add_to(output, vars(self._call).pop("coefficients"))


def _last_experts(layer: ExpertLayer) -> FactorizedExpertTensor:
    return list(layer.expert_tensors.values())[-1]


def _check_number(intervention: Intervention, name: str, value: float) -> None:
    if not is_number(value):
        raise TypeError(f"{type(intervention).__name__}: {name} is a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{type(intervention).__name__}: {name} must be finite, got {value}")


def _check_values(intervention: Intervention, name: str, value: float | Tensor) -> None:
    if not isinstance(value, Tensor):
        _check_number(intervention, name, value)
        return
    check_values(f"{type(intervention).__name__}: {name}", value)
    if not value.isfinite().all():
        raise ValueError(f"{type(intervention).__name__}: {name} must be finite, and a value of the tensor is not")


def _for_experts(intervention: Intervention, name: str, value: float | Tensor, coefficients: Tensor) -> Tensor:
    """A value for each position and changed expert, ``(*batch, experts)``."""
    shape = (*coefficients.shape[:-1], len(intervention.numbers))
    given = torch.as_tensor(value, device=coefficients.device, dtype=coefficients.dtype)
    if given.ndim > len(shape) or any(m not in (1, n) for m, n in zip(given.shape[::-1], shape[::-1], strict=False)):
        raise ValueError(
            f"{type(intervention).__name__}: {name} has shape {tuple(given.shape)}, which does not broadcast to "
            f"{shape}: positions, then experts"
        )
    return given.expand(shape)
