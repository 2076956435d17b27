"""Tensor decompositions by name, and the base class for your own."""

from importlib import import_module
from pkgutil import iter_modules

from factorized_moe.decompositions.base import Decomposition, GivenNetwork
from factorized_moe.decompositions.block_tensor_train import BlockTensorTrain
from factorized_moe.decompositions.block_term import BlockTerm
from factorized_moe.decompositions.cp import CP
from factorized_moe.decompositions.dense import Dense
from factorized_moe.decompositions.hierarchical_tucker import HierarchicalTucker
from factorized_moe.decompositions.initialisation import balanced, variance_preserving
from factorized_moe.decompositions.kronecker import Kronecker
from factorized_moe.decompositions.low_rank import LowRank
from factorized_moe.decompositions.mixture_of_decoders import MixtureOfDecoders
from factorized_moe.decompositions.registry import (
    Registration,
    available_decompositions,
    get_decomposition,
    name_of,
    register,
    registration_of,
)
from factorized_moe.decompositions.shared_private import SharedPrivate
from factorized_moe.decompositions.tensor_ring import TensorRing
from factorized_moe.decompositions.tensor_train import TensorTrain
from factorized_moe.decompositions.tt_matrix import TTMatrix
from factorized_moe.decompositions.tucker import Tucker

__all__ = [
    "CP",
    "BlockTensorTrain",
    "BlockTerm",
    "Decomposition",
    "Dense",
    "GivenNetwork",
    "HierarchicalTucker",
    "Kronecker",
    "LowRank",
    "MixtureOfDecoders",
    "Registration",
    "SharedPrivate",
    "TTMatrix",
    "TensorRing",
    "TensorTrain",
    "Tucker",
    "available_decompositions",
    "balanced",
    "get_decomposition",
    "name_of",
    "register",
    "registration_of",
    "variance_preserving",
]

# A new file in this folder is all that a new decomposition needs; its class need not be offered above.
for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
