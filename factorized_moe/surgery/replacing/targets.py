"""Which modules of a model are meant: by path, by class or by a function; all that was asked for, or an error."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from factorized_moe._scalars import is_whole
from factorized_moe.layers import ExpertLayer
from factorized_moe.surgery.replacing.delta import MuMoEDelta
from factorized_moe.surgery.replacing.layouts import MLPLayout, child, find_layout, near_layout
from factorized_moe.surgery.replacing.linears import is_linear

__all__ = ["EXPERT_LAYERS", "Found", "Target", "find_targets", "is_mlp"]

Target = str | re.Pattern[str] | type[nn.Module] | Callable[[str, nn.Module], bool]
"""A glob pattern (its ``*`` matches dots too) or a compiled regular expression, for whole paths, a class, or a function
of a path and its module."""

EXPERT_LAYERS = (ExpertLayer, MuMoEDelta)
"""What is put into models."""


@dataclass(frozen=True)
class Found:
    """A module that can be replaced.

    Attributes:
        path: Its path in the model.
        module: The module.
        layout: The layout of an MLP; `None` for a linear layer.
    """

    path: str
    module: nn.Module
    layout: MLPLayout | None

    @property
    def linears(self) -> tuple[tuple[str, nn.Module], ...]:
        """The paths and modules of its linear layers."""
        if self.layout is None:
            return ((self.path, self.module),)
        return tuple((f"{self.path}.{path}", child(self.module, path)) for path in self.layout.linears)


def is_mlp(path: str, module: nn.Module) -> bool:
    """A target for `replace`: every MLP whose parts a registered layout names.

    Examples:
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> is_mlp("mlp", mlp), is_mlp("mlp.0", mlp[0])
        (True, False)
    """
    return find_layout(module) is not None


def find_targets(model: nn.Module, target: Target | Sequence[Target], last: int | None = None) -> tuple[Found, ...]:
    """The modules that a target means, in the model's order.

    Of modules within one another, the outermost is taken. A module that the model uses in several places is one.

    Args:
        model: The model.
        target: A target or several, each of which must be found.
        last: How many layers from the end, of each stack of numbered layers (``layers.0``, ``layers.1``, ..), to keep;
            all by default.

    Raises:
        TypeError: If a target is of no known kind.
        ValueError: If a target is not found, or only in part; the message gives what is near.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> [found.path for found in find_targets(model, nn.Linear, last=1)]
        ['2']
    """
    several = isinstance(target, Sequence) and not isinstance(target, str)
    targets: list[Any] = list(target) if several else [target]  # type: ignore[arg-type]  # a sequence of targets
    if not targets:
        raise ValueError("no target is given; name modules by a pattern, a class or a function")
    candidates, places = _replaceable(model)
    chosen: dict[str, Found] = {}
    seen: set[int] = set()
    for one in targets:
        for found in _one_target(one, candidates, places):
            if id(found.module) not in seen:  # a module in several places is one
                chosen[found.path] = found
                seen.add(id(found.module))
    taken: dict[str, str] = {}
    for found in chosen.values():
        for path in {found.path, *(path for path, _ in found.linears)}:
            if path in taken:
                raise ValueError(f"{path!r} would be replaced twice, with {taken[path]!r} and with {found.path!r}")
            taken[path] = found.path
    ordered = [chosen[path] for path in candidates if path in chosen]
    return tuple(ordered if last is None else _last_layers(ordered, last))


def _replaceable(model: nn.Module) -> tuple[dict[str, Found], dict[str, nn.Module]]:
    """What can be replaced, and all modules, by path."""
    places: dict[str, nn.Module] = {}
    candidates: dict[str, Found] = {}
    closed: list[str] = []  # what is within these is not ours to change
    for path, module in model.named_modules(remove_duplicate=False):
        if any(path.startswith(f"{prefix}.") for prefix in closed):
            continue
        places[path] = module
        if isinstance(module, EXPERT_LAYERS):
            closed.append(path)
        elif _reads_weights(model, path):
            continue
        elif is_linear(module):
            candidates[path] = Found(path, module, None)
        elif (layout := find_layout(module)) is not None:
            candidates[path] = Found(path, module, layout)
    return candidates, places


def _reads_weights(model: nn.Module, path: str) -> bool:
    """Whether the module's parent is one of torch's own that reads its children's weights instead of calling them."""
    parent = path.rpartition(".")[0]
    return isinstance(child(model, parent) if parent else model, nn.MultiheadAttention | nn.TransformerEncoderLayer)


def _one_target(target: Any, candidates: dict[str, Found], places: dict[str, nn.Module]) -> list[Found]:
    matches = _matcher(target)
    matched = [path for path, module in places.items() if matches(path, module)]
    found: list[str] = []
    for path in matched:  # outer modules come first
        if path in candidates and not any(_within(path, outer) for outer in found):
            found.append(path)
    shown = getattr(target, "__name__", None) or (target.pattern if isinstance(target, re.Pattern) else repr(target))
    if "" in found:
        raise ValueError(f"target {shown} means the model itself; use upcycle, which returns the new layer")
    rest = [path for path in matched if not any(path == f or _within(path, f) or _within(f, path) for f in found)]
    if not found:
        raise ValueError(f"target {shown} {_diagnosis(matched, target, candidates, places)}")
    if rest:
        listed = ", ".join(f"{path} ({type(places[path]).__name__})" for path in rest[:5])
        raise ValueError(
            f"target {shown} also means {len(rest)} modules that are neither linear layers nor known MLPs: {listed}; "
            "narrow the target, or describe the MLP with register_layout"
        )
    return [candidates[path] for path in found]


def _matcher(target: Any) -> Callable[[str, nn.Module], bool]:
    if isinstance(target, str):
        return lambda path, module: fnmatch.fnmatchcase(path, target)
    if isinstance(target, re.Pattern):
        return lambda path, module: target.fullmatch(path) is not None
    if isinstance(target, type) and issubclass(target, nn.Module):
        return lambda path, module: isinstance(module, target)
    if callable(target) and not isinstance(target, type):
        return lambda path, module: _answer(target(path, module), path)
    raise TypeError(
        f"a target is a pattern, a compiled regular expression, a class of modules or a function, got {target!r}"
    )


def _answer(value: Any, path: str) -> bool:
    if isinstance(value, Tensor):
        raise TypeError(f"a target's function returns True or False, got a tensor for {path!r}")
    return bool(value)


def _within(path: str, outer: str) -> bool:
    return path.startswith(f"{outer}.") or not outer


def _diagnosis(matched: list[str], target: Any, candidates: dict[str, Found], places: dict[str, nn.Module]) -> str:
    """Why nothing was found, with what is near."""
    if matched:
        listed = ", ".join(f"{path or 'the model'} ({type(places[path]).__name__})" for path in matched[:5])
        reason = f"means {listed}: neither a linear layer nor a known MLP"
    else:
        reason = "means no module"
    if not candidates:
        return f"{reason}; this model has nothing that can be replaced"
    if not isinstance(target, str | re.Pattern | type):
        near_misses = (near_layout(module) for module in places.values())
        if (why := next((found for found in near_misses if found is not None), None)) is not None:
            return f"{reason}: {why}; change its linear layers by their paths, or describe it with register_layout"
        if target is is_mlp:
            reason += ": no part is an MLP of a known layout"
    if isinstance(target, type):
        kinds = sorted({type(found.module).__name__ for found in candidates.values()})
        return f"{reason}; what can be replaced is of class {', '.join(kinds)}"
    asked = target if isinstance(target, str) else target.pattern if isinstance(target, re.Pattern) else ""
    near = difflib.get_close_matches(asked, candidates, n=3, cutoff=0.3) or list(candidates)[:3]
    return f"{reason}; what can be replaced is, for instance, {', '.join(near)}"


def _last_layers(ordered: list[Found], last: int) -> list[Found]:
    """Those of the last layers of each stack; a layer is the path up to its first number."""
    if not is_whole(last) or last < 1:
        raise ValueError(f"last is a positive int, got {last!r}")
    stacks: dict[str, list[str]] = {}
    layer_of: dict[str, str] = {}
    for found in ordered:
        number = re.search(r"(?:^|\.)\d+(?=\.|$)", found.path)
        if number is None:
            raise ValueError(f"last counts numbered layers, but {found.path!r} is in none; narrow the target")
        layer = layer_of[found.path] = found.path[: number.end()]
        layers = stacks.setdefault(found.path[: number.start()], [])
        if layer not in layers:
            layers.append(layer)
    for stack, layers in stacks.items():
        if len(layers) < last:
            raise ValueError(f"last is {last}, but only {len(layers)} layers of {stack or 'the model'!r} are meant")
    kept = {layer for layers in stacks.values() for layer in layers[-last:]}
    return [found for found in ordered if layer_of[found.path] in kept]
