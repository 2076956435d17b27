"""What a fit returns, and how its errors are measured: always from the tensor that the parameters give.

Legend: ``N_k`` experts of mode k, ``I`` in_features (one more with a bias), ``O`` out_features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from factorized_moe.contraction import dense_tensor, num_parameters
from factorized_moe.contraction.fixed import with_fixed
from factorized_moe.decompositions import Decomposition
from factorized_moe.decompositions.base import Rank
from factorized_moe.fitting.whitening import Roots
from factorized_moe.network import TensorNetwork

__all__ = ["Fit", "measure_errors"]


@dataclass(frozen=True, eq=False)
class Fit:
    """A decomposition's parameters that approximate a dense tensor, and how well they do.

    Errors are relative, in the Frobenius norm: ``||W - dense|| / ||dense||``; with an input covariance ``C`` those of
    the outputs, in the norm ``sqrt(trace(W^T C W))``, and with an output covariance ``D`` in that of
    ``trace(W^T C W D)``. They are computed from the parameters as returned, rounded to
    their type.

    Attributes:
        decomposition: The decomposition.
        rank: The canonical rank.
        network: Its network of the dense tensor's shape.
        bias: Whether the last row of each expert's matrix is its bias.
        tensors: The parameters by name.
        relative_error: The error of the whole tensor.
        expert_errors: Each expert's own error, ``(*expert_dims)``, float64; infinite for a wrong expert of zeros.
        error_bound: No tensor of this network has a smaller ``relative_error``: see `error_bound`.
        iterations: Sweeps and further steps of all starts together, those inside TensorLy not counted.
        seconds: How long the fit took.
        method: What found the result, in words.

    Examples:
        >>> from factorized_moe import FactorizedExpertTensor
        >>> from factorized_moe.fitting import fit
        >>> fitted = fit(torch.ones(3, 4, 5), "cp", rank=1)
        >>> fitted.relative_error < 1e-6, fitted.num_parameters, fitted.expert_errors.shape
        (True, 12, torch.Size([3]))
        >>> FactorizedExpertTensor.from_fit(fitted).to_dense().shape
        torch.Size([3, 4, 5])
    """

    decomposition: Decomposition
    rank: Rank
    network: TensorNetwork
    bias: bool
    tensors: Mapping[str, Tensor] = field(repr=False)
    relative_error: float
    expert_errors: Tensor = field(repr=False)
    error_bound: float
    iterations: int
    seconds: float
    method: str

    @property
    def num_parameters(self) -> int:
        """The number of parameters; a shared one counts once."""
        return num_parameters(self.network)

    @property
    def operands(self) -> tuple[Tensor, ...]:
        """The nodes' tensors, in the order of the network's nodes."""
        known = with_fixed(self.network, self.tensors)
        return tuple(known[node.parameter] for node in self.network.nodes)

    def to_dense(self) -> Tensor:
        """The tensor that the parameters give, ``(*expert_dims, I, O)``."""
        return dense_tensor(self.network, self.operands)


def measure_errors(
    network: TensorNetwork, tensors: Mapping[str, Tensor], target: Tensor, roots: Roots
) -> tuple[float, Tensor]:
    """The relative error of the whole tensor, and each expert's.

    Args:
        network: The network.
        tensors: Its parameters, as they are returned.
        target: The dense tensor, float64, ``(*expert_dims, I, O)``.
        roots: Of the second moments that errors are weighted by.

    Returns:
        The error, and a tensor ``(*expert_dims)``.
    """
    known = with_fixed(network, {name: tensor.to(torch.float64) for name, tensor in tensors.items()})
    wide = [known[node.parameter] for node in network.nodes]
    difference = dense_tensor(network, wide) - target
    difference, target = roots.weigh(difference), roots.weigh(target)
    errors, sizes = (torch.linalg.vector_norm(x, dim=(-2, -1)) for x in (difference, target))
    total = torch.linalg.vector_norm(errors) / torch.linalg.vector_norm(sizes)
    experts = torch.where(errors == 0, torch.zeros_like(errors), errors / sizes)
    return float(total) if errors.any() else 0.0, experts
