"""Multilinear Mixture-of-Experts layers: a gate and a factorised expert tensor. No contraction is written here.

Source: Oldfield et al., "Multilinear Mixture of Experts: Scalable Expert Specialization through Factorization",
NeurIPS 2024, arXiv 2402.12550.

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

__all__ = ["CPMuMoE", "MuMoE", "MuMoEBlock", "TRMuMoE", "TTMuMoE", "TuckerMuMoE"]


class MuMoE(nn.Module):
    """A linear layer with many experts: the gate mixes their matrices for every input, and no matrix is built.

    Args:
        in_features: ``I``.
        out_features: ``O``.
        expert_dims: The number of experts of each expert mode; ``prod(expert_dims)`` experts in all.
        decomposition: A registered name or an instance.
        rank: As for `FactorizedExpertTensor`; a ``ParameterBudget`` does not count the gate.
        bias: Whether every expert has a bias.
        gate: The activation of the gate (a name such as ``"entmax15"``, or a function of logits), or a module that
            maps ``(*batch, I)`` to one coefficient tensor ``(*batch, N_k)`` for each expert mode.
        gate_norm: ``"batch"``, ``"layer"`` or ``None``: how the logits are normalised before the activation, as for
            `ExpertGate`. Ignored where ``gate`` is a module.
        input_norm: Whether a ``LayerNorm`` is applied to the experts' input; the gate sees the input as it is.
        init: As for `FactorizedExpertTensor`.
        checkpoint: As for `FactorizedExpertTensor`: less memory in training, more time.
        sparse_coefficients: As for `FactorizedExpertTensor`: worth trying with thousands of experts.
        device: Where the parameters are.
        dtype: Their type.

    Attributes:
        gate: The gate; its output is the tuple of coefficients, for hooks to read or change.
        experts: The `FactorizedExpertTensor`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is out of range.

    Examples:
        >>> layer = MuMoE(16, 10, expert_dims=[8, 4], decomposition="tr", rank=4)
        >>> layer(torch.randn(5, 16)).shape
        torch.Size([5, 10])
        >>> [tuple(a.shape) for a in layer.gate(torch.randn(5, 16))]
        [(5, 8), (5, 4)]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        expert_dims: Sequence[int],
        decomposition: str | Decomposition = "cp",
        rank: RankLike | None = None,
        *,
        bias: bool = True,
        gate: str | Callable[[Tensor], Tensor] | nn.Module = "entmax15",
        gate_norm: str | None = "batch",
        input_norm: bool = False,
        init: str | Initialisation | None = None,
        checkpoint: bool = False,
        sparse_coefficients: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.experts = FactorizedExpertTensor(
            expert_dims,
            in_features,
            out_features,
            decomposition,
            rank,
            bias=bias,
            init=init,
            checkpoint=checkpoint,
            sparse_coefficients=sparse_coefficients,
            device=device,
            dtype=dtype,
        )
        self.gate = _gate(in_features, self.experts.expert_dims, gate, gate_norm, device, dtype)
        self.input_norm = nn.LayerNorm(in_features, device=device, dtype=dtype) if input_norm else None

    def reset_parameters(self) -> None:
        """Fill all parameters anew, as after construction."""
        _reset(self)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: The input, ``(*batch, I)``.

        Returns:
            The output, ``(*batch, O)``.

        Raises:
            TypeError: If dtypes or devices differ.
            ValueError: If a shape does not fit.
        """
        coefficients = self.gate(x)
        y: Tensor = self.experts(x if self.input_norm is None else self.input_norm(x), coefficients)
        return y


class MuMoEBlock(nn.Module):
    """Two layers with an activation between them and one gate for both: a replacement for a transformer's MLP.

    The gate's coefficients are computed once, from the block's input.

    Args:
        in_features: ``I``.
        hidden_features: ``H``.
        out_features: ``O``.
        expert_dims: The number of experts of each expert mode.
        decomposition: A registered name or an instance.
        rank: The rank of both layers, as for `FactorizedExpertTensor`.
        second_rank: The rank of the second layer, where it differs.
        bias: Whether every expert has a bias.
        activation: What is applied between the layers; GELU by default, as in the paper.
        gate: As for `MuMoE`.
        gate_norm: As for `MuMoE`.
        input_norm: As for `MuMoE`.
        init: As for `FactorizedExpertTensor`.
        checkpoint: As for `FactorizedExpertTensor`: less memory in training, more time.
        sparse_coefficients: As for `FactorizedExpertTensor`: worth trying with thousands of experts.
        device: Where the parameters are.
        dtype: Their type.

    Attributes:
        gate: The gate.
        first: The first layer's `FactorizedExpertTensor`.
        second: The second layer's.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is out of range.

    Examples:
        >>> block = MuMoEBlock(16, 64, 16, expert_dims=[8], decomposition="cp", rank=12, gate_norm="layer")
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
        bias: bool = True,
        activation: Callable[[Tensor], Tensor] | None = None,
        gate: str | Callable[[Tensor], Tensor] | nn.Module = "entmax15",
        gate_norm: str | None = "batch",
        input_norm: bool = False,
        init: str | Initialisation | None = None,
        checkpoint: bool = False,
        sparse_coefficients: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "bias": bias,
            "init": init,
            "checkpoint": checkpoint,
            "sparse_coefficients": sparse_coefficients,
            "device": device,
            "dtype": dtype,
        }
        last_rank = rank if second_rank is None else second_rank
        self.first = FactorizedExpertTensor(expert_dims, in_features, hidden_features, decomposition, rank, **options)
        self.second = FactorizedExpertTensor(
            expert_dims, hidden_features, out_features, decomposition, last_rank, **options
        )
        if activation is not None and (isinstance(activation, type) or not callable(activation)):
            raise TypeError(
                f"activation is a module or a function of a tensor, such as nn.GELU() or torch.relu, got {activation!r}"
            )
        self.activation = nn.GELU() if activation is None else activation
        self.gate = _gate(in_features, self.first.expert_dims, gate, gate_norm, device, dtype)
        self.input_norm = nn.LayerNorm(in_features, device=device, dtype=dtype) if input_norm else None

    def reset_parameters(self) -> None:
        """Fill all parameters anew, as after construction."""
        _reset(self)

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
        x = x if self.input_norm is None else self.input_norm(x)
        # Nested, so that no name keeps the first layer's output alive: with it the memory that a call takes and gives
        # back was above malloc's threshold, and every call paid for fresh pages (python -m benchmarks --only block).
        y: Tensor = self.second(self.activation(self.first(x, coefficients)), coefficients)
        return y


class CPMuMoE(MuMoE):
    """`MuMoE` in CP form (uMoE paper, Eq. 2).

    Examples:
        >>> sum(p.numel() for p in CPMuMoE(768, 1000, expert_dims=[256], rank=283).parameters())
        769683
    """

    def __init__(
        self, in_features: int, out_features: int, expert_dims: Sequence[int], rank: RankLike, **options: Any
    ) -> None:
        super().__init__(in_features, out_features, expert_dims, "cp", rank, **options)


class TuckerMuMoE(MuMoE):
    """`MuMoE` in Tucker form (uMoE v1, Eq. 3).

    Examples:
        >>> TuckerMuMoE(16, 10, expert_dims=[8], rank=(4, 6, 6))(torch.randn(5, 16)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, in_features: int, out_features: int, expert_dims: Sequence[int], rank: RankLike, **options: Any
    ) -> None:
        super().__init__(in_features, out_features, expert_dims, "tucker", rank, **options)


class TTMuMoE(MuMoE):
    """`MuMoE` in tensor-train form (uMoE v1, Eq. 4).

    Examples:
        >>> TTMuMoE(16, 10, expert_dims=[8], rank=(1, 4, 6, 1))(torch.randn(5, 16)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, in_features: int, out_features: int, expert_dims: Sequence[int], rank: RankLike, **options: Any
    ) -> None:
        super().__init__(in_features, out_features, expert_dims, "tt", rank, **options)


class TRMuMoE(MuMoE):
    """`MuMoE` in tensor-ring form (uMoE paper, Eq. 3).

    Examples:
        >>> TRMuMoE(16, 10, expert_dims=[8], rank=(4, 4, 6, 4))(torch.randn(5, 16)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, in_features: int, out_features: int, expert_dims: Sequence[int], rank: RankLike, **options: Any
    ) -> None:
        super().__init__(in_features, out_features, expert_dims, "tr", rank, **options)


def _gate(
    in_features: int,
    expert_dims: tuple[int, ...],
    gate: str | Callable[[Tensor], Tensor] | nn.Module,
    norm: str | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Module:
    if isinstance(gate, nn.Module):
        return gate
    return ExpertGate(in_features, expert_dims, activation=gate, norm=norm, device=device, dtype=dtype)


def _reset(layer: nn.Module) -> None:
    for child in layer.children():
        reset = getattr(child, "reset_parameters", None)
        if reset is not None:
            reset()
