"""The linear layer with many experts, and an adapter for each decomposition of the paper.

Source: Oldfield et al., "Multilinear Mixture of Experts: Scalable Expert Specialization through Factorization",
NeurIPS 2024, arXiv 2402.12550.

Legend: ``*batch`` any leading shape, ``I`` in_features, ``O`` out_features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe.budgets import SizeLike
from factorized_moe.decompositions import Decomposition
from factorized_moe.decompositions.base import Initialisation
from factorized_moe.layers.expert_layer import ExpertLayer
from factorized_moe.network import TensorNetwork
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["CPMuMoE", "MuMoE", "TRMuMoE", "TTMuMoE", "TuckerMuMoE"]


class MuMoE(ExpertLayer):
    """A linear layer with many experts: the gate mixes their matrices for every input, and no matrix is built.

    Args:
        in_features: The number of input features, ``I``.
        out_features: The number of output features, ``O``.
        expert_dims: The number of experts of each expert mode.
        decomposition: A registered name or an instance; ``"cp"`` by default.
        rank: As for `FactorizedExpertTensor`; a `Budget` is that of the whole layer, its gate included.
        network: Any network, in place of the arguments above, which it says, as for `FactorizedExpertTensor`.
        bias: As for `ExpertLayer`.
        gate: As for `ExpertLayer`.
        gate_norm: As for `ExpertLayer`.
        gate_temperature: As for `ExpertLayer`.
        gate_rank: As for `ExpertLayer`.
        input_norm: As for `ExpertLayer`.
        init: As for `FactorizedExpertTensor`.
        checkpoint: As for `FactorizedExpertTensor`.
        sparse_coefficients: As for `FactorizedExpertTensor`.
        device: Where the parameters are.
        dtype: The parameters' type.

    Attributes:
        gate: The gate; its output is the tuple of coefficients, for hooks to read or change.
        experts: The weight, a `FactorizedExpertTensor`, which gives single experts' matrices, costs and plans.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is out of range, or a name of a decomposition, an activation or a norm is unknown.

    Examples:
        >>> layer = MuMoE(16, 10, expert_dims=[8, 4], decomposition="tr", rank=4)
        >>> layer(torch.randn(5, 16)).shape
        torch.Size([5, 10])
        >>> [tuple(a.shape) for a in layer.gate(torch.randn(5, 16))]
        [(5, 8), (5, 4)]
    """

    experts: FactorizedExpertTensor

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        expert_dims: Sequence[int] | None = None,
        decomposition: str | Decomposition | None = None,
        rank: SizeLike | None = None,
        *,
        network: TensorNetwork | None = None,
        bias: bool = True,
        gate: str | Callable[[Tensor], Tensor] | nn.Module = "entmax15",
        gate_norm: str | None = "batch",
        gate_temperature: float = 2.0,
        gate_rank: int | None = None,
        input_norm: bool = False,
        init: str | Initialisation | None = None,
        checkpoint: bool = False,
        sparse_coefficients: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            {"experts": (in_features, out_features)},
            expert_dims,
            decomposition,
            rank,
            network=network,
            bias=bias,
            gate=gate,
            gate_norm=gate_norm,
            gate_temperature=gate_temperature,
            gate_rank=gate_rank,
            input_norm=input_norm,
            init=init,
            checkpoint=checkpoint,
            sparse_coefficients=sparse_coefficients,
            device=device,
            dtype=dtype,
        )

    def own_arguments(self) -> dict[str, Any]:
        """The arguments of this constructor alone, for saving: ``in_features`` and ``out_features``."""
        return {"in_features": self.in_features, "out_features": self.out_features}

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: The input, ``(*batch, I)``.

        Returns:
            The output, ``(*batch, O)``.

        Raises:
            TypeError: If dtypes or devices differ.
            ValueError: If a shape does not fit, or a gate with a batch norm gets one position alone in training mode.
        """
        coefficients = self.gate(x)
        y: Tensor = self.experts(x if self.input_norm is None else self.input_norm(x), coefficients)
        return y


class CPMuMoE(MuMoE):
    """`MuMoE` in CP form (uMoE paper, Eq. 2).

    Examples:
        >>> sum(p.numel() for p in CPMuMoE(768, 1000, expert_dims=[256], rank=283).parameters())
        769683
    """

    def __init__(
        self, in_features: int, out_features: int, expert_dims: Sequence[int], rank: SizeLike, **options: Any
    ) -> None:
        super().__init__(in_features, out_features, expert_dims, "cp", rank, **options)


class TuckerMuMoE(MuMoE):
    """`MuMoE` in Tucker form (uMoE v1, Eq. 3).

    Examples:
        >>> TuckerMuMoE(16, 10, expert_dims=[8], rank=(4, 6, 6))(torch.randn(5, 16)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, in_features: int, out_features: int, expert_dims: Sequence[int], rank: SizeLike, **options: Any
    ) -> None:
        super().__init__(in_features, out_features, expert_dims, "tucker", rank, **options)


class TTMuMoE(MuMoE):
    """`MuMoE` in tensor-train form (uMoE v1, Eq. 4).

    Examples:
        >>> TTMuMoE(16, 10, expert_dims=[8], rank=(1, 4, 6, 1))(torch.randn(5, 16)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, in_features: int, out_features: int, expert_dims: Sequence[int], rank: SizeLike, **options: Any
    ) -> None:
        super().__init__(in_features, out_features, expert_dims, "tt", rank, **options)


class TRMuMoE(MuMoE):
    """`MuMoE` in tensor-ring form (uMoE paper, Eq. 3).

    Examples:
        >>> TRMuMoE(16, 10, expert_dims=[8], rank=(4, 4, 6, 4))(torch.randn(5, 16)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, in_features: int, out_features: int, expert_dims: Sequence[int], rank: SizeLike, **options: Any
    ) -> None:
        super().__init__(in_features, out_features, expert_dims, "tr", rank, **options)
