"""The uMoE layers of a model by name, and the choice of some of them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from torch import nn

from factorized_moe._validation import check_strings
from factorized_moe.layers import ExpertLayer

__all__ = ["ROOT_NAME", "find_layers"]

ROOT_NAME = "model"
"""What a layer is called that is itself the model: torch names it by the empty string."""


def find_layers(model: nn.Module, layers: str | Sequence[str] | None = None) -> dict[str, ExpertLayer]:
    """The uMoE layers and blocks of a model that have expert modes, by their names in ``model.named_modules()``.

    A layer that occurs under several names has the first. A compiled model's layers have the names they had before.

    Args:
        model: A model, or a single layer, which is called ``"model"``.
        layers: Names, or patterns such as ``"blocks.*.mlp"``; one or a sequence of them. All layers by default. What is
            a layer's name stands for this layer alone, whatever signs are in it.

    Returns:
        The layers, in the order of the model's modules.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If there is no such layer, or a name or pattern matches none.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> model = nn.Sequential(CPMuMoE(8, 8, [4], rank=2), nn.GELU(), CPMuMoE(8, 3, [6, 5], rank=2))
        >>> list(find_layers(model)), list(find_layers(model, "2"))
        (['0', '2'], ['2'])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a torch.nn.Module, got {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps around a module
    found = {
        name or ROOT_NAME: module
        for name, module in model.named_modules()
        if isinstance(module, ExpertLayer) and module.expert_dims
    }
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no layer of experts (`ExpertLayer`) with an expert mode; a layer of "
            "factorized_moe.compat becomes one by its to_native()"
        )
    if layers is None:
        return found
    patterns = (layers,) if isinstance(layers, str) else check_strings("layers", layers)
    if not patterns:
        raise ValueError("layers names no layer; leave it out for all")
    for pattern in patterns:
        if not any(_matches(name, pattern, found) for name in found):
            near = difflib.get_close_matches(pattern, found, cutoff=0.4) or list(found)[:5]
            raise ValueError(f"no uMoE layer of the model is called {pattern!r}; near are {', '.join(map(repr, near))}")
    return {name: layer for name, layer in found.items() if any(_matches(name, pattern, found) for pattern in patterns)}


def _matches(name: str, pattern: str, names: Collection[str]) -> bool:
    return name == pattern if pattern in names else fnmatchcase(name, pattern)
