"""The layers of the first release (v1): factors and gate in one module, normalised over the samples.

Legend: `*batch` any leading shape, `I` input_dim, `O` output_dim, `N_k` experts of mode k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from factorized_moe import layers
from factorized_moe._validation import check_call
from factorized_moe.activations import Activation, entmax15, resolve_activation
from factorized_moe.compat.gates import coefficients, native_gate, norms, projections
from factorized_moe.compat.weights import ReleasedWeight, bonds

__all__ = ["CPMMoE", "TTMMoE", "TuckerMMoE"]


class _GatedLayer(ReleasedWeight):
    """What the three have in common; they translate their arguments, no more."""

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        expert_dims: Sequence[int],
        decomposition: str,
        rank: Any,
        act: Activation,
        use_bias: bool,
        hierarchy: int,
    ) -> None:
        super().__init__(input_dim, output_dim, expert_dims, decomposition, rank, use_bias, hierarchy, _unit_slices)
        self.act = resolve_activation(act)
        self.projs = projections(self.input_dim, self.expert_dims)
        self.bn = norms("bn", self.expert_dims)

    def coefficients(self, z: Tensor) -> tuple[Tensor, ...]:
        """The gate's answer to an input `(*batch, I)`: for each expert mode `(*batch, N_k)`."""
        check_call(z, (), self.input_dim, (), self.projs[0])
        return coefficients(z, self.projs, self.bn, self.act)

    def forward(self, z: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            z: The input, `(*batch, I)`.

        Returns:
            The output, `(*batch, O)`.

        Raises:
            TypeError: If the dtype or the device is not the parameters'.
            ValueError: If the last axis is not `I` long.
        """
        return self.contract(z, self.coefficients(z))

    def to_native(self) -> layers.MuMoE:
        """A native layer that computes the same, with values of its own: parameters and running statistics."""
        gate = native_gate(self.projs, self.bn, self.act)
        native = layers.MuMoE(self.input_dim, self.output_dim, gate=gate, **self.native_options())
        native.experts.weight.assign(self.node_tensors())
        return native.train(self.training)


class CPMMoE(_GatedLayer):
    """The layer in CP form of the released code's first version (v1), with its gate.

    Args:
        input_dim: `I`.
        output_dim: `O`.
        expert_dims: The number of experts of each expert mode.
        rank: The rank, one int.
        act: From logits to coefficients, over the last axis.
        use_bias: Whether every expert has a bias, one more row of the input's factor.
        hierarchy: The number of expert modes.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is out of range, or `hierarchy` is not the length of `expert_dims`.

    Examples:
        >>> layer = CPMMoE(4, 8, expert_dims=[32, 2], rank=6, hierarchy=2)
        >>> layer(torch.randn(5, 4)).shape
        torch.Size([5, 8])
        >>> [name for name, _ in layer.named_parameters()]
        ['factors.0', 'factors.1', 'factors.2', 'factors.3', 'projs.0', 'projs.1']
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        expert_dims: Sequence[int],
        rank: int,
        act: Activation = entmax15,
        use_bias: bool = True,
        hierarchy: int = 1,
    ) -> None:
        super().__init__(input_dim, output_dim, expert_dims, "cp", rank, act, use_bias, hierarchy)


class TuckerMMoE(_GatedLayer):
    """The layer in Tucker form of the released code's first version (v1), with its gate; `core` has the shape `ranks`.

    Args:
        input_dim: `I`.
        output_dim: `O`.
        expert_dims: The number of experts of each expert mode.
        ranks: One rank for each mode: experts, input, output.
        act: From logits to coefficients, over the last axis.
        use_bias: Whether every expert has a bias, one more row of the input's factor. Without it, the released code
            keeps that row and fails at every call; here it is gone.
        hierarchy: The number of expert modes.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is out of range, or `hierarchy` is not the length of `expert_dims`.

    Examples:
        >>> TuckerMMoE(4, 8, expert_dims=[32], ranks=[8, 8, 8])(torch.randn(5, 4)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        expert_dims: Sequence[int],
        ranks: Sequence[int],
        act: Activation = entmax15,
        use_bias: bool = True,
        hierarchy: int = 1,
    ) -> None:
        super().__init__(input_dim, output_dim, expert_dims, "tucker", ranks, act, use_bias, hierarchy)


class TTMMoE(_GatedLayer):
    """The layer in tensor-train form of the released code's first version (v1), with its gate.

    A tensor ring if its first bond is longer than 1.

    Args:
        input_dim: `I`.
        output_dim: `O`.
        expert_dims: The number of experts of each expert mode.
        ranks: For each mode `[left bond, anything, right bond]`: experts, input, output. The middle is not read, as in
            the released code: the sizes of the modes are known.
        act: From logits to coefficients, over the last axis.
        use_bias: Whether every expert has a bias, one more slice of the input's core.
        hierarchy: The number of expert modes.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is out of range, neighbouring bonds differ, or `hierarchy` is not the length of
            `expert_dims`.

    Examples:
        >>> layer = TTMMoE(4, 8, expert_dims=[32], ranks=[[1, 32, 2], [2, 4, 3], [3, 8, 1]])
        >>> layer(torch.randn(5, 4)).shape
        torch.Size([5, 8])
        >>> [tuple(factor.shape) for factor in layer.factors]
        [(1, 32, 2), (2, 5, 3), (3, 8, 1)]
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        expert_dims: Sequence[int],
        ranks: Sequence[Sequence[Any]],
        act: Activation = entmax15,
        use_bias: bool = True,
        hierarchy: int = 1,
    ) -> None:
        rank = bonds(ranks)
        form = "tt" if rank[0] == 1 else "tr"
        super().__init__(input_dim, output_dim, expert_dims, form, rank, act, use_bias, hierarchy)


def _unit_slices(input_factor: Tensor, output_factor: Tensor, input_dim: int) -> None:
    """Gaussian values; those of one entry of the input, or of the output, together have length 1."""
    for factor in (input_factor, output_factor):
        bond_axes = 1 if factor.ndim == 2 else (0, 2)  # (size, R) or (left bond, size, right bond)
        factor.normal_()
        factor.div_(torch.linalg.vector_norm(factor, dim=bond_axes, keepdim=True))
