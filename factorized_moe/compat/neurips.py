"""The layers of the NeurIPS version: factors called with coefficients, and a wrapper with the gate.

Legend: `*batch` any leading shape, `I` input_dim, `O` output_dim, `S` second_dim, `N_k` experts of mode k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from factorized_moe import layers
from factorized_moe._scalars import is_whole
from factorized_moe._validation import check_call
from factorized_moe.activations import Activation, entmax15, resolve_activation
from factorized_moe.compat.gates import coefficients, native_gate, norms, projections
from factorized_moe.compat.weights import ReleasedWeight, bonds
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["CPMuMoE", "MuMoE", "TRMuMoE"]


class _UngatedLayer(ReleasedWeight):
    """The base of both layers without a gate: it translates the released code's arguments, no more."""

    def forward(self, z: Tensor, a: Sequence[Tensor]) -> Tensor:
        """Apply the layer.

        Args:
            z: The input, `(*batch, I)`.
            a: The coefficients, for each expert mode `(*batch, N_k)`.

        Returns:
            The output, `(*batch, O)`.

        Raises:
            TypeError: If `a` is no sequence of tensors, or a dtype or a device is not the parameters'.
            ValueError: If a shape does not fit.
        """
        check_call(z, a, self.input_dim, tuple(self.expert_dims), self.factors[0])
        return self.contract(z, a)

    def to_native(self) -> FactorizedExpertTensor:
        """A native weight tensor that computes the same, with values of its own; it is called with `(z, a)` too."""
        native = FactorizedExpertTensor(
            in_features=self.input_dim, out_features=self.output_dim, **self.native_options()
        )
        native.weight.assign(self.node_tensors())
        return native.train(self.training)


class CPMuMoE(_UngatedLayer):
    """A layer in CP form without a gate, as in the released NeurIPS code; it is called with coefficients.

    Args:
        input_dim: `I`.
        output_dim: `O`.
        expert_dims: The number of experts of each expert mode.
        rank: The rank, one int.
        use_bias: Whether every expert has a bias, one more row of the input's factor.
        hierarchy: The number of expert modes.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is out of range, or `hierarchy` is not the length of `expert_dims`.

    Examples:
        >>> import torch
        >>> layer = CPMuMoE(4, 8, expert_dims=[32], rank=6)
        >>> layer(torch.randn(5, 4), [torch.rand(5, 32)]).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        expert_dims: Sequence[int],
        rank: int,
        use_bias: bool = True,
        hierarchy: int = 1,
    ) -> None:
        super().__init__(input_dim, output_dim, expert_dims, "cp", rank, use_bias, hierarchy, _uniform_input)


class TRMuMoE(_UngatedLayer):
    """A layer in tensor-ring form without a gate, as in the released NeurIPS code; it is called with coefficients.

    Args:
        input_dim: `I`.
        output_dim: `O`.
        expert_dims: The number of experts of each expert mode.
        ranks: For each mode `[left bond, anything, right bond]`: experts, input, output. The middle is not read, as in
            the released code: the sizes of the modes are known.
        act: Not used, as in the released code: there is no gate.
        use_bias: Whether every expert has a bias, one more slice of the input's core.
        hierarchy: The number of expert modes.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is out of range, neighbouring bonds differ, or `hierarchy` is not the length of
            `expert_dims`.

    Examples:
        >>> import torch
        >>> layer = TRMuMoE(4, 8, expert_dims=[32], ranks=[[2, 32, 2], [2, 4, 3], [3, 8, 2]])
        >>> layer(torch.randn(5, 4), [torch.rand(5, 32)]).shape
        torch.Size([5, 8])
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
        super().__init__(input_dim, output_dim, expert_dims, "tr", bonds(ranks), use_bias, hierarchy, _uniform_input)
        self.act = resolve_activation(act)


class MuMoE(nn.Module):
    """The released NeurIPS code's layer with its gate, or its block of two layers that share one gate.

    Args:
        MuMoE_layer: The class of the factors, `CPMuMoE` or `TRMuMoE` of this module.
        input_dim: `I`.
        output_dim: `O`; with a second layer, the size between the two.
        expert_dims: The number of experts of each expert mode.
        ranks: The rank of each layer, as that class takes it.
        second_dim: `S`, the output size of a second layer after a GELU; 0 for one layer only.
        normalization: Whether logits are normalised over the samples (`"bn"`) or over the experts (`"ln"`).
        act: From logits to coefficients, over the last axis.
        use_bias: Whether every expert has a bias.
        hierarchy: The number of expert modes.
        apply_ln: Whether a `LayerNorm` is applied to the experts' input; the gate sees the input as it is.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is out of range, or two contradict each other.

    Examples:
        >>> import torch
        >>> block = MuMoE(CPMuMoE, 4, 16, expert_dims=[32], ranks=6, second_dim=4, normalization="ln")
        >>> block(torch.randn(2, 5, 4)).shape
        torch.Size([2, 5, 4])
        >>> [a.shape for a in block.coefficients(torch.randn(2, 5, 4))]
        [torch.Size([2, 5, 32])]
    """

    def __init__(
        self,
        MuMoE_layer: type[CPMuMoE] | type[TRMuMoE],
        input_dim: int,
        output_dim: int,
        expert_dims: Sequence[int],
        ranks: Any,
        second_dim: int = 0,
        normalization: str = "bn",
        act: Activation = entmax15,
        use_bias: bool = True,
        hierarchy: int = 1,
        apply_ln: bool = False,
    ) -> None:
        super().__init__()
        if not (isinstance(MuMoE_layer, type) and issubclass(MuMoE_layer, _UngatedLayer)):
            raise TypeError(f"MuMoE_layer is CPMuMoE or TRMuMoE of factorized_moe.compat, got {MuMoE_layer!r}")
        self.second_dim = _size_or_zero(second_dim)
        self.MuMoE = MuMoE_layer(input_dim, output_dim, expert_dims, ranks, use_bias=use_bias, hierarchy=hierarchy)
        self.expert_dims = self.MuMoE.expert_dims
        self.normalization = normalization
        self.act = resolve_activation(act)
        if self.second_dim:
            self.MuMoE2 = MuMoE_layer(
                output_dim, self.second_dim, expert_dims, ranks, use_bias=use_bias, hierarchy=hierarchy
            )
            self.gelu = nn.GELU()
        self.input_ln = nn.LayerNorm(self.MuMoE.input_dim) if apply_ln else nn.Identity()
        self.projs = projections(self.MuMoE.input_dim, self.expert_dims)
        normalisations = norms(normalization, self.expert_dims)
        if normalization == "bn":
            self.bn = normalisations
        else:
            self.ln = normalisations

    def coefficients(self, x: Tensor) -> tuple[Tensor, ...]:
        """The coefficients that the gate gives for an input `(*batch, I)`: for each expert mode `(*batch, N_k)`."""
        check_call(x, (), self.MuMoE.input_dim, (), self.projs[0])
        return coefficients(x, self.projs, self._norms(), self.act)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer or the block.

        Args:
            x: The input, `(*batch, I)`.

        Returns:
            The output, `(*batch, O)`, or `(*batch, S)` with a second layer.

        Raises:
            TypeError: If the dtype or the device is not the parameters'.
            ValueError: If the last axis is not `I` long.
        """
        a = self.coefficients(x)
        y: Tensor = self.MuMoE(self.input_ln(x), a)
        return self.MuMoE2(self.gelu(y), a) if self.second_dim else y

    def to_native(self) -> layers.MuMoE | layers.MuMoEBlock:
        """A native layer, or block, that computes the same, with values of its own."""
        options = self.MuMoE.native_options()
        options["gate"] = native_gate(self.projs, self._norms(), self.act)
        options["input_norm"] = isinstance(self.input_ln, nn.LayerNorm)
        sizes = (self.MuMoE.input_dim, self.MuMoE.output_dim)
        native: layers.MuMoE | layers.MuMoEBlock
        if self.second_dim:
            native = layers.MuMoEBlock(*sizes, self.second_dim, **options)
            native.first.weight.assign(self.MuMoE.node_tensors())
            native.second.weight.assign(self.MuMoE2.node_tensors())
        else:
            native = layers.MuMoE(*sizes, **options)
            native.experts.weight.assign(self.MuMoE.node_tensors())
        if native.input_norm is not None:
            native.input_norm.load_state_dict(self.input_ln.state_dict())
        return native.train(self.training)

    def _norms(self) -> nn.ModuleList:
        return self.bn if self.normalization == "bn" else self.ln


def _size_or_zero(second_dim: Any) -> int:
    if not is_whole(second_dim) or second_dim < 0:
        raise ValueError(f"second_dim is a size, or 0 for one layer only, got {second_dim!r}")
    return int(second_dim)


def _uniform_input(input_factor: Tensor, output_factor: Tensor, input_dim: int) -> None:
    """Uniform within `1/sqrt(I)`. The decompositions' own initialisation counts the bias in I, this one does not."""
    nn.init.uniform_(input_factor, -(input_dim**-0.5), input_dim**-0.5)
