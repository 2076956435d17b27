"""Layers of experts: a gate and factorised expert tensors. No contraction is written here."""

from factorized_moe.layers.blocks import GatedMuMoEBlock, MuMoEBlock
from factorized_moe.layers.decoders import MixtureOfDecodersBlock, zero_decoder
from factorized_moe.layers.expert_layer import ExpertLayer
from factorized_moe.layers.mumoe import CPMuMoE, MuMoE, TRMuMoE, TTMuMoE, TuckerMuMoE

__all__ = [
    "CPMuMoE",
    "ExpertLayer",
    "GatedMuMoEBlock",
    "MixtureOfDecodersBlock",
    "MuMoE",
    "MuMoEBlock",
    "TRMuMoE",
    "TTMuMoE",
    "TuckerMuMoE",
    "zero_decoder",
]
