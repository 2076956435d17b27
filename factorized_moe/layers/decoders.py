"""Mixture of Decoders: an MLP whose second layer is a mixture of experts, chosen by the MLP's own input.

Source: Oldfield et al. 2025, "Towards interpretability without sacrifice: faithful dense layer decomposition with
Mixture of Decoders", arXiv 2505.21364.

Legend: ``*batch`` any leading shape, ``I`` in_features, ``H`` hidden_features, ``O`` out_features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._linear import Linear
from factorized_moe._validation import check_expert_dims, check_flag, check_size
from factorized_moe.activations import TopKReLU
from factorized_moe.budgets import Budget, SizeLike
from factorized_moe.decompositions import Decomposition
from factorized_moe.decompositions.base import Initialisation
from factorized_moe.decompositions.initialisation import balanced
from factorized_moe.gating import ExpertGate
from factorized_moe.layers.blocks import check_activation
from factorized_moe.layers.expert_layer import ExpertLayer
from factorized_moe.network import TensorNetwork
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["MixtureOfDecodersBlock", "zero_decoder"]

LARGEST = TopKReLU(32)
"""How many experts take part by default, as in the source's probing and steering; fewer where a mode has fewer."""


def zero_decoder(network: TensorNetwork, tensors: Mapping[str, Tensor]) -> None:
    """Initialise all experts to zero, each with a direction of its own to grow in: the start of a Mixture of Decoders.

    In each term the first node of the input is zero. Nodes of experts and output are uniform, of norm 1 along the
    output; all others as in ``"balanced"``.

    Args:
        network: The network.
        tensors: Its parameters by name, filled in place.
    """
    balanced(network, tensors)
    outputs = set(network.out_labels)
    for node in network.learned_nodes:
        if outputs & set(node.labels) and set(network.expert_labels) & set(node.labels):
            values = tensors[node.parameter].uniform_(-1.0, 1.0)
            axes = [axis for axis, label in enumerate(node.labels) if label in outputs]
            values.div_(values.square().sum(axes, keepdim=True).sqrt())
    for term in network.terms:
        reading = [node for node in term if node.fixed is None and set(network.in_labels) & set(node.labels)]
        for node in reading[:1]:
            tensors[node.parameter].zero_()


class MixtureOfDecodersBlock(ExpertLayer):
    """A Mixture of Decoders in place of an MLP: ``experts(activation(encoder(x)), gate(x)) + output_bias``.

    The encoder is dense, as the MLP's first layer is, and every expert is a decoder of its hidden units. The gate reads
    the block's input: logits with a bias, ReLU, and the largest of them. The decoders start at zero.

    Args:
        in_features: The number of input features, ``I``.
        hidden_features: The number of hidden features, ``H``.
        out_features: The number of output features, ``O``.
        expert_dims: The number of experts of each expert mode; in the source one, of ten thousands.
        decomposition: A registered name or an instance.
        rank: As for `FactorizedExpertTensor`; 1 in the source.
        gated: Whether the hidden units are those of a gated MLP, ``activation(encoder(x)) * multiplier(x)``.
        skip: Whether ``x`` times a matrix is added, which starts at zero.
        activation: What is applied to the encoder's output; ReLU by default.
        bias: Whether every decoder has a bias, which the source has not. One bias for all is always there.
        gate: As for `ExpertLayer`; given as an activation, the gate's logits have a bias. By default the 32 largest
            logits of each mode, or as many as the smallest mode has.
        gate_norm: As for `ExpertLayer`.
        gate_temperature: As for `ExpertLayer`.
        gate_rank: As for `ExpertLayer`.
        input_norm: As for `ExpertLayer`, of the encoder's input.
        init: As for `FactorizedExpertTensor`; by default the decoders start at zero, by `zero_decoder`.
        checkpoint: As for `FactorizedExpertTensor`.
        sparse_coefficients: As for `FactorizedExpertTensor`.
        device: Where the parameters are.
        dtype: The parameters' type.

    Attributes:
        gate: The gate.
        encoder: The map to the hidden units.
        multiplier: The one whose output they are multiplied by, or None.
        experts: The decoders, a `FactorizedExpertTensor`.
        skip: The map beside the experts, or None.
        output_bias: What is added to every output, ``(O,)``.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is out of range.

    Examples:
        >>> block = MixtureOfDecodersBlock(16, 64, 16, expert_dims=[4096], gate=TopKReLU(32))
        >>> x = torch.randn(2, 5, 16)
        >>> block(x).abs().max().item()  # zero at first
        0.0
        >>> [int((a > 0).sum(-1).max()) for a in block.gate(x)]
        [32]
    """

    experts: FactorizedExpertTensor

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        expert_dims: Sequence[int],
        decomposition: str | Decomposition = "mixture_of_decoders",
        rank: SizeLike = 1,
        *,
        gated: bool = False,
        skip: bool = False,
        activation: Callable[[Tensor], Tensor] | None = None,
        bias: bool = False,
        gate: str | Callable[[Tensor], Tensor] | nn.Module = LARGEST,
        gate_norm: str | None = None,
        gate_temperature: float = 1.0,
        gate_rank: int | None = None,
        input_norm: bool = False,
        init: str | Initialisation | None = None,
        checkpoint: bool = False,
        sparse_coefficients: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(rank, Budget):
            raise TypeError(f"a budget counts no encoder; give {type(self).__name__} a rank")
        inputs = check_size("in_features", in_features)
        for name, flag in (("gated", gated), ("skip", skip)):
            check_flag(name, flag)
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        if gate is LARGEST:
            gate = TopKReLU(min((32, *check_expert_dims(expert_dims))))
        if not isinstance(gate, nn.Module):
            options: dict[str, Any] = {"temperature": gate_temperature, "rank": gate_rank}
            gate = ExpertGate(
                inputs, expert_dims, gate, gate_norm, logit_bias=True, zero_start=False, **options, **place
            )
            gate_rank = None
        super().__init__(
            {"experts": (hidden_features, out_features)},
            expert_dims,
            decomposition,
            rank,
            in_features=inputs,
            bias=bias,
            gate=gate,
            gate_rank=gate_rank,
            input_norm=input_norm,
            init=zero_decoder if init is None else init,
            checkpoint=checkpoint,
            sparse_coefficients=sparse_coefficients,
            **place,
        )
        hidden, outputs = self.experts.in_features, self.experts.out_features
        self.encoder = Linear(inputs, hidden, **place)
        self.multiplier = Linear(inputs, hidden, **place) if gated else None
        self.skip = _ZeroLinear(inputs, outputs, bias=False, **place) if skip else None
        self.output_bias = nn.Parameter(torch.zeros(outputs, **place))
        self.activation = nn.ReLU() if activation is None else check_activation(activation)

    def own_arguments(self) -> dict[str, Any]:
        """The three sizes, the activation, and what parts there are."""
        return {
            "in_features": self.in_features,
            "hidden_features": self.experts.in_features,
            "out_features": self.out_features,
            "activation": self.activation,
            "gated": self.multiplier is not None,
            "skip": self.skip is not None,
        }

    def reset_parameters(self) -> None:
        """Fill all parameters anew, as after construction."""
        super().reset_parameters()
        nn.init.zeros_(self.output_bias)

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
        read = x if self.input_norm is None else self.input_norm(x)
        hidden = self.activation(self.encoder(read))
        hidden = hidden if self.multiplier is None else hidden * self.multiplier(read)
        y: Tensor = self.experts(hidden, coefficients) + self.output_bias
        return y if self.skip is None else y + self.skip(x)


class _ZeroLinear(nn.Linear):
    """A linear map that starts at zero, also where a framework resets every module on its own."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
