"""The gate of the released layers: for each expert mode a projection, a normalisation without weights, an activation.

Legend: `*batch` any leading shape, `I` input_dim, `N_k` experts of mode k.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from factorized_moe.activations import Activation
from factorized_moe.gating import ExpertGate

__all__ = ["coefficients", "native_gate", "norms", "projections"]


def projections(input_dim: int, expert_dims: Sequence[int]) -> nn.ParameterList:
    """Zeros `(I, N_k)` for each expert mode: an untrained gate mixes all experts uniformly."""
    return nn.ParameterList([nn.Parameter(torch.zeros(input_dim, size)) for size in expert_dims])


def norms(normalization: str, expert_dims: Sequence[int]) -> nn.ModuleList:
    """One normalisation for each expert mode, over the samples (`"bn"`) or over the experts (`"ln"`).

    Raises:
        ValueError: If the name is neither.
    """
    if normalization == "bn":
        return nn.ModuleList([nn.BatchNorm1d(size, affine=False) for size in expert_dims])
    if normalization == "ln":
        return nn.ModuleList([nn.LayerNorm(size, elementwise_affine=False) for size in expert_dims])
    raise ValueError(f"normalization is 'bn' (over the samples) or 'ln' (over the experts), got {normalization!r}")


def coefficients(
    x: Tensor, weights: Iterable[Tensor], normalisations: Iterable[nn.Module], activation: Activation
) -> tuple[Tensor, ...]:
    """What the gate answers to an input `(*batch, I)`: for each expert mode `(*batch, N_k)`.

    Raises:
        ValueError: If the samples' own statistics are wanted and there are fewer than two samples.
    """
    answer = []
    for weight, normalise in zip(weights, normalisations, strict=True):
        logits = (x @ weight).reshape(-1, weight.shape[1])  # (B, N_k)
        samples = logits.shape[0]  # not len(): torch.export would take it for a constant
        if samples < 2 and normalise.training and not isinstance(normalise, nn.LayerNorm):
            raise ValueError(
                f"an input of shape {tuple(x.shape)} has {samples} samples, too few to normalise over them in "
                "training mode; give two or more, or call eval()"
            )
        answer.append(activation(normalise(logits).reshape(*x.shape[:-1], weight.shape[1])))
    return tuple(answer)


def native_gate(weights: nn.ParameterList, normalisations: nn.ModuleList, activation: Activation) -> ExpertGate:
    """The native gate of the same values, copied: its one projection and one batch norm hold all expert modes."""
    expert_dims = [weight.shape[1] for weight in weights]
    over_samples = not isinstance(normalisations[0], nn.LayerNorm)
    gate = ExpertGate(
        weights[0].shape[0],
        expert_dims,
        activation=activation,
        norm="batch" if over_samples else "layer",
        temperature=1.0,
        device=weights[0].device,
        dtype=weights[0].dtype,
    )
    with torch.no_grad():
        gate.get_parameter("projection.weight").copy_(torch.cat(list(weights), dim=1).T)
        if gate.batch_norm is not None:
            buffers = [dict(norm.named_buffers()) for norm in normalisations]
            for name, buffer in gate.batch_norm.named_buffers():  # vectors over the experts, and a count of batches
                values = [own[name] for own in buffers]
                buffer.copy_(torch.cat(values) if buffer.ndim else values[0])
    return gate
