"""Putting layers of experts into an existing model: all that was asked for, or nothing and an error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from factorized_moe._text_tables import text_table
from factorized_moe._validation import check_flag
from factorized_moe.layers import ExpertLayer
from factorized_moe.spread import is_spread
from factorized_moe.surgery.config import MuMoEConfig
from factorized_moe.surgery.replacing.delta import MuMoEDelta, freeze_base, set_to_zero
from factorized_moe.surgery.replacing.layouts import Merged
from factorized_moe.surgery.replacing.linears import read_linears
from factorized_moe.surgery.replacing.swapping import installed
from factorized_moe.surgery.replacing.targets import Found, Target, find_targets
from factorized_moe.surgery.replacing.upcycling import build_layer, fill_layer, merged_activation
from factorized_moe.surgery.saving.announcing import announce
from factorized_moe.surgery.saving.describing import describe

__all__ = ["Replacement", "ReplacementReport", "replace"]


@dataclass(frozen=True)
class Replacement:
    """One module that was replaced.

    Attributes:
        path: Its path in the model.
        kind: The class of the layer of experts.
        parameters_before: How many parameters it had.
        parameters_after: How many there are in its place, frozen ones included.
        errors: For each of its linear layers, how far the mean of the experts is from it, as `Upcycled.errors` says;
            empty if the layer does not start from pretrained weights.
    """

    path: str
    kind: str
    parameters_before: int
    parameters_after: int
    errors: tuple[float, ...]


@dataclass(frozen=True)
class ReplacementReport:
    """What `replace` has done; printed, a table.

    Attributes:
        replacements: What was replaced, in the model's order.
        parameters_before: How many parameters the model had; a shared one counts once.
        parameters_after: How many it has.
    """

    replacements: tuple[Replacement, ...]
    parameters_before: int
    parameters_after: int

    def __str__(self) -> str:
        rows = [("path", "layer", "before", "after", "error")]
        for one in self.replacements:
            error = f"{max(one.errors):.2e}" if one.errors else "-"
            rows.append((one.path, one.kind, f"{one.parameters_before:,}", f"{one.parameters_after:,}", error))
        rows.append(("model", "", f"{self.parameters_before:,}", f"{self.parameters_after:,}", ""))
        return text_table(rows)


def replace(
    model: nn.Module,
    target: Target | Sequence[Target],
    config: MuMoEConfig,
    *,
    last: int | None = None,
    delta: bool = False,
) -> ReplacementReport:
    """Put layers of experts into a model, in place of linear layers and of MLPs.

    A linear layer (`nn.Linear`, transformers' ``Conv1D``) becomes a `MuMoE`. An MLP of a registered `MLPLayout` becomes
    a `MuMoEBlock`, or a `GatedMuMoEBlock` if it is a gated one, with one gate for its layers. Everything else, such as
    dropout and normalisation, stays. All new layers are made before the first is put in place, so an error leaves the
    model as it was.

    Args:
        model: The model; it is changed.
        target: Which modules: a glob pattern or a compiled regular expression for their paths, a class, a function of
            path and module such as `is_mlp`, or several of these, each of which must be found.
        config: What layers they become.
        last: How many numbered layers from the end of each stack to change; all by default.
        delta: Whether to keep what is there, freeze the whole model, and put a layer of experts that starts at zero
            beside each linear layer, those of an MLP included.

    Returns:
        What was replaced.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a target is not found, or only in part, or a layer cannot be made, or the model is spread over
            ranks already; the model is as it was.

    Examples:
        >>> mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        >>> model = nn.Sequential(nn.Linear(8, 16), mlp, nn.Linear(16, 4))
        >>> report = replace(model, "1", MuMoEConfig(expert_dims=(4,), rank=16))
        >>> [(one.path, one.kind, one.parameters_before, one.parameters_after) for one in report.replacements]
        [('1', 'MuMoEBlock', 1072, 1760)]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a torch module, got {type(model).__name__}")
    if not isinstance(config, MuMoEConfig):
        raise TypeError(f"config is a MuMoEConfig, got {type(config).__name__}")
    check_flag("delta", delta)
    spread = next((name for name, parameter in model.named_parameters() if is_spread(parameter)), None)
    if spread is not None:
        raise ValueError(
            f"parameter {spread!r} is a DTensor: the model is spread over ranks already; call replace first, then "
            "factorized_moe.parallel.shard and fully_shard"
        )
    found = find_targets(model, target, last)
    before = _count(model.parameters())
    changes: dict[str, nn.Module] = {}
    replacements = []
    generator = torch.Generator().manual_seed(int(config.seed))
    for one in _linears_of(found) if delta else found:
        try:
            layer, errors = _make(one, config, generator, delta)
        except ValueError as error:
            raise ValueError(f"{one.path}: {error}") from error
        own = _count(p for _, linear in one.linears for p in linear.parameters())
        kept = own if delta else 0
        replacements.append(Replacement(one.path, type(layer).__name__, own, _count(layer.parameters()) + kept, errors))
        changes |= _changes(model, one, layer, delta)
    with installed(model, changes):
        announce(model)
        if delta:
            freeze_base(model)
    return ReplacementReport(tuple(replacements), before, _count(model.parameters()))


def _linears_of(found: Sequence[Found]) -> list[Found]:
    linears: dict[int, Found] = {}
    for one in found:
        for path, linear in one.linears:  # a shared one counts once
            linears.setdefault(id(linear), Found(path, linear, None))
    return list(linears.values())


def _make(
    found: Found, config: MuMoEConfig, generator: torch.Generator, delta: bool
) -> tuple[ExpertLayer, tuple[float, ...]]:
    """The layer of experts for one module, and its errors."""
    if found.layout is None:
        linears, activation = [found.module], None
        weights = read_linears(linears)
    else:
        activation = merged_activation(found.module, found.layout)
        linears, weights = found.layout.read(found.module)
    replaced = _count(p for _, linear in found.linears for p in linear.parameters())
    options = {
        "rank": config.size_for(replaced),
        "gate": config.gate,
        "gate_norm": config.gate_norm,
        "gate_temperature": config.gate_temperature,
        "gate_rank": config.gate_rank,
        "init": config.init,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        layer = build_layer(weights, activation, config.expert_dims, config.decomposition, **options)
    describe(layer)  # what cannot be saved is refused before anything is changed
    errors: tuple[float, ...] = ()
    if delta:
        for experts in layer.expert_tensors.values():
            set_to_zero(experts)
    elif config.pretrained:
        errors = fill_layer(layer, linears, weights, config.noise, generator)
    return layer.train(found.module.training), errors


def _changes(model: nn.Module, found: Found, layer: ExpertLayer, delta: bool) -> dict[str, nn.Module]:
    """What goes where; a module that the model holds in several places is changed in each."""
    if found.layout is not None and found.layout.block:
        passed = {f"{found.path}.{path}": Merged() for path in found.layout.passed}
        return {f"{found.path}.{found.layout.block}": layer, **passed}
    new = MuMoEDelta(found.module, layer) if delta else layer  # type: ignore[arg-type]  # of a linear layer, a MuMoE
    places = [path for path, module in model.named_modules(remove_duplicate=False) if module is found.module]
    return dict.fromkeys(places, new)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
