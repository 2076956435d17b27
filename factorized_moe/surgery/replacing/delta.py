"""A layer that stays with a layer of experts beside it: fine-tuning that starts from exactly the pretrained model.

Legend: ``*batch`` any leading shape, ``I`` in_features, ``O`` out_features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from factorized_moe.layers import MuMoE
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["MuMoEDelta", "freeze_base", "set_to_zero"]


class MuMoEDelta(nn.Module):
    """A frozen layer and a layer of experts added to it, ``base(x) + experts(x)``: what ``replace(delta=True)`` makes.

    Args:
        base: The layer that stays.
        experts: The layer of experts, of the same sizes.

    Attributes:
        base: The layer that stays.
        experts: The layer of experts.

    Raises:
        TypeError: If either is of the wrong type.

    Examples:
        >>> linear, experts = nn.Linear(16, 10), MuMoE(16, 10, expert_dims=[4], rank=3)
        >>> set_to_zero(experts.experts)
        >>> x = torch.randn(5, 16)
        >>> torch.equal(MuMoEDelta(linear, experts)(x), linear(x))
        True
    """

    def __init__(self, base: nn.Module, experts: MuMoE) -> None:
        super().__init__()
        if not isinstance(base, nn.Module) or not isinstance(experts, MuMoE):
            raise TypeError(
                f"MuMoEDelta takes a module and a MuMoE, got {type(base).__name__}, {type(experts).__name__}"
            )
        self.base = base
        self.experts = experts

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers.

        Args:
            x: The input, ``(*batch, I)``.

        Returns:
            The sum of their outputs, ``(*batch, O)``.
        """
        y: Tensor = self.base(x) + self.experts(x)
        return y


@torch.no_grad()
def set_to_zero(experts: FactorizedExpertTensor) -> None:
    """Make all experts zero through one parameter of each term, the output's, so that a gradient still reaches it.

    Raises:
        ValueError: If a term has no parameter of its own to set to zero.
    """
    network = experts.network
    for term in network.terms:
        alone = [node for node in term if sum(node.parameter == other.parameter for other in network.nodes) == 1]
        alone = [node for node in alone if node.fixed is None]
        if not alone:
            raise ValueError("all nodes of a term share their parameters, so it cannot start at zero")
        holds_output = [node for node in alone if set(network.out_labels) & set(node.labels)]
        node = (holds_output or alone)[-1]
        experts.weight.tensors[node.parameter].zero_()


def freeze_base(model: nn.Module) -> None:
    """Leave gradients to the layers of experts in a model's deltas alone."""
    deltas = [module for module in model.modules() if isinstance(module, MuMoEDelta)]
    trained = {id(parameter) for delta in deltas for parameter in delta.experts.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in trained:
            parameter.requires_grad_(False)
