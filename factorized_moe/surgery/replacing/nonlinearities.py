"""The activations of MLPs as JSON and back. Only names from fixed tables are ever looked up: nothing unpickles."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._validation import check_countable

__all__ = ["ScaledSiLU", "build_nonlinearity", "describe_nonlinearity", "register_nonlinearity"]


class ScaledSiLU(nn.Module):
    """``x * sigmoid(scale * x)``, the activation of gpt-oss's experts.

    Args:
        scale: The factor; 1 for SiLU.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to a tensor of any shape."""
        return x * torch.sigmoid(self.scale * x)

    def extra_repr(self) -> str:
        """The factor."""
        return f"{self.scale}"


MODULES: dict[str, tuple[str, ...]] = {
    "Dropout": ("p",),
    "GELU": ("approximate",),
    "Hardswish": (),
    "Identity": (),
    "LeakyReLU": ("negative_slope",),
    "Mish": (),
    "PReLU": ("num_parameters",),
    "ReLU": (),
    "ReLU6": (),
    "SiLU": (),
    "Sigmoid": (),
    "Tanh": (),
}
"""Modules of `torch.nn`, with the attributes that are their constructors' arguments."""

OF_MODELS = {"bloom_gelu": ("transformers.models.bloom.modeling_bloom", "BloomGelu")}
"""Activations that a model of transformers has for itself: made without arguments, no parameters."""

_REGISTERED: dict[str, Callable[[Tensor], Tensor]] = {}


def register_nonlinearity(name: str, activation: Callable[[Tensor], Tensor]) -> None:
    """Let an activation of your own be written to files, by a name. Register it again before you load.

    Args:
        name: The name.
        activation: A function of a tensor, or a module without parameters; layers that are loaded share it.

    Raises:
        TypeError: If it is no function or module.
        ValueError: If the name is empty or taken, or the module has parameters.

    Examples:
        >>> def squared(x):
        ...     return x.relu() ** 2
        >>> register_nonlinearity("squared", squared)
        >>> describe_nonlinearity(squared)
        {'registered': 'squared'}
    """
    if isinstance(activation, type) or not callable(activation):
        raise TypeError(f"register_nonlinearity takes a function of a tensor or a module, got {activation!r}")
    if isinstance(activation, nn.Module) and any(True for _ in activation.parameters()):
        raise ValueError(f"{type(activation).__name__} has parameters, which all layers would share; give one without")
    if not isinstance(name, str) or not name or name in _REGISTERED:
        raise ValueError(f"an activation needs a name of its own, got {name!r}; taken are {', '.join(_REGISTERED)}")
    _REGISTERED[name] = activation


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
        activation: A module or a function of `MODULES` or `FUNCTIONS`, an activation of transformers, one that is
            registered, or an `nn.Sequential` of these.

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
    for name, registered in _REGISTERED.items():
        if activation is registered:
            return {"registered": name}
    if type(activation) is ScaledSiLU:
        return {"scaled_silu": activation.scale}
    name = type(activation).__name__
    if type(activation) is getattr(nn, name, None) and name in MODULES:
        arguments = {argument: getattr(activation, argument) for argument in MODULES[name]}
        _tried(name, arguments)  # such as a PReLU of many channels, whose place depends on the shape
        return {"module": name, "arguments": arguments, **_type_of(activation)}
    if type(activation) is nn.LayerNorm:
        sizes, affine = list(activation.normalized_shape), activation.elementwise_affine
        settings = {"eps": activation.eps, "elementwise_affine": affine, "bias": activation.bias is not None}
        return {"layer_norm": sizes, **settings, **_type_of(activation)}
    if type(activation).__module__.startswith("transformers."):
        for known, candidate in _transformers_activations().items():
            if _alike(candidate, activation):
                return {"transformers": known}
        for known, (home, kind) in OF_MODELS.items():
            if (type(activation).__module__, name) == (home, kind):
                return {"of_model": known}
        if name == "XIELUActivation":
            return {"xielu": activation.with_vector_loads, **_type_of(activation)}
    raise ValueError(
        f"activation {activation!r} cannot be written to a file; use one of torch.nn ({', '.join(MODULES)}), of "
        "torch.nn.functional or of transformers, or give yours a name with register_nonlinearity"
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
        case {"dtype": dtype, **rest}:
            if not isinstance(getattr(torch, str(dtype), None), torch.dtype):
                raise ValueError(f"unknown activation {description!r}: torch has no type {dtype!r}")
            typed = build_nonlinearity(rest)
            return typed.to(getattr(torch, str(dtype))) if isinstance(typed, nn.Module) else typed
        case {"layer_norm": [*sizes], **settings}:
            return _tried_norm(sizes, {str(name): value for name, value in settings.items()})
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
        case {"registered": str(name)}:
            if name in _REGISTERED:
                return _REGISTERED[name]
            raise ValueError(f"activation {name!r} is not registered; call register_nonlinearity first")
        case {"of_model": str(name)} if name in OF_MODELS:
            made: Callable[[Tensor], Tensor] = getattr(_of_transformers(OF_MODELS[name][0]), OF_MODELS[name][1])()
            return made
        case {"xielu": bool(vector_loads)}:
            kind = _of_transformers("transformers.activations").XIELUActivation
            xielu: nn.Module = kind(dtype=torch.float32, with_vector_loads=vector_loads)
            return xielu
        case {"scaled_silu": float(scale) | int(scale)} if not isinstance(scale, bool):
            return ScaledSiLU(scale)
    raise ValueError(f"unknown activation {description!r}")


def _type_of(activation: nn.Module) -> dict[str, str]:
    """The type of an activation's parameters, if it has some."""
    types = [str(parameter.dtype).removeprefix("torch.") for parameter in activation.parameters()]
    return {"dtype": types[0]} if types else {}


def _tried_norm(sizes: list[Any], settings: dict[str, Any]) -> nn.LayerNorm:
    kinds = {"eps": float, "elementwise_affine": bool, "bias": bool}
    well = all(type(size) is int and size > 0 for size in sizes) and settings.keys() == kinds.keys()
    if (
        not well
        or any(type(value) is not kinds[name] for name, value in settings.items())
        or not 0 < settings["eps"] < 1
    ):
        raise ValueError(f"a layer norm of sizes {sizes!r} with {settings!r} is none")
    check_countable("layer_norm", tuple(sizes))
    return nn.LayerNorm(sizes, device="meta", **settings)


def _tried(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A module of `torch.nn` that was seen to work: torch looks at some arguments only when it is called."""
    try:
        module: nn.Module = getattr(nn, name)(**arguments)
        with torch.random.fork_rng(devices=()), torch.device("cpu"), torch.no_grad():
            works = bool(module(torch.tensor([[-1.0], [0.0], [1.0]])).isfinite().all())
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"activation {name} with {arguments!r}: {' '.join(str(error).split())}") from error
    if not works:
        raise ValueError(f"activation {name} with {arguments!r} gives values that are not finite")
    return module


def _of_transformers(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError("this activation needs transformers: pip install transformers") from error


def _transformers_activations() -> dict[str, nn.Module]:
    """Those of transformers that are made without arguments and hold no parameters, by name."""
    table = _of_transformers("transformers.activations")
    names = [name for name, kind in table.ACT2CLS.items() if name not in ("prelu", "xielu") and kind is not None]
    return {name: table.ACT2FN[name] for name in names}


def _alike(first: nn.Module, second: nn.Module) -> bool:
    def settings(module: nn.Module) -> dict[str, Any]:
        values = {name: value for name, value in vars(module).items() if name[0] != "_" and name != "training"}
        return {name: _comparable(value) for name, value in values.items()}

    return type(first) is type(second) and settings(first) == settings(second)


def _comparable(value: Any) -> Any:
    """A partial as its parts, and a method without its object: neither is ever equal to another one."""
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    return getattr(value, "__func__", value)
