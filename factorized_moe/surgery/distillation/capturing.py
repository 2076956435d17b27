"""What a module inside a model is given and gives, call by call, on real inputs.

Legend: ``*batch`` any leading shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._validation import check_batches

__all__ = ["Call", "capture", "output_error"]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module: its arguments, and the output it gave. Tensors are copies, without gradients.

    Attributes:
        arguments: The positional arguments.
        output: The output.
        keywords: The keyword arguments.
    """

    arguments: tuple[Any, ...]
    output: Tensor
    keywords: Mapping[str, Any] = field(default_factory=dict)

    def repeat(self, module: nn.Module) -> Tensor:
        """What another module gives for the same arguments.

        Args:
            module: The module.

        Raises:
            TypeError: If it does not give a tensor.
            ValueError: If the shape is not the output's.
        """
        y = module(*self.arguments, **self.keywords)
        if not isinstance(y, Tensor):
            raise TypeError(f"{type(module).__name__} gives {type(y).__name__} where the original gives a tensor")
        if y.shape != self.output.shape:
            raise ValueError(
                f"{type(module).__name__} gives shape {tuple(y.shape)}, the original gives {tuple(self.output.shape)}"
            )
        return y


def capture(model: nn.Module, name: str, batches: Iterable[Any]) -> Iterator[Call]:
    """Run a model in evaluation mode, without gradients, and yield each call of one of its modules.

    Args:
        model: The model. After each batch every module is in the mode that it was in.
        name: The module's name in the model, as in ``model.get_submodule(name)``; empty for the model itself.
        batches: What the model is called with: a mapping as keyword arguments, a tuple or list as positional ones,
            anything else as the one argument.

    Raises:
        TypeError: If ``batches`` is one tensor, or no iterable, or the module does not give a tensor.
        ValueError: If the model has no module of the name, or never calls it.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> calls = list(capture(model, "2", [torch.randn(5, 4), torch.randn(3, 4)]))
        >>> [(tuple(call.arguments[0].shape), tuple(call.output.shape)) for call in calls]
        [((5, 8), (5, 2)), ((3, 8), (3, 2))]
    """
    check_batches("batches", batches)
    check_names(model, [name])
    for batch in batches:
        yield from calls_of(model, [name], batch)[name]


@torch.no_grad()
def output_error(module: nn.Module, calls: Iterable[Call]) -> float:
    """How far a module's outputs are from those of the calls: ``sqrt(sum ||y' - y||^2 / sum ||y||^2)``.

    Args:
        module: The module, called with the calls' arguments, in evaluation mode.
        calls: The calls, from `capture`.

    Returns:
        The error, 0 for the same outputs and 1 for zeros.

    Raises:
        TypeError: If the module does not give a tensor.
        ValueError: If there is no call, or a shape differs.

    Examples:
        >>> original, other = nn.Linear(4, 2), nn.Linear(4, 2)
        >>> calls = list(capture(original, "", [torch.randn(5, 4)]))
        >>> output_error(original, calls), output_error(other, calls) > 0.1
        (0.0, True)
    """
    error = size = 0.0
    count = 0
    with in_evaluation_mode(module):
        for call in calls:
            count += 1
            exact = call.output.double()
            error += float((call.repeat(module).double() - exact).square().sum())
            size += float(exact.square().sum())
    if not count:
        raise ValueError("no calls to compare the outputs of; capture yields one for each batch")
    return (error / size) ** 0.5 if size else (float("inf") if error else 0.0)


def check_names(model: nn.Module, names: Iterable[str]) -> None:
    """Raise a ValueError if the model has no module of a name."""
    known = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        if name not in known:
            ending = name.rpartition(".")[2]
            near = [other for other in known if other and other.endswith(ending)][:3] or list(known)[1:4]
            raise ValueError(f"{type(model).__name__} has no module {name!r}; it has, for instance, {near}")


@torch.no_grad()
def calls_of(model: nn.Module, names: Sequence[str], batch: Any) -> dict[str, list[Call]]:
    """The calls of some modules in one call of the model, by name; at least one each.

    Raises:
        TypeError: If a module does not give a tensor.
        ValueError: If one is not called.
    """
    calls: dict[str, list[Call]] = {name: [] for name in names}
    handles = []

    def record(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            if not isinstance(output, Tensor):
                raise TypeError(f"module {name!r} gives {type(output).__name__}; expected one that gives a tensor")
            copied = {key: _copy(value) for key, value in keywords.items()}
            calls[name].append(Call(tuple(map(_copy, arguments)), _copy(output), copied))

        return hook

    try:
        for name in names:
            module = model.get_submodule(name)
            handles.append(module.register_forward_hook(record(name), with_kwargs=True))
        with in_evaluation_mode(model):
            call_model(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    for name in names:
        if not calls[name]:
            raise ValueError(f"the model did not call its module {name!r} for a batch; there is nothing to learn from")
    return calls


def call_model(model: nn.Module, batch: Any) -> Any:
    """A model's answer to a batch: a mapping of keyword arguments, a sequence of positional ones, or one argument."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a block, and each of its modules back into its own mode after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _copy(value: Any) -> Any:
    """A copy, because what follows a module may change its output in place."""
    return value.detach().clone() if isinstance(value, Tensor) else value
