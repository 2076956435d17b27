"""TensorLy-Torch's dropout and lasso on the bonds of a network: hooks that change a container's operands."""

from __future__ import annotations

from typing import Any

import torch
from tltorch.tensor_hooks._tensor_dropout import TensorDropout
from tltorch.tensor_hooks._tensor_lasso import TensorLasso
from torch import Tensor, nn

from factorized_moe.network import TensorNetwork
from factorized_moe.storage.container import NetworkTensor, Operands

__all__ = ["NetworkTensorDropout", "NetworkTensorLasso"]


class NetworkTensorDropout(TensorDropout, factorization=NetworkTensor):  # type: ignore[misc, call-arg]
    """Tensor dropout on the bonds, registered with ``tltorch.tensor_hooks.tensor_dropout(layer.weight, p)``.

    Each value of each bond longer than ``min_dim`` is dropped with probability p, and the rest scaled by
    ``1 / (1 - p)``, so that the dense tensor's mean is kept. The mask has a fixed shape, so it compiles.
    """

    def __call__(
        self, module: NetworkTensor, arguments: Any, tensor: NetworkTensor | Operands
    ) -> NetworkTensor | Operands:
        """The operands with values of bonds dropped and the rest scaled."""
        if not self.proba or not (module.training or self.drop_test):
            return tensor
        network, operands = _network_of(module, tensor), list(tensor.operands)
        for bond in network.bonds:
            if network.sizes[bond] > self.min_dim:
                for position, axis in _places(network, bond):
                    operands[position] = self._drop(operands[position], axis)
        return Operands(tuple(operands))

    def _drop(self, operand: Tensor, axis: int) -> Tensor:
        kept = torch.rand(operand.shape[axis], device=operand.device) >= self.proba
        return _along(operand, axis, kept.to(operand.dtype) / (1.0 - float(self.proba)))


class NetworkTensorLasso(TensorLasso, factorization=NetworkTensor):  # type: ignore[misc, call-arg]
    """A weight for each value of each bond, whose absolute values are the loss: ``TensorLasso.from_factorization(w)``.

    TensorLy-Torch's own ``tensor_lasso`` takes the names of its three decompositions only. As there, ``apply`` adds the
    weights, all 1, every call of the container multiplies the bonds by them and adds to ``loss``, and
    ``remove_tensor_lasso`` takes them away.
    """

    def __call__(self, module: NetworkTensor, arguments: Any, tensor: NetworkTensor | Operands) -> Operands:
        """The operands times the weights; the loss grows by the weights' absolute values."""
        with torch.no_grad():
            for weight in module.lasso_weights.values():
                if self.clamp_weights:
                    weight.clamp_(-1.0, 1.0)
                if self.threshold:
                    weight.masked_fill_(weight <= self.threshold, 0.0)
        network, operands = _network_of(module, tensor), list(tensor.operands)
        loss: Any = self._loss  # type: ignore[has-type]
        for bond, weight in module.lasso_weights.items():
            self.n_element += weight.numel()
            loss = loss + weight.abs().sum()
            for position, axis in _places(network, bond):
                operands[position] = _along(operands[position], axis, weight)
        self._loss = loss
        return Operands(tuple(operands))

    def apply(self, module: NetworkTensor) -> NetworkTensor:
        """Give a container a weight for each value of each bond, and register the hook.

        Raises:
            TypeError: If the container's network has no bond.
        """
        if not module.network.bonds:
            raise TypeError(f"a lasso weighs the bonds of a network, and {module} has none")
        like = module.operands[0]
        weights = {
            bond: nn.Parameter(torch.ones(module.network.sizes[bond], dtype=like.dtype, device=like.device))
            for bond in module.network.bonds
        }
        module.lasso_weights = nn.ParameterDict(weights)
        module.register_forward_hook(self)
        return module

    def remove(self, module: NetworkTensor) -> None:
        """Take the weights away; the hook goes with ``remove_tensor_lasso``."""
        del module.lasso_weights

    def set_weights(self, module: NetworkTensor, value: float) -> None:
        """Set all weights to one value."""
        with torch.no_grad():
            for weight in module.lasso_weights.values():
                weight.fill_(value)


def _network_of(module: NetworkTensor, tensor: NetworkTensor | Operands) -> TensorNetwork:
    """The network of a call's result: that of a part, if the call had indices and no other hook came first."""
    return tensor.network if isinstance(tensor, NetworkTensor) else module.network


def _places(network: TensorNetwork, bond: str) -> list[tuple[int, int]]:
    """Where to multiply each term once along a bond: the first of its nodes that carries it, and the axis."""
    places, start = [], 0
    for term in network.terms:
        carrying = [(start + k, node.labels.index(bond)) for k, node in enumerate(term) if bond in node.labels]
        places += carrying[:1]
        start += len(term)
    return places


def _along(operand: Tensor, axis: int, values: Tensor) -> Tensor:
    return operand * values.reshape([-1 if k == axis else 1 for k in range(operand.ndim)])
