"""Weight tensors of many experts, held in factorised form and contracted without ever being built.

Example:
    >>> import torch
    >>> from factorized_moe import FactorizedExpertTensor
    >>> w = FactorizedExpertTensor((8, 4), 16, 32, decomposition="tucker", rank=(4, 2, 8, 8), bias=True)
    >>> w(torch.randn(5, 16), [torch.rand(5, 8), torch.rand(5, 4)]).shape
    torch.Size([5, 32])
"""

from factorized_moe.decompositions import Decomposition, ParameterBudget, available_decompositions, register
from factorized_moe.gated_block import GatedMuMoEBlock
from factorized_moe.gating import ExpertGate
from factorized_moe.layers import CPMuMoE, MuMoE, MuMoEBlock, TRMuMoE, TTMuMoE, TuckerMuMoE
from factorized_moe.network import Node, TensorNetwork
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = [
    "CPMuMoE",
    "Decomposition",
    "ExpertGate",
    "FactorizedExpertTensor",
    "GatedMuMoEBlock",
    "MuMoE",
    "MuMoEBlock",
    "Node",
    "ParameterBudget",
    "TRMuMoE",
    "TTMuMoE",
    "TensorNetwork",
    "TuckerMuMoE",
    "available_decompositions",
    "register",
]
