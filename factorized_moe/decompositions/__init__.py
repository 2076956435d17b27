"""Decompositions: the contract (`base`), their names (`registry`), and one file for each."""

from factorized_moe.decompositions.base import Decomposition, ParameterBudget, variance_preserving
from factorized_moe.decompositions.cp import CP
from factorized_moe.decompositions.registry import (
    available_decompositions,
    get_decomposition,
    name_of,
    register,
)
from factorized_moe.decompositions.tensor_ring import TensorRing
from factorized_moe.decompositions.tensor_train import TensorTrain
from factorized_moe.decompositions.tucker import Tucker

__all__ = [
    "CP",
    "Decomposition",
    "ParameterBudget",
    "TensorRing",
    "TensorTrain",
    "Tucker",
    "available_decompositions",
    "get_decomposition",
    "name_of",
    "register",
    "variance_preserving",
]
