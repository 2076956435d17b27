"""The parameters of a network as a TensorLy-Torch ``FactorizedTensor``, with its dropout and lasso.

This is the only package that imports ``tltorch``. Importing ``tltorch`` sets TensorLy's global backend to PyTorch;
nothing here depends on that backend: every call into TensorLy names its own.
"""

from factorized_moe.decompositions.registry import on_registration
from factorized_moe.storage.container import NetworkTensor, Operands
from factorized_moe.storage.tensor_hooks import NetworkTensorDropout, NetworkTensorLasso
from factorized_moe.storage.tltorch_names import complete_tltorch

__all__ = ["NetworkTensor", "NetworkTensorDropout", "NetworkTensorLasso", "Operands"]

on_registration(complete_tltorch)
