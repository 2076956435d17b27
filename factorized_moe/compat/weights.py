"""The parameters of one weight tensor in the released layout, and their contraction by the library's plan.

Legend: `*batch` any leading shape, `I` input_dim, `O` output_dim, `N_k` experts of mode k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._scalars import is_whole
from factorized_moe.contraction import execute, forward_request, plan_layer
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["ReleasedWeight", "bonds"]


class ReleasedWeight(nn.Module):
    """Factors as TensorLy lays them out, which is the released layout; the base of all released layers.

    The decomposition's hook for TensorLy's layout gives each node of the network its view. Both releases draw the
    experts' factors and Tucker's core alike; `redraw` draws the other two factors.

    Args:
        input_dim: `I`.
        output_dim: `O`.
        expert_dims: The number of experts of each expert mode.
        decomposition: The decomposition's registered name: `"cp"`, `"tucker"`, `"tt"` or `"tr"`.
        rank: Its rank, in TensorLy's convention.
        use_bias: Whether every expert has a bias.
        hierarchy: The number of expert modes.
        redraw: Fills the input's and the output's factor in place; the third argument is `I`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is out of range, `expert_dims` is empty, or `hierarchy` is not its length.
    """

    core: nn.Parameter | None

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        expert_dims: Sequence[int],
        decomposition: str,
        rank: Any,
        use_bias: bool,
        hierarchy: int,
        redraw: Callable[[Tensor, Tensor, int], None],
    ) -> None:
        super().__init__()
        if not (isinstance(use_bias, bool) or (is_whole(use_bias) and use_bias in (0, 1))):
            raise TypeError(f"use_bias is True or False, or 1 or 0, got {use_bias!r}")
        tensor = FactorizedExpertTensor(
            expert_dims, input_dim, output_dim, decomposition, rank, bias=bool(use_bias), init="paper"
        )
        modes = len(tensor.expert_dims)
        if not modes:
            raise ValueError("expert_dims is empty; give the number of experts of at least one expert mode")
        if hierarchy != modes:
            raise ValueError(
                f"hierarchy={hierarchy!r} for {modes} expert modes {list(expert_dims)}; give hierarchy={modes}"
            )
        self.input_dim = tensor.in_features
        self.output_dim = tensor.out_features
        self.expert_dims = list(tensor.expert_dims)
        self.hierarchy = modes
        self.use_bias = tensor.bias
        self._decomposition = tensor.decomposition
        self._rank = tensor.rank
        self._plans = plan_layer(tensor.network, forward_request(tensor.network, tensor.bias))
        self._is_chain = decomposition in ("tt", "tr")  # in TensorLy's layout a list of cores, else (core, factors)
        value = tensor.to_tensorly()
        self.register_parameter("core", _parameter(value.core) if decomposition == "tucker" else None)
        self.factors = nn.ParameterList([_parameter(factor) for factor in value.factors])
        with torch.no_grad():
            redraw(self.factors[-2], self.factors[-1], self.input_dim)

    def extra_repr(self) -> str:
        """The constructor's arguments, for `print`."""
        return (
            f"input_dim={self.input_dim}, output_dim={self.output_dim}, expert_dims={self.expert_dims}, "
            f"ranks={self._rank}, use_bias={self.use_bias}, hierarchy={self.hierarchy}"
        )

    def contract(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        """Mix the experts and apply them; shapes are not checked.

        Args:
            x: The input, `(*batch, I)`.
            coefficients: For each expert mode `(*batch, N_k)`.

        Returns:
            The output, `(*batch, O)`.
        """
        nodes = self.node_tensors()
        rows = [vectors.reshape(-1, vectors.shape[-1]) for vectors in (x, *coefficients)]
        plan = self._plans.at(rows[0].shape[0])
        operands = [nodes[node.parameter] for node in plan.network.nodes]
        return execute(plan, (*operands, *rows)).reshape(*x.shape[:-1], self.output_dim)

    def node_tensors(self) -> dict[str, Tensor]:
        """Views of the parameters, by the names of the network's nodes."""
        factors = list(self.factors)
        return self._decomposition.from_tensorly(factors if self._is_chain else (self.core, factors))

    def native_options(self) -> dict[str, Any]:
        """The arguments that all native classes share."""
        return {
            "expert_dims": self.expert_dims,
            "decomposition": self._decomposition,
            "rank": self._rank,
            "bias": self.use_bias,
            "device": self.factors[0].device,
            "dtype": self.factors[0].dtype,
        }


def bonds(ranks: Sequence[Sequence[Any]]) -> tuple[int, ...]:
    """The sizes of a chain's bonds, first and last included, from the released notation.

    Args:
        ranks: For each mode `[left bond, anything, right bond]`.

    Raises:
        ValueError: If `ranks` is of another form, or neighbouring bonds differ.

    Examples:
        >>> bonds([[2, 32, 3], [3, 16, 4], [4, 10, 2]])
        (2, 3, 4, 2)
    """
    form = "ranks is a list with [left bond, size, right bond] for each mode: experts, input, output"
    cores = ranks if isinstance(ranks, Sequence) else ()
    if not cores or not all(isinstance(core, Sequence) and len(core) == 3 for core in cores):
        raise ValueError(f"{form}; got {ranks!r}")
    ends = [(core[0], core[2]) for core in cores]
    for number, (_, right) in enumerate(ends):
        following = (number + 1) % len(ends)
        if right != ends[following][0]:
            raise ValueError(
                f"ranks[{number}] ends with bond {right}, but ranks[{following}] begins with {ends[following][0]}: "
                "they are one bond, the last one the first; make them equal"
            )
    return (*(left for left, _ in ends), ends[-1][1])


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format))
