"""A gated MLP of experts: three layers that share one gate of experts, in place of a SwiGLU or GEGLU MLP.

Source of the gated MLP: Shazeer 2020, "GLU variants improve Transformer", arXiv 2002.05202. Its "gate" is a product
within the MLP and has nothing to do with the gate of experts; here the word means the gate of experts alone.

Legend: ``*batch`` any leading shape, ``I`` in_features, ``H`` hidden_features, ``O`` out_features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe.decompositions import Decomposition
from factorized_moe.decompositions.base import Initialisation, RankLike
from factorized_moe.gating import ExpertGate
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["GatedMuMoEBlock"]


class GatedMuMoEBlock(nn.Module):
    """``second(activation(first(x)) * multiplier(x))``, each a factorised expert tensor with the same coefficients.

    Args:
        in_features: ``I``.
        hidden_features: ``H``.
        out_features: ``O``.
        expert_dims: The number of experts of each expert mode.
        decomposition: A registered name or an instance.
        rank: The rank of all three tensors, as for `FactorizedExpertTensor`.
        second_rank: The rank of the second, where it differs.
        bias: Whether every expert has a bias.
        activation: What is applied to the first tensor's output; SiLU by default, which makes it SwiGLU.
        gate: As for `MuMoE`.
        gate_norm: As for `MuMoE`.
        init: As for `FactorizedExpertTensor`.
        device: Where the parameters are.
        dtype: Their type.

    Attributes:
        gate: The gate.
        first: The `FactorizedExpertTensor` whose output the activation is applied to.
        multiplier: The one whose output it is multiplied by.
        second: The one of the output.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is out of range.

    Examples:
        >>> block = GatedMuMoEBlock(16, 40, 16, expert_dims=[8], decomposition="cp", rank=12)
        >>> block(torch.randn(2, 5, 16)).shape
        torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        expert_dims: Sequence[int],
        decomposition: str | Decomposition = "cp",
        rank: RankLike | None = None,
        *,
        second_rank: RankLike | None = None,
        bias: bool = False,
        activation: Callable[[Tensor], Tensor] | None = None,
        gate: str | Callable[[Tensor], Tensor] | nn.Module = "entmax15",
        gate_norm: str | None = "batch",
        init: str | Initialisation | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"bias": bias, "init": init, "device": device, "dtype": dtype}
        last_rank = rank if second_rank is None else second_rank
        self.first = FactorizedExpertTensor(expert_dims, in_features, hidden_features, decomposition, rank, **options)
        self.multiplier = FactorizedExpertTensor(
            expert_dims, in_features, hidden_features, decomposition, rank, **options
        )
        self.second = FactorizedExpertTensor(
            expert_dims, hidden_features, out_features, decomposition, last_rank, **options
        )
        self.activation = nn.SiLU() if activation is None else activation
        self.gate = (
            gate
            if isinstance(gate, nn.Module)
            else ExpertGate(in_features, self.first.expert_dims, gate, gate_norm, device=device, dtype=dtype)
        )

    def reset_parameters(self) -> None:
        """Fill all parameters anew, as after construction; a gate of your own is left as it is."""
        for part in (self.first, self.multiplier, self.second, self.gate):
            if isinstance(part, FactorizedExpertTensor | ExpertGate):
                part.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: The input, ``(*batch, I)``.

        Returns:
            The output, ``(*batch, O)``.

        Raises:
            TypeError: If dtypes or devices differ.
            ValueError: If a shape does not fit.
        """
        coefficients = self.gate(x)
        hidden = self.activation(self.first(x, coefficients)) * self.multiplier(x, coefficients)
        y: Tensor = self.second(hidden, coefficients)
        return y
