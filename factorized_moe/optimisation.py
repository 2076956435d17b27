"""For training: parameters in groups (factors, cores, gates, everything else), and a learning rate over steps.

Legend: an *axis* of a parameter is a label of its node.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from factorized_moe._scalars import is_number
from factorized_moe._validation import check_flag
from factorized_moe.gating import ExpertGate
from factorized_moe.layers import ExpertLayer
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["parameter_groups", "warm_up_and_cosine"]

GROUPS = ("factors", "cores", "gates", "matrices", "rest")


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float = 0.01,
    decay_gates: bool = True,
    learning_rate: float | None = None,
    gate_learning_rate: float | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters of a model in groups, as optimisers take them, each with a ``"name"``.

    - ``"factors"``: parameters of expert tensors with at most two axes, such as all of CP's.
    - ``"cores"``: those with more axes, such as Tucker's core and tensor trains'. An optimiser of matrices, such as
      ``torch.optim.Muon``, refuses them.
    - ``"gates"``: the gates of experts, those of your own among them.
    - ``"matrices"``: everything else with two axes or more; embeddings are among them.
    - ``"rest"``: vectors and numbers, such as biases and the scales of norms. They have no weight decay, and
      an optimiser of matrices refuses them too.

    Decay falls on factors, cores and gates alike by default, as on other matrices.

    Args:
        model: The model.
        weight_decay: The decay of all groups but ``"rest"``.
        decay_gates: Whether it falls on the gates too.
        learning_rate: The learning rate of all groups; the optimiser's own by default.
        gate_learning_rate: That of the gates, where it differs.

    Returns:
        The groups that have a parameter, each a dictionary with ``"name"``, ``"params"``, ``"weight_decay"`` and, where
            given, ``"lr"``. A parameter that is shared is in one group, once.

    Raises:
        TypeError: If ``model`` is no module, or ``decay_gates`` not True or False.
        ValueError: If a number is negative, or the model has no trainable parameter.

    Examples:
        >>> import torch
        >>> from factorized_moe import TuckerMuMoE
        >>> model = nn.Sequential(nn.Linear(8, 8), TuckerMuMoE(8, 4, [3], rank=2))
        >>> groups = parameter_groups(model, weight_decay=0.1)
        >>> [(group["name"], len(group["params"]), group["weight_decay"]) for group in groups]
        [('factors', 3, 0.1), ('cores', 1, 0.1), ('gates', 1, 0.1), ('matrices', 1, 0.1), ('rest', 1, 0.0)]
        >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a torch.nn.Module, got {type(model).__name__}")
    check_flag("decay_gates", decay_gates)
    for name, value in (
        ("weight_decay", weight_decay),
        ("learning_rate", learning_rate),
        ("gate_learning_rate", gate_learning_rate),
    ):
        if value is not None and not is_number(value):
            raise TypeError(f"{name} is a number, got {value!r}")
        if value is not None and not 0.0 <= value < math.inf:
            raise ValueError(f"{name} is 0 or more and finite, got {value!r}")
    found: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    seen: set[int] = set()
    gates = {part.gate for part in model.modules() if isinstance(part, ExpertLayer)}  # also those of no class of ours
    gates |= {part for part in model.modules() if isinstance(part, ExpertGate)}
    for module in model.modules():  # an expert tensor or a gate comes before its parts
        whole = isinstance(module, FactorizedExpertTensor) or module in gates
        for parameter in module.parameters(recurse=whole):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                found["gates" if module in gates else _group(module, parameter)].append(parameter)
    if not seen:
        raise ValueError("the model has no trainable parameter")
    groups = []
    for name, parameters in found.items():
        decays = name != "rest" and (decay_gates or name != "gates")
        rate = gate_learning_rate if name == "gates" and gate_learning_rate is not None else learning_rate
        group = {"name": name, "params": parameters, "weight_decay": weight_decay if decays else 0.0}
        if parameters:
            groups.append(group if rate is None else {**group, "lr": rate})
    return groups


def _group(module: nn.Module, parameter: nn.Parameter) -> str:
    if isinstance(module, FactorizedExpertTensor):
        return "factors" if parameter.ndim <= 2 else "cores"
    return "matrices" if parameter.ndim >= 2 else "rest"


def warm_up_and_cosine(step: int, steps: int, warm_up: int) -> float:
    """The learning rate of a step relative to its largest value: a linear rise, never above half a cosine to zero.

    Args:
        step: The step, from 0; after the last one the rate stays 0.
        steps: The number of steps.
        warm_up: In how many of them it rises, 1 or more.

    Examples:
        >>> [round(warm_up_and_cosine(step, 100, 10), 2) for step in (0, 4, 50, 99)]
        [0.1, 0.5, 0.5, 0.0]
    """
    return min((step + 1) / warm_up, 0.5 * (1.0 + math.cos(math.pi * min(step, steps) / steps)))
