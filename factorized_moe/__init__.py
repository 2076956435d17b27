"""Weight tensors of many experts, held in factorised form and contracted without ever being built.

Examples:
    >>> import torch
    >>> from factorized_moe import FactorizedExpertTensor
    >>> w = FactorizedExpertTensor((8, 4), 16, 32, decomposition="tucker", rank=(4, 2, 8, 8), bias=True)
    >>> w(torch.randn(5, 16), [torch.rand(5, 8), torch.rand(5, 4)]).shape
    torch.Size([5, 32])
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from factorized_moe.budgets import Budget
    from factorized_moe.decompositions import Decomposition, available_decompositions, register
    from factorized_moe.gating import ExpertGate
    from factorized_moe.layers import (
        CPMuMoE,
        ExpertLayer,
        GatedMuMoEBlock,
        MixtureOfDecodersBlock,
        MuMoE,
        MuMoEBlock,
        TRMuMoE,
        TTMuMoE,
        TuckerMuMoE,
    )
    from factorized_moe.network import Node, TensorNetwork
    from factorized_moe.optimisation import parameter_groups
    from factorized_moe.tensor import FactorizedExpertTensor

__all__ = [
    "Budget",
    "CPMuMoE",
    "Decomposition",
    "ExpertGate",
    "ExpertLayer",
    "FactorizedExpertTensor",
    "GatedMuMoEBlock",
    "MixtureOfDecodersBlock",
    "MuMoE",
    "MuMoEBlock",
    "Node",
    "TRMuMoE",
    "TTMuMoE",
    "TensorNetwork",
    "TuckerMuMoE",
    "available_decompositions",
    "parameter_groups",
    "register",
]

# Each name is imported when it is first asked for: torch alone takes a second, which `factorized-moe --help` saves.
_HOMES = {
    "Decomposition": "decompositions",
    "Budget": "budgets",
    "available_decompositions": "decompositions",
    "register": "decompositions",
    "ExpertLayer": "layers",
    "GatedMuMoEBlock": "layers",
    "MixtureOfDecodersBlock": "layers",
    "ExpertGate": "gating",
    "CPMuMoE": "layers",
    "MuMoE": "layers",
    "MuMoEBlock": "layers",
    "TRMuMoE": "layers",
    "TTMuMoE": "layers",
    "TuckerMuMoE": "layers",
    "Node": "network",
    "TensorNetwork": "network",
    "parameter_groups": "optimisation",
    "FactorizedExpertTensor": "tensor",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
