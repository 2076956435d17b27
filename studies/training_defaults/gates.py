"""Gates that the study compares with the library's own; each is a module that a layer takes as ``gate=``.

None of them reads the other samples of a batch but `InputMoments`, through slow averages of the input alone.

Legend: ``*batch`` any leading shape, ``I`` in_features, ``N`` experts of all modes together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from factorized_moe.activations import entmax15

__all__ = ["CANDIDATES", "InputMoments", "RandomStart", "RouterBias", "UnitRows"]


class _Gate(nn.Module):
    """Logits of all modes, then entmax of each."""

    def __init__(self, in_features: int, expert_dims: Sequence[int], start: float = 0.0) -> None:
        super().__init__()
        self.expert_dims = list(expert_dims)
        self.weight = nn.Parameter(start * torch.randn(sum(expert_dims), in_features))

    def logits(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(entmax15(mode) for mode in self.logits(x).split(self.expert_dims, dim=-1))


class UnitRows(_Gate):
    """``scale * layer_norm(x) . g_n / |g_n|``: as large as batch-normalised logits of a white input, no statistics."""

    def __init__(
        self,
        in_features: int,
        expert_dims: Sequence[int],
        *,
        start: float = 1.0,
        scale: float = 1.0,
        least: float = 1e-2,
    ) -> None:
        super().__init__(in_features, expert_dims, start)
        self.scale, self.least = scale, least

    def logits(self, x: Tensor) -> Tensor:
        length = (self.weight.square().sum(dim=-1, keepdim=True) + self.least**2).sqrt()
        return self.scale * nn.functional.linear(nn.functional.layer_norm(x, x.shape[-1:]), self.weight / length)


class RandomStart(_Gate):
    """Logits of unit variance from a random start, normalised over the experts of a mode or left as they are."""

    def __init__(self, in_features: int, expert_dims: Sequence[int], *, layer_norm: bool) -> None:
        super().__init__(in_features, expert_dims, in_features**-0.5)
        self.layer_norm = layer_norm

    def logits(self, x: Tensor) -> Tensor:
        logits = nn.functional.linear(x, self.weight)
        if not self.layer_norm:
            return logits
        modes = logits.split(self.expert_dims, dim=-1)
        return torch.cat([nn.functional.layer_norm(mode, mode.shape[-1:]) for mode in modes], dim=-1)


class InputMoments(_Gate):
    """Batch normalisation of the logits, by running moments of the *input*: ``(x - m) . g_n / sqrt(g_n' S g_n)``.

    The mean and the variance of a logit follow from those of the input, so gradients flow through both as in batch
    normalisation, while no sample reads another one of its batch but through slow averages.

    Args:
        in_features: ``I``.
        expert_dims: The sizes of the expert modes.
        momentum: The weight of the newest batch in the averages.
        through: Whether gradients flow through mean and variance.
    """

    mean: Tensor
    covariance: Tensor
    batches: Tensor

    def __init__(
        self, in_features: int, expert_dims: Sequence[int], *, momentum: float = 0.2, through: bool = True
    ) -> None:
        super().__init__(in_features, expert_dims)
        self.momentum, self.through = momentum, through
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("covariance", torch.eye(in_features))
        self.register_buffer("batches", torch.zeros(()))

    def logits(self, x: Tensor) -> Tensor:
        if self.training:
            self._update(x.detach().reshape(-1, x.shape[-1]))
        variance = (self.weight @ self.covariance * self.weight).sum(dim=-1, keepdim=True)  # (N, 1)
        centre = self.weight @ self.mean  # (N,)
        if not self.through:
            variance, centre = variance.detach(), centre.detach()
        return (nn.functional.linear(x, self.weight) - centre) * torch.rsqrt(variance + 1e-5).squeeze(-1)

    @torch.no_grad()
    def _update(self, rows: Tensor) -> None:
        self.batches += 1
        share = max(self.momentum, 1.0 / float(self.batches))  # the first batches are averaged
        centred = rows - rows.mean(dim=0)
        self.mean.lerp_(rows.mean(dim=0), share)
        self.covariance.lerp_(centred.t() @ centred / len(rows), share)


class RouterBias(_Gate):
    """Layer norm of the logits, and a bias on each that is moved towards equal use after each batch, without a loss.

    Source: Wang et al. 2024, "Auxiliary-loss-free load balancing strategy for mixture-of-experts", arXiv 2408.15664.
    """

    bias: Tensor

    def __init__(self, in_features: int, expert_dims: Sequence[int], *, rate: float = 1e-2) -> None:
        super().__init__(in_features, expert_dims)
        self.rate = rate
        self.register_buffer("bias", torch.zeros(sum(expert_dims)))

    def logits(self, x: Tensor) -> Tensor:
        modes = nn.functional.linear(x, self.weight).split(self.expert_dims, dim=-1)
        return torch.cat([nn.functional.layer_norm(mode, mode.shape[-1:]) for mode in modes], dim=-1) + self.bias

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = super().forward(x)
        if self.training:
            with torch.no_grad():
                for mode, bias in zip(found, self.bias.split(self.expert_dims), strict=True):
                    load = mode.detach().reshape(-1, mode.shape[-1]).mean(dim=0)
                    bias += self.rate * torch.sign(load.mean() - load)
        return found


CANDIDATES: dict[str, Callable[[int, Sequence[int]], nn.Module]] = {
    "input moments": InputMoments,
    "input moments, no gradient through them": lambda i, n: InputMoments(i, n, through=False),
    "unit rows": UnitRows,
    "unit rows, half": lambda i, n: UnitRows(i, n, scale=0.5),
    "unit rows, zero start": lambda i, n: UnitRows(i, n, start=0.0),
    "random start, layer norm": lambda i, n: RandomStart(i, n, layer_norm=True),
    "random start": lambda i, n: RandomStart(i, n, layer_norm=False),
    "router bias, layer norm": RouterBias,
}
"""What the library does not have, by name."""
