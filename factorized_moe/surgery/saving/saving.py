"""Changed models, and single layers of experts, to a folder and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._validation import check_flag, check_path
from factorized_moe.layers import ExpertLayer
from factorized_moe.spread import gathered_state, is_first
from factorized_moe.surgery.replacing.delta import MuMoEDelta, freeze_base
from factorized_moe.surgery.replacing.layouts import child
from factorized_moe.surgery.replacing.swapping import installed
from factorized_moe.surgery.saving.announcing import announce
from factorized_moe.surgery.saving.describing import (
    build_layer_from,
    describe,
    describe_gate,
    described_modules,
    empty_module,
    rebuild,
)
from factorized_moe.surgery.saving.folder import CONFIG, WEIGHTS, digest, read_folder, write_folder

__all__ = ["from_pretrained", "load", "save", "save_pretrained"]


def save(model: nn.Module, folder: str | Path, *, only_experts: bool = False) -> None:
    """Write a model that has layers of experts in it: what they are as JSON, the numbers as safetensors.

    An interrupted call leaves what an earlier one wrote. Of a model that is spread over ranks
    (`factorized_moe.parallel`, FSDP2), every rank calls it, and the first one writes what one process would write.

    Args:
        model: The model. Its layers of experts are found by their classes, however they came there.
        folder: Where to; it is made if need be.
        only_experts: Whether to write the layers of experts alone, to be loaded into the base model they were put into.

    Raises:
        OSError: If the folder cannot be written.
        TypeError: If the model is no module, or ``only_experts`` not True or False.
        ValueError: If the model has no layer of experts, or one that cannot be described.

    Examples:
        >>> import tempfile
        >>> from factorized_moe.surgery import MuMoEConfig, replace
        >>> model, fresh = (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2))
        >>> report = replace(model, "0", MuMoEConfig(expert_dims=(4,), rank=8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(model, folder)
        ...     loaded = load(fresh, folder)
        >>> x = torch.randn(5, 8)
        >>> torch.equal(loaded(x), model(x))
        True
    """
    _check_model(model)
    check_flag("only_experts", only_experts)
    modules = described_modules(model)
    if "" in modules:
        raise ValueError(f"a {type(model).__name__} on its own is no model; write it with save_pretrained")
    if not modules:
        raise ValueError("the model has no layer of experts; call replace or factorize_experts first")
    state = _state(gathered_state(model))
    ours = _ours(modules, state)
    config = {
        "content": "experts" if only_experts else "model",
        "modules": {path: describe(module) for path, module in modules.items()},
        "base": _fingerprint({name: tensor for name, tensor in state.items() if name not in ours}),
    }
    if is_first(model):
        write_folder(Path(folder), config, ours if only_experts else state)


def load(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put the layers that `save` wrote into a freshly built base model, and load all numbers.

    Args:
        model: The base model, as it was before `replace`; it is changed. Parameters keep their device.
        folder: Where `save` wrote to.

    Returns:
        The model.

    Raises:
        FileNotFoundError: If a file is missing.
        TypeError: If the model is no module.
        ValueError: If a file is damaged or does not fit the model; the model is as it was.
    """
    _check_model(model)
    config, saved = read_folder(Path(folder))
    if config.get("content") not in ("model", "experts") or not isinstance(config.get("modules"), dict):
        raise ValueError(
            f"{Path(folder) / CONFIG} does not describe a model; a single layer is read by from_pretrained"
        )
    changes: dict[str, nn.Module] = {}
    made: dict[tuple[int, str, tuple[int, ...]], nn.Module] = {}
    for path, description in config["modules"].items():
        old = child(model, path)
        holder = child(model, path.rpartition(".")[0]) if "." in path else model
        present = vars(holder).get(path.rpartition(".")[2]) if isinstance(holder, nn.Module) else None
        if not isinstance(old, nn.Module) and not callable(present):  # a function may be an MLP's activation
            raise ValueError(f"the model has no module {path!r}; load into the base model that was changed")
        numbers = tuple(id(saved[name]) for name in sorted(saved) if name.startswith(f"{path}."))
        key = id(old), json.dumps(description, sort_keys=True), numbers  # one module in several places stays one
        changes[path] = made[key] = made.get(key) or _make(path, description, old, model, saved)
    _share_again(changes, saved)
    with installed(model, changes):
        state = _state(model.state_dict())
        if config["content"] == "experts":
            ours = _ours(changes, state)
            if _fingerprint({name: tensor for name, tensor in state.items() if name not in ours}) != config.get("base"):
                raise ValueError("the model is not the base that these layers were saved from: its parameters differ")
            state = ours
        _check_fits(saved, state)
        model.load_state_dict(saved, strict=config["content"] == "model")
        announce(model)
    if any(isinstance(module, MuMoEDelta) for module in changes.values()):
        freeze_base(model)
    return model


def save_pretrained(layer: ExpertLayer, folder: str | Path) -> None:
    """Write one layer or block of experts to a folder that the Hugging Face hub takes as it is.

    Args:
        layer: A `MuMoE`, `MuMoEBlock` or `GatedMuMoEBlock`.
        folder: Where to; it is made if need be.

    Raises:
        OSError: If the folder cannot be written.
        TypeError: If the layer is none of these.
        ValueError: If it cannot be described.

    Examples:
        >>> import tempfile
        >>> from factorized_moe import CPMuMoE
        >>> layer = CPMuMoE(8, 4, expert_dims=[3], rank=2).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(layer, folder)
        ...     same = from_pretrained(folder)
        >>> x = torch.randn(5, 8)
        >>> torch.equal(same(x), layer(x))
        True
    """
    config, state = {"content": "layer", "layer": describe(layer)}, gathered_state(layer)
    if is_first(layer):
        write_folder(Path(folder), config, state)


def from_pretrained(source: str | Path, *, revision: str | None = None) -> ExpertLayer:
    """The layer that `save_pretrained` wrote, in evaluation mode and on the CPU.

    Args:
        source: A folder, or the name of a repository on the Hugging Face hub, ``"owner/name"``.
        revision: Of a repository, the branch, tag or commit.

    Raises:
        FileNotFoundError: If there is no such folder, or it lacks a file.
        ImportError: If the source is a repository and huggingface_hub is not installed.
        ValueError: If a file is damaged or describes no layer.
    """
    folder = check_path("source", source)
    if not folder.is_dir():
        if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)) is None:
            raise FileNotFoundError(f"{source} is neither a folder nor the name of a repository, 'owner/name'")
        try:
            from huggingface_hub import snapshot_download
        except ImportError as error:
            raise ImportError(f"to fetch {source}: pip install huggingface_hub") from error
        folder = Path(snapshot_download(str(source), revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    config, saved = read_folder(folder)
    if config.get("content") != "layer":
        raise ValueError(f"{folder / CONFIG} does not describe a single layer; a model is read by load")
    layer = build_layer_from(config.get("layer"), "meta")
    _check_shapes(saved, layer.state_dict())  # before memory is taken for them
    layer = layer.to_empty(device="cpu")
    _share_again({"": layer}, saved)
    layer.load_state_dict(saved)
    return layer.eval()


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a torch module, got {type(model).__name__}")


def _make(path: str, description: Any, old: Any, model: nn.Module, saved: Mapping[str, Tensor]) -> nn.Module:
    if not isinstance(description, Mapping):
        raise ValueError(f"module {path!r} is described by {description!r}, expected an object")
    tensors = [*(old.parameters() if isinstance(old, nn.Module) else ()), *model.parameters()]
    device = tensors[0].device if tensors else torch.device("cpu")
    try:
        if description.get("kind") != "Merged":  # before memory is taken for them
            experts, prefix = description.get("experts", description), f"{path}." if path else ""
            prefix += "experts." if "experts" in description else ""
            mine = {name.removeprefix(prefix): each for name, each in saved.items() if name.startswith(prefix)}
            _check_shapes(mine, empty_module(experts).state_dict())
        return rebuild(description, old, device).train(model.training)
    except (RuntimeError, TypeError, ValueError) as error:  # also sizes beyond memory
        raise ValueError(f"module {path!r}: {error}") from error


def _state(state: dict[str, Any]) -> dict[str, Tensor]:
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name!r} of the state is {type(value).__name__}, no tensor; it cannot be saved")
    return state


def _ours(modules: Mapping[str, nn.Module], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a state that belongs to layers of experts; the base of a delta does not."""
    prefixes = tuple(
        f"{path}.experts." if isinstance(module, MuMoEDelta) else f"{path}." for path, module in modules.items()
    )
    return {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}


def _share_again(layers: Mapping[str, nn.Module], saved: Mapping[str, Tensor]) -> None:
    """Make one again what layers had in common when they were saved: a whole gate, or a single parameter.

    A tensor with several names is in the file once, and all its names give one object. A gate is taken as a whole
    because of its buffers, which a move to another device would part.

    Args:
        layers: The new modules by path.
        saved: The tensors of the file under all their names.
    """
    gates: dict[tuple[Any, ...], nn.Module] = {}
    parameters: dict[tuple[int, torch.device], nn.Parameter] = {}
    for path, module in layers.items():
        # The base of a delta is the model's own.
        root, ours = (f"{path}.experts", module.experts) if isinstance(module, MuMoEDelta) else (path, module)
        for name, part in ours.named_modules(prefix=root):
            if isinstance(part, ExpertLayer) and part.gate.state_dict():
                state, prefix = part.gate.state_dict(), f"{name}.gate." if name else "gate."
                held = tuple((id(saved.get(f"{prefix}{leaf}")), tensor.device) for leaf, tensor in state.items())
                part.gate = gates.setdefault((json.dumps(describe_gate(part.gate)), held), part.gate)
            for leaf, parameter in list(part.named_parameters(recurse=False)):
                tensor = saved.get(f"{name}.{leaf}" if name else leaf)
                if tensor is not None:
                    setattr(part, leaf, parameters.setdefault((id(tensor), parameter.device), parameter))


def _fingerprint(state: Mapping[str, Tensor]) -> str:
    return digest({name: [*tensor.shape, str(tensor.dtype)] for name, tensor in state.items()})


def _check_fits(saved: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Refuse a state that cannot be copied, before anything is."""
    _check_shapes(saved, state)
    tied: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in state.items():
        if tensor.is_meta:
            raise ValueError(f"{name!r} of the model is on the meta device; call to_empty first")
        first = tied.setdefault((tensor.data_ptr(), tensor.stride()), name) if tensor.numel() else name
        one, other = saved[first], saved[name]
        if one is not other and one.shape == other.shape and not torch.allclose(one, other, 0, 0, equal_nan=True):
            raise ValueError(f"{first!r} and {name!r} are one tensor in the model, but differ in the file; untie them")


def _check_shapes(saved: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Refuse names, shapes and types that differ."""
    missing, unknown = sorted(state.keys() - saved.keys()), sorted(saved.keys() - state.keys())
    if missing or unknown:
        raise ValueError(
            f"the file does not fit the model: {len(missing)} tensors are missing in the file {missing[:3]}, "
            f"{len(unknown)} are unknown to the model {unknown[:3]}"
        )
    for name, tensor in state.items():
        given = saved[name]
        if given.shape != tensor.shape:
            raise ValueError(f"{name!r} has shape {tuple(given.shape)} in the file, {tuple(tensor.shape)} in the model")
        if given.dtype != tensor.dtype:
            raise ValueError(
                f"{name!r} is {given.dtype} in the file and {tensor.dtype} in the model; convert the model"
            )
