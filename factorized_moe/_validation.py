"""Checks of what users pass in, made before any work: what was given, what was expected, where, what to do."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._scalars import is_number, is_whole
from factorized_moe.network import TensorNetwork

__all__ = [
    "check_alone",
    "check_batches",
    "check_call",
    "check_called_alone",
    "check_countable",
    "check_dense",
    "check_device",
    "check_dtype",
    "check_expert_dims",
    "check_expert_indices",
    "check_flag",
    "check_kind",
    "check_network",
    "check_path",
    "check_place",
    "check_seed",
    "check_size",
    "check_strings",
    "check_temperature",
    "check_values",
]


def check_call(
    x: Tensor, coefficients: Sequence[Tensor], in_features: int, expert_dims: tuple[int, ...], parameter: Tensor
) -> None:
    """Refuse an input and coefficients that do not fit a layer or each other.

    Args:
        x: The input, ``(*batch, I)``.
        coefficients: For each expert mode a tensor ``(*batch, N_k)``.
        in_features: The number of input features, ``I``.
        expert_dims: The sizes of the expert modes.
        parameter: One of the layer's parameters, for its type and device.

    Raises:
        TypeError: If dtypes or devices differ, or the coefficients are not a sequence of tensors.
        ValueError: If a shape does not fit.
    """
    # A tuple is what a gate returns; asking for the abstract class takes 5 times as long.
    if not isinstance(coefficients, (tuple, list, Sequence)) or not all(
        isinstance(a, Tensor) for a in (x, *coefficients)
    ):
        raise TypeError(
            "forward takes a tensor x and a sequence of coefficient tensors, one for each expert mode; "
            f"got {type(x).__name__} and {type(coefficients).__name__}; with one mode, write [coefficients], "
            "and let a gate return a tuple"
        )
    if x.is_nested or any(a.is_nested for a in coefficients):
        raise TypeError("x or coefficients are nested tensors; give padded or concatenated ones")
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, expected (*batch, {in_features}): the last axis is in_features"
        )
    if len(coefficients) != len(expert_dims):
        raise ValueError(
            f"got {len(coefficients)} coefficient tensors for {len(expert_dims)} expert modes "
            f"{expert_dims}; give one tensor for each mode"
        )
    batch = x.shape[:-1]
    mixed = x.dtype != parameter.dtype
    for mode, a in enumerate(coefficients):
        if a.shape != (*batch, expert_dims[mode]):
            raise ValueError(
                f"coefficients of expert mode {mode} have shape {tuple(a.shape)}, expected "
                f"{(*batch, expert_dims[mode])}: the leading shape of x, then the mode's experts"
            )
        mixed |= a.dtype != parameter.dtype
        if a.device != x.device:
            raise TypeError(f"x is on {x.device}, coefficients of expert mode {mode} on {a.device}; move one")
    if x.device != parameter.device:
        raise TypeError(f"x is on {x.device}, the parameters on {parameter.device}; move one")
    if mixed and not torch.is_autocast_enabled(x.device.type):
        dtypes = ", ".join(str(a.dtype) for a in coefficients)
        raise TypeError(
            f"x is {x.dtype}, coefficients are {dtypes or 'none'}, the parameters {parameter.dtype}; "
            "convert them to one dtype, or use torch.autocast"
        )


def check_alone(network: TensorNetwork, others: Sequence[object]) -> None:
    """Refuse what is no network, or arguments given beside one that says them.

    Args:
        network: A network written by hand.
        others: The arguments that it takes the place of; ``None`` where not given.

    Raises:
        TypeError: If it is not a network, or one of the others is given.
    """
    if not isinstance(network, TensorNetwork):
        raise TypeError(f"network is a TensorNetwork, for instance TensorNetwork.parse(text, sizes), got {network!r}")
    if any(other is not None for other in others):
        raise TypeError(
            "network says expert_dims, in_features, out_features, decomposition and rank; give none of them beside it"
        )


def check_expert_dims(expert_dims: Sequence[int] | None) -> tuple[int, ...]:
    """The sizes of the expert modes as ints.

    Raises:
        TypeError: If they are not a sequence of ints.
        ValueError: If one is not positive.
    """
    if isinstance(expert_dims, (str, bytes)) or not isinstance(expert_dims, Sequence):
        raise TypeError(f"expert_dims is a sequence with one int for each expert mode, got {expert_dims!r}")
    return tuple(check_size(f"expert_dims[{mode}]", size) for mode, size in enumerate(expert_dims))


def check_size(name: str, size: int | None) -> int:
    """A size as an int; ``name`` is what the message calls it.

    Raises:
        TypeError: If it is not an int.
        ValueError: If it is not positive.
    """
    if not is_whole(size):
        raise TypeError(f"{name} must be an int, got {size!r}")
    if size < 1:
        raise ValueError(f"{name} must be at least 1, got {size}")
    return int(size)


def check_countable(name: str, shape: Sequence[int]) -> None:
    """Refuse a tensor of more elements than torch counts: bytes in 64 bits with a sign, and up to eight an element.

    Args:
        name: What the message calls it.
        shape: Its shape.

    Raises:
        ValueError: If it has too many elements.
    """
    if math.prod(shape) >= 2**60:
        raise ValueError(
            f"{name} would have shape {tuple(shape)}, of more elements than a tensor can have; "
            "choose a smaller rank or smaller sizes"
        )


def check_flag(name: str, value: bool) -> bool:
    """True or False as it is; ``name`` is what the message calls it.

    Raises:
        TypeError: If it is anything else: a string such as ``"no"`` would count as true.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def check_kind(name: str, value: Any, kind: type[Any]) -> None:
    """Refuse what is of another class; ``name`` is what the message calls it.

    Raises:
        TypeError: If it is; the class itself is no instance of it.
    """
    if not isinstance(value, kind):
        given = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name} is a {kind.__name__}, got {given}")


def check_batches(name: str, batches: Any) -> None:
    """Refuse what is no iterable of batches, and one tensor, whose rows would pass for batches.

    Raises:
        TypeError: If it is such.
    """
    if isinstance(batches, Tensor):
        raise TypeError(f"{name} is one tensor; give an iterable of batches, such as inputs.split(1024)")
    check_kind(name, batches, Iterable)


def check_path(name: str, path: Any) -> Path:
    """A path; ``name`` is what the message calls it.

    Raises:
        TypeError: If it is neither a string nor a path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{name} is a path, got {type(path).__name__}")
    return Path(path)


def check_values(name: str, values: Any) -> None:
    """Refuse what is no tensor of real numbers that can be read one by one.

    Raises:
        TypeError: If it is none, or sparse, nested, complex or on the meta device.
    """
    check_kind(name, values, Tensor)
    if values.is_nested or values.layout is not torch.strided or values.is_meta or values.is_complex():
        kind = "nested" if values.is_nested else f"of {values.dtype}, {values.layout}, on {values.device}"
        raise TypeError(f"{name} is a dense tensor of real numbers that has values, got one {kind}")


def check_strings(name: str, given: Sequence[str]) -> tuple[str, ...]:
    """Strings as a tuple; ``name`` is what the message calls them.

    Raises:
        TypeError: If they are no sequence of strings: one string would count as one name for each letter.
    """
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(each, str) for each in given):
        raise TypeError(f"{name} is a sequence of strings, got {given!r}")
    return tuple(given)


def check_seed(seed: int) -> int:
    """A seed of torch's generators as an int.

    Raises:
        TypeError: If it is not an int.
        ValueError: If torch takes no such seed.
    """
    if not is_whole(seed):
        raise TypeError(f"seed is an int, got {seed!r}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed is an int from -2**63 to 2**64 - 1, got {seed}")
    return int(seed)


def check_temperature(temperature: float) -> float:
    """A gate's temperature as a float.

    Args:
        temperature: What logits are divided by.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is not finite and above 0.
    """
    if not is_number(temperature):
        raise TypeError(f"temperature is a number above 0, got {temperature!r}")
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature is a finite number above 0, got {temperature!r}")
    return float(temperature)


def check_place(device: torch.device | str | int | None) -> None:
    """Refuse a device that torch knows no name of.

    Raises:
        ValueError: If it is none.
    """
    try:
        if device is not None:
            torch.device(device)
    except (RuntimeError, TypeError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(
            f"device is a device of torch such as 'cpu' or 'cuda', or None, got {device!r}: {said}"
        ) from error


def check_device(device: torch.device | str) -> None:
    """Refuse a device that cannot hold values.

    Raises:
        ValueError: If it is the meta device.
    """
    if torch.device(device).type == "meta":
        raise ValueError("the meta device holds no values to fit or to compare; use another one, such as 'cpu'")


def check_dtype(dtype: torch.dtype | None) -> None:
    """Refuse what parameters cannot be of.

    Raises:
        TypeError: If it is not a real floating type of torch, or ``None``.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1):
        raise TypeError(
            f"dtype is a real floating type of 16 bits or more such as torch.float32, or None, got {dtype!r}"
        )


def check_network(network: TensorNetwork, shape: tuple[int, ...], source: object) -> None:
    """Refuse a network that a decomposition describes, if it is not what it was asked for.

    Args:
        network: What the decomposition's ``network`` returns.
        shape: The dense shape that it was asked for, ``(*expert_dims, I (+1), O)``.
        source: The decomposition, for the message.

    Raises:
        TypeError: If it is not a network.
        ValueError: If it is of another shape.
    """
    if not isinstance(network, TensorNetwork):
        raise TypeError(f"network() of {type(source).__name__} must return a TensorNetwork, got {network!r}")
    if network.shape != shape:
        raise ValueError(
            f"network() of {type(source).__name__} describes a tensor of shape {network.shape}, asked was {shape}; "
            f"use the sizes that it is given{_where_sizes_differ(network, shape)}"
        )


def _where_sizes_differ(network: TensorNetwork, shape: tuple[int, ...]) -> str:
    """The first label of a wrong size and a node that carries it, if there are as many modes as asked for."""
    if len(network.shape) != len(shape):
        return ""
    modes = (*((label,) for label in network.expert_labels), network.in_labels, network.out_labels)
    label = next(group[0] for group, mine, asked in zip(modes, network.shape, shape, strict=True) if mine != asked)
    node = next(node.name for node in network.nodes if label in node.labels)
    return f": label {label!r} of node {node!r} has another"


def check_expert_indices(indices: Sequence[int | None], expert_dims: Sequence[int]) -> dict[int, int]:
    """The expert that is chosen of each expert mode, from 0, by the mode; modes with ``None`` are left out."""
    if len(indices) > len(expert_dims):
        raise ValueError(f"{len(indices)} indices for {len(expert_dims)} expert modes {tuple(expert_dims)}")
    chosen: dict[int, int] = {}
    for mode, (index, size) in enumerate(zip(indices, expert_dims, strict=False)):
        if index is None:
            continue
        if not is_whole(index):
            raise TypeError(f"index of expert mode {mode} is an int or None, got {index!r}")
        if not -size <= index < size:
            raise ValueError(f"index {index} of expert mode {mode} is out of range for its {size} experts")
        chosen[mode] = int(index) % size
    return chosen


def check_called_alone(what: str, module: object) -> None:
    """Refuse a module whose call needs an argument, where it is called without any."""
    if not isinstance(module, nn.Module):
        return
    parameters = inspect.signature(module.forward).parameters.values()
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if needed:
        raise TypeError(
            f"{what} is called without arguments, but {type(module).__name__} needs {needed}: it cannot take its "
            "place; of PEFT, target_parameters reaches no factors; name linear layers in target_modules, the gate's "
            "'gate.projection' among them, and to train all experts the whole layer in modules_to_save"
        )


def check_dense(dense: Tensor, shape: tuple[int, ...] | None = None) -> None:
    """Refuse a dense tensor that cannot be approximated, or compared with one of a given shape.

    Args:
        dense: The tensor, ``(*expert_dims, I (+1), O)``.
        shape: The shape it must have; any of two or more modes by default.

    Raises:
        TypeError: If it is not a tensor of a real floating type.
        ValueError: If its shape does not fit, or it is on the meta device.
    """
    if not isinstance(dense, Tensor) or not dense.is_floating_point():
        kind = dense.dtype if isinstance(dense, Tensor) else type(dense).__name__
        raise TypeError(f"dense must be a tensor of a real floating type, got {kind}")
    if dense.is_nested:
        raise TypeError("dense is a nested tensor; give a padded one")
    if dense.layout is not torch.strided:
        raise TypeError(f"dense must hold all its entries, got a tensor of layout {dense.layout}; call to_dense()")
    check_device(dense.device)
    if dense.ndim < 2:
        raise ValueError(f"dense must be (*expert_dims, I, O), at least two modes, got shape {tuple(dense.shape)}")
    if shape is not None and dense.shape != shape:
        raise ValueError(f"dense has shape {tuple(dense.shape)}, expected that of the factorised tensor, {shape}")
