"""Layers of experts that start as the linear layer or the MLP that they stand for.

Source of the idea: Komatsuzaki et al. 2022, "Sparse upcycling: training mixture-of-experts from dense checkpoints",
arXiv 2212.05055, where every expert starts as a copy of the dense layer.

Legend: ``I`` in_features (one more with a bias), ``O`` out_features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._scalars import is_number
from factorized_moe._validation import check_seed
from factorized_moe.decompositions import Decomposition
from factorized_moe.decompositions.base import RankLike
from factorized_moe.fitting.closed_form.carriers import mean_matrix
from factorized_moe.fitting.closed_form.equal_experts import equal_experts
from factorized_moe.fitting.whitening import input_moment
from factorized_moe.layers import ExpertLayer, GatedMuMoEBlock, MuMoE, MuMoEBlock
from factorized_moe.surgery.replacing.layouts import MLPLayout, child, find_layout
from factorized_moe.surgery.replacing.linears import LinearWeights, computes_weights, read_linear

__all__ = ["Upcycled", "upcycle"]


@dataclass(frozen=True)
class Upcycled:
    """A layer of experts made from a linear layer or an MLP, and how near to it it starts.

    Attributes:
        layer: The layer.
        errors: For each linear layer that it stands for, in the order of application, ``||mean - W|| / ||W||`` in the
            Frobenius norm, ``mean`` being the mean of the experts' matrices as they are stored; in the metric of
            ``input_covariance`` where that was given.
    """

    layer: ExpertLayer
    errors: tuple[float, ...]

    @property
    def error(self) -> float:
        """The largest of the errors."""
        return max(self.errors)


def upcycle(
    module: nn.Module,
    expert_dims: Sequence[int],
    decomposition: str | Decomposition = "cp",
    rank: RankLike | None = None,
    *,
    second_rank: RankLike | None = None,
    noise: float = 0.1,
    input_covariance: Tensor | None = None,
    gate: str | Callable[[Tensor], Tensor] | nn.Module = "entmax15",
    gate_norm: str | None = "batch",
    gate_temperature: float = 2.0,
    gate_rank: int | None = None,
    seed: int = 0,
) -> Upcycled:
    """A layer of experts that computes what a linear layer or an MLP computes, as nearly as its rank allows.

    The gate starts uniform, so what counts at the start is the mean of the experts. It is the dense weight where the
    network can hold it, and the best approximation of the network's matrix rank where not; for networks of three nodes
    or more that share the input and the output (TT-matrix) a good one. Nothing of the size of all experts is built.

    Args:
        module: An `nn.Linear`, transformers' ``Conv1D``, or an MLP of a registered `MLPLayout` that is replaced as a
            whole.
        expert_dims: The number of experts of each expert mode.
        decomposition: A registered name or an instance.
        rank: As for `FactorizedExpertTensor`; of an MLP, that of each of its layers.
        second_rank: Of an MLP, the rank of its last layer, where it differs.
        noise: How far experts start from their mean, ``||W[n] - mean|| / ||mean||``, expected, for each expert mode.
            The mean does not change. Without noise all experts start alike, and a gate that starts uniform gives them
            all the same gradient.
        input_covariance: The second moments of the inputs, ``mean(x x^T)``, ``(I, I)`` without a bias: a layer whose
            rank is too low then loses least in the outputs. With a bias also ``(I + 1, I + 1)``, of ``x`` with a 1
            appended; otherwise the inputs' mean is taken as zero. Of an MLP, for the layers that read its input.
        gate: As for `MuMoE`; it must start uniform.
        gate_norm: As for `MuMoE`; ``"layer"`` trains on a single position too.
        gate_temperature: As for `MuMoE`.
        gate_rank: As for `MuMoE`.
        seed: Of the noise, and of the gate's first map where it has a rank.

    Returns:
        The layer and its error.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the module cannot be read, an argument is out of range, or the gate does not start uniform.

    Examples:
        >>> linear = nn.Linear(16, 10)
        >>> started = upcycle(linear, expert_dims=[8], decomposition="cp", rank=10)
        >>> x = torch.randn(5, 16)
        >>> started.error < 1e-6, torch.allclose(started.layer(x), linear(x), atol=1e-5)
        (True, True)
    """
    check_seed(seed)
    read = read_linear(module)
    if read is not None:
        linears, weights, layout = [module], [read], None
    else:
        layout = find_layout(module)
        if layout is None or layout.block:
            raise ValueError(
                f"cannot upcycle {type(module).__name__}: it is neither a linear layer nor an MLP of a known layout "
                "that is replaced as a whole; describe it with register_layout, or call replace on the model around it"
            )
    activation = None
    if layout is not None:
        activation = merged_activation(module, layout)
        linears, weights = layout.read(module)
    ranks = {"rank": rank} if layout is None else {"rank": rank, "second_rank": second_rank}
    gate_options = {"gate": gate, "gate_norm": gate_norm, "gate_temperature": gate_temperature, "gate_rank": gate_rank}
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=()):  # from a stream apart from the noise's, which stays what it was
        torch.manual_seed(int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(seed))))
        layer = build_layer(weights, activation, expert_dims, decomposition, **ranks, **gate_options)
    errors = fill_layer(layer, linears, weights, noise, generator, input_covariance)
    return Upcycled(layer.train(module.training), errors)


def merged_activation(module: nn.Module, layout: MLPLayout) -> Any:
    """What an MLP applies between its linear layers, as one callable."""
    refusal = layout.refusal(module)
    if refusal is not None:
        raise ValueError(f"{type(module).__name__} {refusal}; change its linear layers one by one")
    parts = [child(module, path) for path in layout.activation]
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def build_layer(
    weights: Sequence[LinearWeights],
    activation: Callable[[Tensor], Tensor] | None,
    expert_dims: Sequence[int],
    decomposition: str | Decomposition,
    **options: Any,
) -> ExpertLayer:
    """A layer of the sizes, type and device of some linear layers: one, two for an MLP, three for a gated one."""
    options["bias"] = any(part.bias is not None for part in weights)
    options |= {"device": weights[0].weight.device, "dtype": weights[0].weight.dtype}
    (inputs, hidden), outputs = weights[0].weight.shape, weights[-1].weight.shape[1]
    if len(weights) == 1:
        return MuMoE(inputs, hidden, expert_dims, decomposition, **options)
    kind = MuMoEBlock if len(weights) == 2 else GatedMuMoEBlock
    return kind(inputs, hidden, outputs, expert_dims, decomposition, activation=activation, **options)


@torch.no_grad()
def fill_layer(
    layer: ExpertLayer,
    linears: Sequence[nn.Module],
    weights: Sequence[LinearWeights],
    noise: float,
    generator: torch.Generator,
    input_covariance: Tensor | None = None,
) -> tuple[float, ...]:
    """Set a layer's experts to linear layers, and return the error of each."""
    if not is_number(noise) or not 0 <= noise < float("inf"):
        raise ValueError(f"noise is a finite number, 0 or more, got {noise!r}")
    if any(read.weight.is_meta for read in weights):
        raise ValueError("the weights are on the meta device and have no values to start from; load them first")
    _check_uniform(layer, weights[0].weight)
    errors = []
    for position, (experts, read) in enumerate(zip(layer.expert_tensors.values(), weights, strict=True)):
        matrix = read.matrix(experts.bias)
        if not torch.isfinite(matrix).all():
            raise ValueError(f"linear layer {position} of what is upcycled has a NaN or an infinite weight")
        if not computes_weights(linears[position]):
            raise ValueError(
                f"linear layer {position} of what is upcycled, of class {type(linears[position]).__name__}, computes "
                "something else than its weight and bias say; merge into them what hooks or its own code add"
            )
        given = input_covariance if position < max(1, len(weights) - 1) else None
        covariance = input_moment(matrix.shape[0], experts.bias, None, given, matrix.device)
        tensors = equal_experts(matrix, experts.network, noise=noise, generator=generator, input_covariance=covariance)
        experts.weight.assign(tensors)
        rest = mean_matrix(experts.network, experts.weight.tensors) - matrix.double()
        errors.append(_norm(rest, covariance) / (_norm(matrix.double(), covariance) or 1.0))
    return tuple(errors)


def _check_uniform(layer: ExpertLayer, like: Tensor) -> None:
    """The mean of the experts is what counts only where all coefficients are 1 / N."""
    gate = layer.gate
    was_training = gate.training
    coefficients = gate.eval()(like.new_zeros(1, like.shape[0]))
    gate.train(was_training)
    for mode, values in enumerate(coefficients):
        if not torch.allclose(values, torch.full_like(values, 1 / values.shape[-1]), rtol=1e-2):
            raise ValueError(
                f"the gate's coefficients of expert mode {mode} do not start uniform (from {float(values.min()):.3g} "
                f"to {float(values.max()):.3g} for {values.shape[-1]} experts); give a gate of zero weights, with an "
                "activation that sums to 1, such as 'entmax15'"
            )


def _norm(matrix: Tensor, covariance: Tensor | None) -> float:
    """``sqrt(tr(M^T C M))``: the Frobenius norm without a covariance, else the root mean square of the outputs."""
    if covariance is None:
        return float(torch.linalg.vector_norm(matrix))
    return float((matrix * (covariance.to(matrix) @ matrix)).sum().clamp(min=0.0).sqrt())
