"""The activations of MLPs as JSON and back. Only names from fixed tables are ever looked up: nothing unpickles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["build_nonlinearity", "describe_nonlinearity"]

MODULES: dict[str, tuple[str, ...]] = {
    "Dropout": ("p",),
    "GELU": ("approximate",),
    "Hardswish": (),
    "Identity": (),
    "LeakyReLU": ("negative_slope",),
    "Mish": (),
    "ReLU": (),
    "SiLU": (),
    "Sigmoid": (),
    "Tanh": (),
}
"""Modules of `torch.nn`, with the attributes that are their constructors' arguments."""

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "relu": nn.functional.relu,
    "sigmoid": torch.sigmoid,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}
"""Functions, by a name of our own."""


def describe_nonlinearity(activation: Any) -> dict[str, Any]:
    """An activation as JSON.

    Args:
        activation: A module or a function of `MODULES` or `FUNCTIONS`, an activation of transformers, or an
            `nn.Sequential` of these.

    Raises:
        ValueError: If it is anything else.

    Examples:
        >>> describe_nonlinearity(nn.GELU(approximate="tanh"))
        {'module': 'GELU', 'arguments': {'approximate': 'tanh'}}
    """
    if type(activation) is nn.Sequential:
        return {"sequence": [describe_nonlinearity(part) for part in activation]}
    for name, function in FUNCTIONS.items():
        if activation is function:
            return {"function": name}
    name = type(activation).__name__
    if type(activation) is getattr(nn, name, None) and name in MODULES:
        arguments = {argument: getattr(activation, argument) for argument in MODULES[name]}
        return {"module": name, "arguments": arguments}
    if type(activation).__module__.startswith("transformers."):
        for known, candidate in _transformers_activations().items():
            if _alike(candidate, activation):
                return {"transformers": known}
    raise ValueError(
        f"activation {activation!r} cannot be written to a file; use one of torch.nn ({', '.join(MODULES)}), of "
        "torch.nn.functional or of transformers"
    )


def build_nonlinearity(description: Any) -> Callable[[Tensor], Tensor]:
    """The activation that `describe_nonlinearity` described.

    Raises:
        ImportError: If it needs transformers, which is not installed.
        ValueError: If the description names nothing that is known.

    Examples:
        >>> build_nonlinearity({"module": "GELU", "arguments": {"approximate": "tanh"}})
        GELU(approximate='tanh')
    """
    match description:
        case {"sequence": [*parts]}:
            built = [build_nonlinearity(part) for part in parts]
            if all(isinstance(part, nn.Module) for part in built):
                return nn.Sequential(*built)  # type: ignore[no-any-return, call-overload]  # modules, all
        case {"function": str(name)} if name in FUNCTIONS:
            return FUNCTIONS[name]
        case {"module": str(name), "arguments": dict(arguments)} if set(arguments) == set(MODULES.get(name, "?")):
            return _tried(name, arguments)
        case {"transformers": str(name)} if name in (known := _transformers_activations()):
            return known[name]
    raise ValueError(f"unknown activation {description!r}")


def _tried(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A module of `torch.nn` that was seen to work: torch looks at some arguments only when it is called."""
    try:
        module: nn.Module = getattr(nn, name)(**arguments)
        with torch.random.fork_rng(devices=()), torch.device("cpu"), torch.no_grad():
            works = bool(module(torch.tensor([-1.0, 0.0, 1.0])).isfinite().all())
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"activation {name} with {arguments!r}: {' '.join(str(error).split())}") from error
    if not works:
        raise ValueError(f"activation {name} with {arguments!r} gives values that are not finite")
    return module


def _transformers_activations() -> dict[str, nn.Module]:
    """Those of transformers that are made without arguments and hold no parameters, by name."""
    try:
        from transformers.activations import ACT2CLS, ACT2FN
    except ImportError as error:
        raise ImportError("this activation needs transformers: pip install transformers") from error
    names = [name for name, kind in ACT2CLS.items() if name not in ("prelu", "xielu") and kind is not None]
    return {name: ACT2FN[name] for name in names}


def _alike(first: nn.Module, second: nn.Module) -> bool:
    def settings(module: nn.Module) -> dict[str, Any]:
        return {name: value for name, value in vars(module).items() if name[0] != "_" and name != "training"}

    return type(first) is type(second) and settings(first) == settings(second)
