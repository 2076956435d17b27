"""Layers of experts as JSON and back: what a constructor is given, not the parameters.

Every layer says what it is, so that a changed model needs no record beside it: it is enough to find its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from factorized_moe._reading import MOST_NODES, check_modes
from factorized_moe.activations import ACTIVATIONS, Entmax, TopKReLU, TopKSoftmax
from factorized_moe.decompositions import GivenNetwork, get_decomposition, name_of
from factorized_moe.gating import ExpertGate
from factorized_moe.layers import ExpertLayer, MuMoE
from factorized_moe.network import TensorNetwork
from factorized_moe.surgery.replacing.delta import MuMoEDelta
from factorized_moe.surgery.replacing.layouts import Merged
from factorized_moe.surgery.replacing.nonlinearities import build_nonlinearity, describe_nonlinearity
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = [
    "Kind",
    "build_layer_from",
    "build_tensor",
    "describe",
    "describe_gate",
    "describe_tensor",
    "described_modules",
    "empty_module",
    "rebuild",
    "register_kind",
]

HERE = "factorized_moe."


@dataclass(frozen=True)
class Kind:
    """How modules of a class that is no `ExpertLayer` become JSON and come back.

    Attributes:
        module: The class.
        describe: What its constructor is given, as JSON.
        build: A module of that, its parameters not filled.
    """

    module: type[nn.Module]
    describe: Callable[[Any], dict[str, Any]]
    build: Callable[[Mapping[str, Any], torch.device | str], nn.Module]


_OTHERS: dict[str, Kind] = {}


def register_kind(name: str, kind: Kind) -> None:
    """Let models that hold modules of a further class be written and read.

    Args:
        name: How files call it.
        kind: The class, and the ways to JSON and back.

    Raises:
        ValueError: If the name is taken.
    """
    if name in _OTHERS or name in kinds():
        raise ValueError(f"a kind of modules called {name!r} is known already")
    _OTHERS[name] = kind


def kinds() -> dict[str, type[ExpertLayer]]:
    """Every class of layers that says its own arguments, by the name that it has in files.

    Ours have their class's name; a third party's has its module's before it. A class is known once its module is
    imported; nothing is imported because a file names it.
    """
    found: dict[str, type[ExpertLayer]] = {}
    left = [ExpertLayer]
    while left:
        known = left.pop()
        left += known.__subclasses__()
        if known is not ExpertLayer and "own_arguments" in vars(known):
            ours = known.__module__.startswith(HERE)
            found[known.__name__ if ours else f"{known.__module__}:{known.__qualname__}"] = known
    return found


def _ours_first(kind: str) -> tuple[bool, str]:
    return ":" in kind, kind


def _kind_of(layer: ExpertLayer) -> tuple[str, type[ExpertLayer]]:
    names = {known: name for name, known in kinds().items()}
    kind = next((known for known in type(layer).__mro__ if known in names), None)
    if kind is None:
        layer.own_arguments()  # says that the class does not say them
        raise TypeError(f"{type(layer).__name__} cannot be described")
    return names[kind], kind


def described_modules(model: nn.Module) -> dict[str, nn.Module]:
    """What surgery put into a model, by path; a layer within another is not listed.

    Examples:
        >>> list(described_modules(nn.Sequential(nn.Linear(4, 4), MuMoE(4, 4, [2], rank=1))))
        ['1']
    """
    found: dict[str, nn.Module] = {}
    modules: Iterable[tuple[str, nn.Module]] = model.named_modules(remove_duplicate=False)
    for path, module in modules:
        inside = any(path.startswith(f"{outer}.") or not outer for outer in found)
        ours = isinstance(module, ExpertLayer | MuMoEDelta | Merged) or _other_kind(module) is not None
        if ours and not inside:
            found[path] = module
    return found


def describe(module: nn.Module) -> dict[str, Any]:
    """A layer of experts, a delta, a merged part or another of the kinds that are known, as JSON.

    Raises:
        TypeError: If it is none of these.
        ValueError: If a part of it has no name, such as a gate of your own.

    Examples:
        >>> description = describe(MuMoE(4, 3, [2], rank=1))
        >>> description["kind"], description["decomposition"], description["rank"], description["gate"]
        ('MuMoE', 'cp', 1, 'entmax15')
    """
    if isinstance(module, Merged):
        return {"kind": "Merged"}
    if isinstance(module, MuMoEDelta):
        return {"kind": "MuMoEDelta", "experts": describe(module.experts)}
    other = _other_kind(module)
    if other is not None:
        return {"kind": other, **_OTHERS[other].describe(module)}
    if not isinstance(module, ExpertLayer):
        raise TypeError(f"expected a layer of experts, an ExpertLayer, got {type(module).__name__}")
    name, kind = _kind_of(module)
    if type(module).forward is not kind.forward:
        raise ValueError(f"a {type(module).__name__} has a forward of its own and would come back as a {name}")
    tensors = list(module.expert_tensors.values())
    first = tensors[0]
    check_modes(list(first.expert_dims))  # what could not be read back is not written
    own = {key: _plain(value) for key, value in module.own_arguments().items()}
    description: dict[str, Any] = {
        "kind": name,
        **own,
        "expert_dims": list(first.expert_dims),
        **_describe_network(first),
        "bias": first.bias,
        **describe_gate(module.gate),
        "dtype": str(first.weight.operands[0].dtype).removeprefix("torch."),
        "input_norm": module.input_norm is not None,
        "checkpoint": first.checkpoint,
        "sparse_coefficients": first.sparse_coefficients,
    }
    try:
        again = build_layer_from(description, "meta")
        rebuilt = [part.network for part in again.expert_tensors.values()]
    except ValueError as error:
        if "network" not in description:
            raise ValueError(f"a {name} could not be made again of what it says of itself: {error}") from error
        rebuilt = []  # the network as text fits one of several tensors only
    if rebuilt and again.gate.state_dict().keys() != module.gate.state_dict().keys():
        raise ValueError(
            f"the gate of a {name} has other parameters than it gives its gates, such as a bias of its logits"
        )
    if rebuilt != [part.network for part in tensors]:
        raise ValueError(
            f"a {name} of decomposition {name_of(first.decomposition)!r} cannot be written to a file; register the "
            "decomposition under a name"
        )
    return description


def rebuild(description: Mapping[str, Any], old: nn.Module, device: torch.device) -> nn.Module:
    """The module that `describe` described, its parameters not filled.

    Args:
        description: What `describe` returned.
        old: What the module takes the place of; a delta keeps it.
        device: Where the parameters go.

    Raises:
        ValueError: If it describes nothing that is known.
    """
    if description.get("kind") == "Merged":
        return Merged()
    if description.get("kind") == "MuMoEDelta":
        experts = build_layer_from(description.get("experts"), "meta")
        if not isinstance(experts, MuMoE):
            raise ValueError("a MuMoEDelta holds a MuMoE")
        return MuMoEDelta(old, experts.to_empty(device=device))
    return empty_module(description).to_empty(device=device)


def empty_module(description: Any) -> nn.Module:
    """The layer of experts, or module of another kind, that `describe` described, on the meta device.

    Raises:
        ValueError: If it describes none.
    """
    kind = description.get("kind") if isinstance(description, Mapping) else None
    if not isinstance(kind, str) or kind not in _OTHERS:
        return build_layer_from(description, "meta")
    try:
        return _OTHERS[kind].build({key: value for key, value in description.items() if key != "kind"}, "meta")
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"cannot make a {kind} of its description: {error}") from error


def _other_kind(module: nn.Module) -> str | None:
    return next((name for name, kind in _OTHERS.items() if type(module) is kind.module), None)


def describe_tensor(tensor: FactorizedExpertTensor) -> dict[str, Any]:
    """A factorised tensor on its own as JSON.

    Raises:
        ValueError: If its decomposition has no name and its network cannot be written.
    """
    check_modes(list(tensor.expert_dims))
    description = {
        "expert_dims": list(tensor.expert_dims),
        "in_features": tensor.in_features,
        "out_features": tensor.out_features,
        **_describe_network(tensor),
        "bias": tensor.bias,
        "dtype": str(tensor.weight.operands[0].dtype).removeprefix("torch."),
        "checkpoint": tensor.checkpoint,
        "sparse_coefficients": tensor.sparse_coefficients,
    }
    try:
        again = build_tensor(description, "meta").network
    except ValueError:
        again = None
    if again != tensor.network:
        raise ValueError(
            f"a tensor of decomposition {name_of(tensor.decomposition)!r} cannot be written to a file; register the "
            "decomposition under a name"
        )
    return description


def build_tensor(description: Any, device: torch.device | str) -> FactorizedExpertTensor:
    """The factorised tensor that `describe_tensor` described, its parameters not filled.

    Raises:
        AttributeError: If its type is none of torch's.
        KeyError: If a part of the description is missing.
        TypeError: If a part is of the wrong type.
        ValueError: If a part is out of range.
    """
    if not isinstance(description, Mapping):
        raise ValueError(f"a tensor is described by {description!r}, expected an object")
    given = dict(description)
    dtype = getattr(torch, given.pop("dtype"))
    check_modes(given["expert_dims"])
    if "network" in given:
        given["decomposition"] = GivenNetwork(_read_network(given.pop("network")))
    return FactorizedExpertTensor(**given, device=device, dtype=dtype)


def _read_network(text: str) -> TensorNetwork:
    network = TensorNetwork.parse(text)
    if len(network.nodes) > MOST_NODES:
        raise ValueError(f"its network has {len(network.nodes)} nodes; at most {MOST_NODES} are read")
    return network


def build_layer_from(description: Any, device: torch.device | str) -> ExpertLayer:
    """The layer of experts that `describe` described.

    Raises:
        ValueError: If it describes none.
    """
    kind = description.get("kind") if isinstance(description, Mapping) else description
    known = kinds()
    if not isinstance(description, Mapping) or not isinstance(kind, str) or kind not in known:
        hint = "; import the module that defines it first" if isinstance(kind, str) and ":" in kind else ""
        raise ValueError(
            f"no layer of experts is of kind {kind!r}; known are {', '.join(sorted(known, key=_ours_first))}{hint}"
        )
    given = dict(description)
    made = known[given.pop("kind")]
    try:
        dtype = getattr(torch, given.pop("dtype"))
        check_modes(given["expert_dims"])
        if "network" in given:
            given["decomposition"] = GivenNetwork(_read_network(given.pop("network")))
        if "activation" in given:
            given["activation"] = build_nonlinearity(given["activation"])
        given["gate"] = _build_gate(given["gate"])
        given.setdefault("gate_temperature", 1.0)  # what was saved without one had none
        return made(**given, device=device, dtype=dtype)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"cannot make a {kind} of its description: {error}") from error


def _plain(value: Any) -> Any:
    """An argument as JSON: a tuple as a list, an activation by its name."""
    if isinstance(value, tuple):
        return list(value)
    if value is None or isinstance(value, bool | int | float | str | list | dict):
        return value
    return describe_nonlinearity(value)


def _describe_network(experts: FactorizedExpertTensor) -> dict[str, Any]:
    """The decomposition by its name, or, if it has none, the network as text."""
    name = name_of(experts.decomposition)
    try:
        registered = get_decomposition(name)
    except ValueError:
        registered = None
    if type(registered) is type(experts.decomposition):
        rank = experts.rank
        return {"decomposition": name, "rank": list(rank) if isinstance(rank, tuple) else rank}
    return {"network": str(experts.network), "rank": [experts.network.sizes[bond] for bond in experts.network.bonds]}


def describe_gate(gate: Any) -> dict[str, Any]:
    """A gate's settings as JSON, as a layer's constructor takes them.

    Raises:
        ValueError: If it is no `ExpertGate`, or its activation has no name.
    """
    if type(gate) is not ExpertGate:
        raise ValueError(f"a gate of class {type(gate).__name__} cannot be written to a file; use an ExpertGate")
    activation = gate.activation
    described: Any = next((name for name, known in ACTIVATIONS.items() if known == activation), None)
    if isinstance(activation, Entmax):
        described = {"entmax": activation.alpha}
    elif isinstance(activation, TopKSoftmax):
        described = {"topk_softmax": activation.k}
    elif isinstance(activation, TopKReLU):
        described = {"topk_relu": activation.k}
    if described is None:
        raise ValueError(
            f"a gate's activation {activation!r} cannot be written to a file; use one of {', '.join(ACTIVATIONS)}"
        )
    found = {"gate": described, "gate_norm": gate.norm, "gate_temperature": gate.temperature}
    return found if gate.rank is None else {**found, "gate_rank": gate.rank}


def _build_gate(description: Any) -> Any:
    match description:
        case {"entmax": alpha}:
            return Entmax(alpha)
        case {"topk_softmax": k}:
            return TopKSoftmax(k)
        case {"topk_relu": k}:
            return TopKReLU(k)
        case str():
            return description
    raise ValueError(f"unknown gate {description!r}")
