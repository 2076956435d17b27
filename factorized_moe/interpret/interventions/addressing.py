"""Which experts of which layer are meant: numbers and names as users give them, read and checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from factorized_moe._scalars import is_whole
from factorized_moe._validation import check_values
from factorized_moe.interpret.finding import find_layers
from factorized_moe.layers import ExpertLayer

__all__ = ["check_experts", "expert_numbers", "named_layers"]


def expert_numbers(caller: str, experts: int | Sequence[int] | Tensor, mode: int) -> tuple[int, ...]:
    """The numbers of experts: one or several, counted from 0.

    Args:
        caller: What messages call the function or class that they were given to.
        experts: The numbers.
        mode: The expert mode.

    Raises:
        TypeError: If an expert or the mode is not an int.
        ValueError: If no expert is given, or one is given twice.
    """
    if isinstance(experts, Tensor):
        check_values(f"{caller}: experts", experts)
    given = experts.tolist() if isinstance(experts, Tensor) else experts
    numbers = list(given) if isinstance(given, Iterable) else [given]
    for name, value in [*(("expert", n) for n in numbers), ("mode", mode)]:
        if not is_whole(value):
            raise TypeError(f"{caller}: {name} {value!r} is not an int; it is a number counted from 0")
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"{caller}: experts are one or several different numbers, got {numbers}")
    return tuple(int(n) for n in numbers)


def check_experts(caller: str, name: str, layer: ExpertLayer, mode: int, numbers: Sequence[int]) -> None:
    """Refuse a layer that has no such mode or no such expert.

    Args:
        caller: As for `expert_numbers`.
        name: The layer's name, for the message.
        layer: The layer.
        mode: The expert mode.
        numbers: The experts' numbers.

    Raises:
        ValueError: If the mode or an expert is out of range.
    """
    sizes = layer.expert_dims
    if not 0 <= mode < len(sizes):
        raise ValueError(
            f"{caller}: layer {name!r} has expert modes of sizes {sizes}, counted from 0; there is no mode {mode}"
        )
    outside = [n for n in numbers if not 0 <= n < sizes[mode]]
    if outside:
        raise ValueError(
            f"{caller}: expert {outside[0]} is out of range for the {sizes[mode]} experts of "
            f"mode {mode} of layer {name!r}, counted from 0"
        )


def named_layers(caller: str, model: nn.Module, layer: str | None) -> dict[str, ExpertLayer]:
    """The layers of a name or a pattern; without one the only layer.

    Args:
        caller: As for `expert_numbers`.
        model: The model.
        layer: The name or pattern.

    Raises:
        TypeError: If the model is no module.
        ValueError: If there is no such layer, or several and no name is given.
    """
    found = find_layers(model, layer)
    if layer is None and len(found) > 1:
        names = ", ".join(map(repr, found))
        raise ValueError(f"{caller}: the model has {len(found)} uMoE layers; give layer=, one of {names}")
    return found
