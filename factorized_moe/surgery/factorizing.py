"""The experts of a trained sparse mixture as factorised tensors, behind the model's own router.

The experts of such a block are gated MLPs, ``y_n = down_n(act(gate_n x) * up_n x)``, and the router mixes the ``y_n``
of each token's ``K`` experts. Mixing the experts' weights instead, as a uMoE layer does, is another function because
of the activation. So each pair of a token and one of its experts is a sample of its own here, whose coefficients are
one-hot, and the pairs' outputs are mixed: at full rank this is the block's own function.

Legend: ``T`` tokens, ``K`` experts of each token, ``N`` experts, ``H`` hidden_features (of the model), ``F``
features between an expert's two projections.

Source of the layout: transformers 5, whose blocks hold all experts in ``gate_up_proj`` ``(N, 2F, H)`` and
``down_proj`` ``(N, H, F)`` and call ``experts(hidden_states, top_k_index, top_k_weights)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe.decompositions import Decomposition
from factorized_moe.decompositions.base import RankLike
from factorized_moe.surgery.replacing.installing import installed
from factorized_moe.surgery.replacing.nonlinearities import build_nonlinearity, describe_nonlinearity
from factorized_moe.surgery.saving.announcing import announce
from factorized_moe.surgery.saving.describing import Kind, build_tensor, describe, describe_tensor, register_kind
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["ExpertsReport", "FactorizedExperts", "factorize_experts"]

PROBE_TOKENS = 8
PROBE_GATES = (1.0, 30.0)
"""Root mean squares of the gates' inputs at which a module is probed; the larger one meets clamps."""

PROBE_TOLERANCE = 0.05
"""Far above what rounding in bfloat16 makes, far below what another formula makes."""


@dataclass(frozen=True)
class ExpertsReport:
    """What factorised experts cost, and how far their weights are from the original's.

    Errors are relative, in the Frobenius norm: 0 is exact, 1 is as far off as zeros are.

    Attributes:
        parameters: The parameters of both tensors.
        dense_parameters: The original's.
        gate_up_error: The error of all experts' first projections together.
        down_error: The error of all experts' second projections together.
        gate_up_errors: The error of each expert's first projections.
        down_errors: The error of each expert's second projection.
    """

    parameters: int
    dense_parameters: int
    gate_up_error: float
    down_error: float
    gate_up_errors: tuple[float, ...]
    down_errors: tuple[float, ...]

    @property
    def share(self) -> float:
        """The parameters, as a share of the original's."""
        return self.parameters / self.dense_parameters

    def __str__(self) -> str:
        kinds = (("gate_up", self.gate_up_error, self.gate_up_errors), ("down", self.down_error, self.down_errors))
        errors = ", ".join(
            f"{name} {error:.3g} (experts {min(each):.3g} to {max(each):.3g})" for name, error, each in kinds
        )
        return f"{self.parameters:,} of {self.dense_parameters:,} parameters ({self.share:.0%}); errors: {errors}"


class FactorizedExperts(nn.Module):
    """The experts of a sparse mixture in two factorised tensors: a block's ``experts``, called as it is.

    Args:
        gate_up: The first projections: one expert mode, ``H`` to ``2F``; the first half of the outputs is the gate.
        down: The second projections: the same expert mode, ``F`` to ``H``.
        activation: What is applied to the gate.

    Attributes:
        gate_up: The first projections.
        down: The second projections.
        activation: What is applied to the gate.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the tensors do not fit together.

    Examples:
        >>> gate_up = FactorizedExpertTensor((8,), 16, 2 * 32, decomposition="tucker", rank=(8, 12, 24))
        >>> down = FactorizedExpertTensor((8,), 32, 16, decomposition="tucker", rank=(8, 24, 12))
        >>> experts = FactorizedExperts(gate_up, down, torch.nn.functional.silu)
        >>> tokens, chosen = torch.randn(5, 16), torch.tensor([[0, 7]] * 5)
        >>> experts(tokens, chosen, torch.full((5, 2), 0.5)).shape
        torch.Size([5, 16])
    """

    def __init__(
        self, gate_up: FactorizedExpertTensor, down: FactorizedExpertTensor, activation: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        for name, tensor in (("gate_up", gate_up), ("down", down)):
            if not isinstance(tensor, FactorizedExpertTensor):
                raise TypeError(f"{name} is a FactorizedExpertTensor, got {type(tensor).__name__}")
            if len(tensor.expert_dims) != 1 or tensor.bias:
                raise ValueError(
                    f"{name} has expert modes {tensor.expert_dims} and bias={tensor.bias}; expected one expert mode, "
                    "which the router's indices number, and no bias"
                )
        shapes = (*gate_up.expert_dims, gate_up.in_features, gate_up.out_features)
        expected = (*down.expert_dims, down.out_features, 2 * down.in_features)
        if shapes != expected:
            raise ValueError(
                f"gate_up is of shape {shapes}, but down of shape {tuple(down.network.shape)} asks for {expected}: "
                "(N, H, 2F) beside (N, F, H)"
            )
        if not callable(activation):
            raise TypeError(f"activation is a function of a tensor, got {activation!r}")
        self.gate_up = gate_up
        self.down = down
        self.activation = activation

    @classmethod
    def from_experts(
        cls,
        experts: nn.Module,
        decomposition: str | Decomposition = "tucker",
        rank: RankLike | None = None,
        *,
        down_rank: RankLike | None = None,
    ) -> FactorizedExperts:
        """Fit both tensors to the experts of a trained block, which stay as they are.

        A few random tokens go through both first, with the original's own weights on either side, so a module that
        computes something else (a clamp, interleaved gates, a bias) is refused and never approximated wrongly.

        Args:
            experts: The block's experts, with the parameters ``gate_up_proj`` ``(N, 2F, H)`` and ``down_proj``
                ``(N, H, F)`` and the activation ``act_fn``, as in transformers' Mixtral and Qwen blocks.
            decomposition: A registered name or an instance.
            rank: As for `FactorizedExpertTensor`, of the first projections, ``(N, H, 2F)``.
            down_rank: Of the second projections, ``(N, F, H)``, where it differs.

        Raises:
            TypeError: If the module has no such parameters.
            ValueError: If it computes something else from them, or a rank is out of range.
        """
        gate_up, down, activation = _read_experts(experts)
        _check_formula(experts, gate_up, down, activation)
        fit = FactorizedExpertTensor.from_dense
        first = fit(gate_up, decomposition, rank)
        second = fit(down, decomposition, rank if down_rank is None else down_rank)
        return cls(first, second, activation).train(experts.training)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Apply each token's experts and mix what they give.

        Args:
            hidden_states: The tokens, ``(T, H)``.
            top_k_index: The experts of each token, ``(T, K)``; an index of ``N`` chooses none.
            top_k_weights: Their weights, ``(T, K)``.

        Returns:
            The mixed outputs, ``(T, H)``, in the tokens' dtype.

        Raises:
            TypeError: If dtypes or devices differ.
            ValueError: If a shape does not fit.
        """
        if hidden_states.ndim != 2 or top_k_index.shape != top_k_weights.shape or top_k_index.ndim != 2:
            raise ValueError(
                "expected hidden_states (T, H), top_k_index (T, K) and top_k_weights (T, K), got "
                f"{tuple(hidden_states.shape)}, {tuple(top_k_index.shape)} and {tuple(top_k_weights.shape)}"
            )
        tokens, choices = top_k_index.shape
        # Dense one-hot rows: with 128 experts reading only the chosen rows of the factors was no faster (0.9 to 1.3 of
        # the time, CP, Tucker and TR, training on a CPU), and it cannot be compiled.
        numbers = torch.arange(self.gate_up.expert_dims[0], device=top_k_index.device)
        chosen = (top_k_index.reshape(-1, 1) == numbers).to(hidden_states.dtype)  # (T * K, N)
        pairs = hidden_states.repeat_interleave(choices, dim=0)  # (T * K, H)
        outputs: Tensor = self.down(_gated(self.gate_up(pairs, [chosen]), self.activation), [chosen])  # (T * K, H)
        mixed: Tensor = (outputs.reshape(tokens, choices, self.down.out_features) * top_k_weights.unsqueeze(-1)).sum(
            dim=1
        )
        return mixed.to(hidden_states.dtype)

    @torch.no_grad()
    def compare(self, experts: nn.Module) -> ExpertsReport:
        """How far the weights are from those of the experts that they were fitted to.

        Args:
            experts: The original, as for `from_experts`.

        Raises:
            TypeError: If the module has no such parameters.
            ValueError: If its shapes are others.
        """
        gate_up, down, _ = _read_experts(experts)
        parameters = self.gate_up.num_parameters + self.down.num_parameters
        return ExpertsReport(
            parameters,
            gate_up.numel() + down.numel(),
            self.gate_up.relative_error(gate_up),
            self.down.relative_error(down),
            _errors_of_each(self.gate_up, gate_up),
            _errors_of_each(self.down, down),
        )


def factorize_experts(
    model: nn.Module,
    decomposition: str | Decomposition = "tucker",
    rank: RankLike | None = None,
    *,
    down_rank: RankLike | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, ExpertsReport]:
    """Replace the experts of a model's sparse blocks by factorised ones, in place. Routers stay as they are.

    If any fit fails, the model is left as it was.

    Args:
        model: A model with blocks whose experts `FactorizedExperts.from_experts` takes.
        decomposition: As for `FactorizedExperts.from_experts`.
        rank: As for `FactorizedExperts.from_experts`.
        down_rank: As for `FactorizedExperts.from_experts`.
        names: The modules to replace; all experts by default.

    Returns:
        For each module replaced, by name, what its experts cost and how far they are from the original's.

    Raises:
        ValueError: If the model has no such experts, none of a name that is given, or ones that compute something
            else.

    Examples:
        >>> from transformers import MixtralConfig, MixtralModel
        >>> sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 50}
        >>> heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
        >>> model = MixtralModel(MixtralConfig(**sizes, **heads, num_local_experts=4))
        >>> reports = factorize_experts(model, "tucker", rank=0.5)
        >>> [(name, report.share <= 0.5) for name, report in reports.items()]
        [('layers.0.mlp.experts', True)]
    """
    modules = model.named_modules(remove_duplicate=False)  # a block may be in the model more than once
    found = {name: module for name, module in modules if _fused_parameters(module) is not None}
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no module with fused experts (parameters gate_up_proj and down_proj of three "
            "modes); for a dense model use upcycle"
        )
    for name in names or ():
        if name not in found:
            raise ValueError(f"{name!r} is not the name of experts in the model; it has {list(found)}")
    chosen = {name: found[name] for name in (found if names is None else names)}
    fitted = {
        experts: FactorizedExperts.from_experts(experts, decomposition, rank, down_rank=down_rank)
        for experts in dict.fromkeys(chosen.values())
    }
    reports = {name: fitted[experts].compare(experts) for name, experts in chosen.items()}
    for new in fitted.values():
        describe(new)  # what cannot be saved is refused before anything is changed
    with installed(model, {name: fitted[experts] for name, experts in chosen.items()}):
        announce(model)
    return reports


def _describe(experts: FactorizedExperts) -> dict[str, Any]:
    return {
        "gate_up": describe_tensor(experts.gate_up),
        "down": describe_tensor(experts.down),
        "activation": describe_nonlinearity(experts.activation),
    }


def _build(description: Mapping[str, Any], device: torch.device | str) -> FactorizedExperts:
    given = dict(description)
    tensors = {name: build_tensor(given.pop(name), device) for name in ("gate_up", "down")}
    return FactorizedExperts(**tensors, activation=build_nonlinearity(given.pop("activation")), **given)


register_kind("FactorizedExperts", Kind(FactorizedExperts, _describe, _build))


def _fused_parameters(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """The parameters of fused experts, if the module has them."""
    own = dict(module.named_parameters(recurse=False))
    if {"gate_up_proj", "down_proj"} <= set(own):
        gate_up, down = own["gate_up_proj"], own["down_proj"]
        if gate_up.ndim == down.ndim == 3:
            return gate_up, down
    return None


def _read_experts(experts: nn.Module) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """The dense tensors, ``(N, H, 2F)`` and ``(N, F, H)``, and the activation."""
    fused = _fused_parameters(experts)
    activation = getattr(experts, "act_fn", None)
    if fused is None or activation is None:
        raise TypeError(
            f"{type(experts).__name__} has no fused experts: expected parameters gate_up_proj (N, 2F, H) and "
            "down_proj (N, H, F) and an activation act_fn, as in transformers' MixtralExperts"
        )
    gate_up, down = (parameter.detach().transpose(1, 2) for parameter in fused)
    experts_, features, hidden = down.shape
    if gate_up.shape != (experts_, hidden, 2 * features):
        raise ValueError(
            f"{type(experts).__name__}: gate_up_proj {tuple(fused[0].shape)} and down_proj {tuple(fused[1].shape)} "
            "are not of shapes (N, 2F, H) and (N, H, F)"
        )
    return gate_up, down, activation


def _check_formula(experts: nn.Module, gate_up: Tensor, down: Tensor, activation: Callable[[Tensor], Tensor]) -> None:
    """Refuse a module that computes something else than `FactorizedExperts` from the same weights."""
    for weight in (gate_up, down):
        if not torch.isfinite(weight).all():
            raise ValueError(f"{type(experts).__name__}: the weights have a NaN or an infinite entry")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(PROBE_TOKENS, gate_up.shape[1], generator=generator).to(gate_up)
    index = torch.randint(len(gate_up), (PROBE_TOKENS, 1), generator=generator).to(gate_up.device)
    weights = torch.full((PROBE_TOKENS, 1), 0.5, device=gate_up.device, dtype=gate_up.dtype)
    with torch.no_grad():
        first = torch.einsum("th,thf->tf", tokens, gate_up[index[:, 0]])
        size = float(first.float().square().mean().sqrt())
        for gates in PROBE_GATES:
            scaled = tokens * (gates / size) if size else tokens
            hidden = _gated(torch.einsum("th,thf->tf", scaled, gate_up[index[:, 0]]), activation)
            expected = 0.5 * torch.einsum("tf,tfh->th", hidden, down[index[:, 0]])
            difference = float((experts(scaled, index, weights) - expected).float().norm())
            allowed = PROBE_TOLERANCE * float(expected.float().norm())
            if not difference <= allowed:  # a NaN is refused too
                raise ValueError(
                    f"{type(experts).__name__} does not compute down(act_fn(gate) * up): random tokens differ by "
                    f"{difference:.2g}, where {allowed:.2g} is allowed; FactorizedExperts cannot take its place"
                )


def _gated(gate_up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate) * up


def _errors_of_each(tensor: FactorizedExpertTensor, dense: Tensor) -> tuple[float, ...]:
    """The relative error of each expert's matrix, one built at a time."""
    errors = []
    for number, matrix in enumerate(dense.double()):
        error = torch.linalg.vector_norm(tensor.expert(number).double() - matrix)
        errors.append(float(error / torch.linalg.vector_norm(matrix)) if error else 0.0)
    return tuple(errors)
