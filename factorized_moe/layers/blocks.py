"""Blocks of experts in place of MLPs: two layers, or the three of a gated MLP, behind one gate.

Source: Oldfield et al. 2024, arXiv 2402.12550; of the gated MLP: Shazeer 2020, "GLU variants improve Transformer",
arXiv 2002.05202. Its "gate" is a product within the MLP; here the word means the gate of experts alone.

Legend: ``*batch`` any leading shape, ``I`` in_features, ``H`` hidden_features, ``O`` out_features.
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
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["GatedMuMoEBlock", "MuMoEBlock", "check_activation"]


class MuMoEBlock(ExpertLayer):
    """An MLP of experts, in place of a transformer's: two layers with an activation between them and one gate for both.

    The gate's coefficients are computed once, from the block's input.

    Args:
        in_features: The number of input features, ``I``.
        hidden_features: The number of hidden features, ``H``.
        out_features: The number of output features, ``O``.
        expert_dims: The number of experts of each expert mode.
        decomposition: A registered name or an instance; ``"cp"`` by default.
        rank: The rank of every expert tensor, as for `FactorizedExpertTensor`; a `Budget` is that of the whole block.
        second_rank: The rank of the last one, where it differs.
        activation: What is applied to the first tensor's output; GELU by default.
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

    first: FactorizedExpertTensor
    second: FactorizedExpertTensor

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        expert_dims: Sequence[int],
        decomposition: str | Decomposition | None = None,
        rank: SizeLike | None = None,
        *,
        second_rank: SizeLike | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
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
        inner = in_features, hidden_features
        super().__init__(
            {"first": inner, "second": (hidden_features, out_features)},
            expert_dims,
            decomposition,
            rank,
            ranks={"second": second_rank},
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
        self.activation = nn.GELU() if activation is None else check_activation(activation)

    def own_arguments(self) -> dict[str, Any]:
        """The arguments of this constructor alone, for saving: three sizes, the last tensor's rank, the activation."""
        return _block_arguments(self, self.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: The input, ``(*batch, I)``.

        Returns:
            The output, ``(*batch, O)``.

        Raises:
            TypeError: If dtypes or devices differ.
            ValueError: If a shape does not fit, or a gate with a batch norm gets one position alone in training mode.
        """
        coefficients = self.gate(x)
        x = x if self.input_norm is None else self.input_norm(x)
        # Nested, so that no name keeps the first layer's output alive: with it the memory that a call takes and gives
        # back was above malloc's threshold, and every call paid for fresh pages (python -m benchmarks --only block).
        y: Tensor = self.second(self.activation(self.first(x, coefficients)), coefficients)
        return y


class GatedMuMoEBlock(ExpertLayer):
    """A gated MLP of experts behind one gate, such as SwiGLU: ``second(activation(first(x)) * multiplier(x))``.

    Each of the three is a factorised expert tensor, and all have the same coefficients. With GELU it stands for GEGLU.

    Args:
        in_features: The number of input features, ``I``.
        hidden_features: The number of hidden features, ``H``.
        out_features: The number of output features, ``O``.
        expert_dims: The number of experts of each expert mode.
        decomposition: A registered name or an instance; ``"cp"`` by default.
        rank: The rank of every expert tensor, as for `FactorizedExpertTensor`; a `Budget` is that of the whole block.
        second_rank: The rank of the last one, where it differs.
        activation: What is applied to the first tensor's output; SiLU by default.
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

    first: FactorizedExpertTensor
    multiplier: FactorizedExpertTensor
    second: FactorizedExpertTensor

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        expert_dims: Sequence[int],
        decomposition: str | Decomposition | None = None,
        rank: SizeLike | None = None,
        *,
        second_rank: SizeLike | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        bias: bool = False,
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
        inner = in_features, hidden_features
        super().__init__(
            {"first": inner, "multiplier": inner, "second": (hidden_features, out_features)},
            expert_dims,
            decomposition,
            rank,
            ranks={"second": second_rank},
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
        self.activation = nn.SiLU() if activation is None else check_activation(activation)

    def own_arguments(self) -> dict[str, Any]:
        """The arguments of this constructor alone, for saving: three sizes, the last tensor's rank, the activation."""
        return _block_arguments(self, self.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: The input, ``(*batch, I)``.

        Returns:
            The output, ``(*batch, O)``.

        Raises:
            TypeError: If dtypes or devices differ.
            ValueError: If a shape does not fit, or a gate with a batch norm gets one position alone in training mode.
        """
        coefficients = self.gate(x)
        x = x if self.input_norm is None else self.input_norm(x)
        hidden = self.activation(self.first(x, coefficients)) * self.multiplier(x, coefficients)
        y: Tensor = self.second(hidden, coefficients)
        return y


def check_activation(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The activation between a block's layers, refused if it is none."""
    if isinstance(activation, type) or not callable(activation):
        raise TypeError(
            f"activation is a module or a function of a tensor, such as nn.GELU() or torch.relu, got {activation!r}"
        )
    return activation


def _block_arguments(block: ExpertLayer, activation: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    first, *_, last = block.expert_tensors.values()
    return {
        "in_features": first.in_features,
        "hidden_features": first.out_features,
        "out_features": last.out_features,
        "second_rank": last.rank,
        "activation": activation,
    }
