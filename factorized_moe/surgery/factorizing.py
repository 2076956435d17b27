"""The experts of a trained sparse mixture as factorised tensors, behind the model's own router.

The experts of such a block are gated MLPs, ``y_n = down_n(act(gate_n x) * up_n x)``, and the router mixes the ``y_n``
of each token's ``K`` experts. Mixing the experts' weights instead, as a uMoE layer does, is another function because
of the activation. So each pair of a token and one of its experts is a sample of its own here, whose coefficients are
one-hot, and the pairs' outputs are mixed: at full rank this is the block's own function.

Legend: ``T`` tokens, ``K`` experts of each token, ``N`` experts, ``H`` hidden_features (of the model), ``F``
features between an expert's two projections.

Blocks of transformers 5 hold all experts in ``gate_up_proj`` ``(N, 2F, H)`` and ``down_proj`` ``(N, H, F)`` and call
``experts(hidden_states, top_k_index, top_k_weights)``; `experts_layouts` has their variants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._scalars import is_number
from factorized_moe.decompositions import Decomposition
from factorized_moe.decompositions.base import RankLike
from factorized_moe.surgery.replacing.experts_layouts import EXPERTS, gated, read_experts, stacks_of
from factorized_moe.surgery.replacing.nonlinearities import build_nonlinearity, describe_nonlinearity
from factorized_moe.surgery.replacing.swapping import installed
from factorized_moe.surgery.saving.announcing import announce
from factorized_moe.surgery.saving.describing import Kind, build_tensor, describe, describe_tensor, register_kind
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["ExpertsReport", "FactorizedExperts", "factorize_experts", "find_experts"]


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
    """The experts of a sparse MoE block as two factorised tensors, called as the block's own ``experts``.

    Args:
        gate_up: The first projections: one expert mode, ``H`` to ``2F``; the first half of the outputs is the gate.
        down: The second projections: the same expert mode, ``F`` to ``H``.
        activation: What is applied to the gate.
        limit: The most that a gate may be before the activation, and its equal either way; no limit by default.
        shift: What is added to the gate's equal before both are multiplied, 1 in gpt-oss.

    Attributes:
        gate_up: The first projections.
        down: The second projections.
        activation: What is applied to the gate.
        limit: The limit of the gate and its equal, or `None`.
        shift: What is added to the gate's equal.

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
        self,
        gate_up: FactorizedExpertTensor,
        down: FactorizedExpertTensor,
        activation: Callable[[Tensor], Tensor],
        *,
        limit: float | None = None,
        shift: float = 0.0,
    ) -> None:
        super().__init__()
        for name, tensor in (("gate_up", gate_up), ("down", down)):
            if not isinstance(tensor, FactorizedExpertTensor):
                raise TypeError(f"{name} is a FactorizedExpertTensor, got {type(tensor).__name__}")
            if len(tensor.expert_dims) != 1:
                raise ValueError(
                    f"{name} has expert modes {tensor.expert_dims}; expected one, which the router's indices number"
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
        if limit is not None and not (is_number(limit) and 0.0 < limit < math.inf):
            raise ValueError(f"limit is a number above 0 or None, got {limit!r}")
        if not is_number(shift) or not math.isfinite(shift):
            raise ValueError(f"shift is a finite number, got {shift!r}")
        self.limit = None if limit is None else float(limit)
        self.shift = float(shift)
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
        input_covariance: Tensor | Mapping[str, Tensor] | None = None,
        output_covariance: Tensor | Mapping[str, Tensor] | None = None,
    ) -> FactorizedExperts:
        """Fit both tensors to the experts of a trained block, which stay as they are.

        How the module uses its weights (transposed, gates interleaved or limited, biases) is found by what it computes:
        a few random tokens go through it and through the formula of each layout that is known. One that follows none is
        refused and never approximated wrongly.

        Args:
            experts: The block's experts, with the parameters ``gate_up_proj`` ``(N, 2F, H)`` and ``down_proj``
                ``(N, H, F)`` and the activation ``act_fn``, as in transformers' Mixtral and Qwen blocks, or in another
                layout that is known, such as gpt-oss's and Llama 4's.
            decomposition: A registered name or an instance.
            rank: As for `FactorizedExpertTensor`, of the first projections, ``(N, H, 2F)``.
            down_rank: Of the second projections, ``(N, F, H)``, where it differs.
            input_covariance: Second moments of inputs, as for `factorized_moe.fitting.fit`, so that errors of outputs
                are minimised and not of weights: ``{"gate_up": (H, H), "down": (F, F)}`` or one of them; a tensor is
                that of the block's input, of ``"gate_up"``. `collect_covariances` gives both.
            output_covariance: The same of gradients at outputs, ``{"gate_up": (2F, 2F), "down": (H, H)}``; a tensor is
                that of the block's output, of ``"down"``.

        Raises:
            TypeError: If the module has no such parameters, or a covariance is neither a tensor nor a mapping.
            ValueError: If it computes something else from them, a rank is out of range, or a covariance does not fit.
        """
        read = read_experts(experts)
        inputs = _by_projection("input_covariance", input_covariance, "gate_up")
        outputs = _by_projection("output_covariance", output_covariance, "down")
        ranks = {"gate_up": rank, "down": rank if down_rank is None else down_rank}
        first, second = (
            FactorizedExpertTensor.from_dense(
                dense,
                decomposition,
                ranks[name],
                bias=read.bias,
                input_covariance=inputs.get(name),
                output_covariance=outputs.get(name),
            )
            for name, dense in (("gate_up", read.gate_up), ("down", read.down))
        )
        return cls(first, second, read.activation, limit=read.limit, shift=read.shift).train(experts.training)

    def forward(
        self, hidden_states: Tensor, top_k_index: Tensor | None = None, top_k_weights: Tensor | None = None
    ) -> Tensor:
        """Apply each token's experts and mix what they give.

        Args:
            hidden_states: The tokens, ``(T, H)``.
            top_k_index: The experts of each token, ``(T, K)``; an index of ``N`` chooses none. Without them tokens are
                sorted by expert, ``T / N`` for each, as Llama 4 calls its experts.
            top_k_weights: Their weights, ``(T, K)``.

        Returns:
            The mixed outputs, ``(T, H)``, in the tokens' dtype.

        Raises:
            TypeError: If dtypes or devices differ.
            ValueError: If a shape does not fit.
        """
        experts = self.gate_up.expert_dims[0]
        if top_k_index is None or top_k_weights is None:
            if hidden_states.ndim != 2 or len(hidden_states) % experts:
                raise ValueError(
                    f"without indices tokens are sorted, as many for each of {experts} experts; got hidden_states of "
                    f"shape {tuple(hidden_states.shape)}"
                )
            numbers = torch.arange(experts, device=hidden_states.device)
            top_k_index = numbers.repeat_interleave(len(hidden_states) // experts)[:, None]  # (T, 1)
            top_k_weights = torch.ones_like(top_k_index, dtype=hidden_states.dtype)
        if hidden_states.ndim != 2 or top_k_index.shape != top_k_weights.shape or top_k_index.ndim != 2:
            raise ValueError(
                "expected hidden_states (T, H), top_k_index (T, K) and top_k_weights (T, K), got "
                f"{tuple(hidden_states.shape)}, {tuple(top_k_index.shape)} and {tuple(top_k_weights.shape)}"
            )
        tokens, choices = top_k_index.shape
        # Dense one-hot rows: with 128 experts reading only the chosen rows of the factors was no faster (0.9 to 1.3 of
        # the time, CP, Tucker and TR, training on a CPU), and it cannot be compiled.
        numbers = torch.arange(experts, device=top_k_index.device)
        chosen = (top_k_index.reshape(-1, 1) == numbers).to(hidden_states.dtype)  # (T * K, N)
        pairs = hidden_states.repeat_interleave(choices, dim=0)  # (T * K, H)
        hidden = gated(self.gate_up(pairs, [chosen]), self.activation, self.limit, self.shift)  # (T * K, F)
        outputs: Tensor = self.down(hidden, [chosen])  # (T * K, H)
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
        read = read_experts(experts)
        parameters = self.gate_up.num_parameters + self.down.num_parameters
        return ExpertsReport(
            parameters,
            read.gate_up.numel() + read.down.numel(),
            self.gate_up.relative_error(read.gate_up),
            self.down.relative_error(read.down),
            _errors_of_each(self.gate_up, read.gate_up),
            _errors_of_each(self.down, read.down),
        )


def factorize_experts(
    model: nn.Module,
    decomposition: str | Decomposition = "tucker",
    rank: RankLike | None = None,
    *,
    down_rank: RankLike | None = None,
    names: Sequence[str] | None = None,
    input_covariance: Mapping[str, Any] | None = None,
    output_covariance: Mapping[str, Any] | None = None,
) -> dict[str, ExpertsReport]:
    """Replace the experts of a model's sparse blocks by factorised ones, in place. Routers stay as they are.

    If any fit fails, the model is left as it was.

    Args:
        model: A model with blocks whose experts `FactorizedExperts.from_experts` takes.
        decomposition: As for `FactorizedExperts.from_experts`.
        rank: As for `FactorizedExperts.from_experts`.
        down_rank: As for `FactorizedExperts.from_experts`.
        names: The modules to replace; all experts by default.
        input_covariance: For each module, by name, as for `FactorizedExperts.from_experts`: what
            `collect_covariances` gives as ``inputs``.
        output_covariance: The same of the outputs.

    Returns:
        For each module replaced, by name, what its experts cost and how far they are from the original's.

    Raises:
        ValueError: If the model has no such experts, none of a name that is given, or ones that compute something
            else; or if covariances are given for none of some experts, or for modules that are not replaced.

    Examples:
        >>> from transformers import MixtralConfig, MixtralModel
        >>> sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 50}
        >>> heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
        >>> model = MixtralModel(MixtralConfig(**sizes, **heads, num_local_experts=4))
        >>> reports = factorize_experts(model, "tucker", rank=0.5)
        >>> [(name, report.share <= 0.5) for name, report in reports.items()]
        [('layers.0.mlp.experts', True)]
    """
    chosen = find_experts(model, names)
    moments = {"input_covariance": input_covariance, "output_covariance": output_covariance}
    for what, given in moments.items():
        if given is not None and given.keys() != chosen.keys():
            raise ValueError(f"{what} is for the modules {sorted(given)}, replaced are {sorted(chosen)}; give the same")
    fitted: dict[nn.Module, FactorizedExperts] = {}
    for name, experts in chosen.items():
        if experts not in fitted:
            own = {what: given[name] for what, given in moments.items() if given is not None}
            made = FactorizedExperts.from_experts(experts, decomposition, rank, down_rank=down_rank, **own)
            fitted[experts] = made
    reports = {name: fitted[experts].compare(experts) for name, experts in chosen.items()}
    for new in fitted.values():
        describe(new)  # what cannot be saved is refused before anything is changed
    with installed(model, {name: fitted[experts] for name, experts in chosen.items()}):
        announce(model)
    return reports


def find_experts(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """The modules of fused experts in a model, all or those of some names; a ValueError if there are none."""
    modules = model.named_modules(remove_duplicate=False)  # a block may be in the model more than once
    found = {name: module for name, module in modules if any(layout.fits(module) for layout in EXPERTS)}
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no module with fused experts (parameters gate_up_proj and down_proj of three "
            f"modes); {stacks_of(model) or 'for a dense model use upcycle'}"
        )
    for name in names or ():
        if name not in found:
            raise ValueError(f"{name!r} is not the name of experts in the model; it has {list(found)}")
    return {name: found[name] for name in (found if names is None else names)}


def _by_projection(what: str, given: Tensor | Mapping[str, Tensor] | None, alone: str) -> Mapping[str, Tensor]:
    if given is None or isinstance(given, Tensor):
        return {} if given is None else {alone: given}
    if not isinstance(given, Mapping):
        raise TypeError(f"{what} is a tensor or a mapping of 'gate_up' and 'down' to tensors, got {given!r}")
    if not given.keys() <= {"gate_up", "down"}:
        raise ValueError(f"{what} is of 'gate_up' and 'down', got {sorted(given)}")
    return given


def _describe(experts: FactorizedExperts) -> dict[str, Any]:
    return {
        "gate_up": describe_tensor(experts.gate_up),
        "down": describe_tensor(experts.down),
        "activation": describe_nonlinearity(experts.activation),
        "limit": experts.limit,
        "shift": experts.shift,
    }


def _build(description: Mapping[str, Any], device: torch.device | str) -> FactorizedExperts:
    given = dict(description)
    gate_up, down = (build_tensor(given.pop(name), device) for name in ("gate_up", "down"))
    return FactorizedExperts(gate_up, down, build_nonlinearity(given.pop("activation")), **given)


register_kind("FactorizedExperts", Kind(FactorizedExperts, _describe, _build))


def _errors_of_each(tensor: FactorizedExpertTensor, dense: Tensor) -> tuple[float, ...]:
    """The relative error of each expert's matrix, one built at a time."""
    errors = []
    for number, matrix in enumerate(dense.double()):
        error = torch.linalg.vector_norm(tensor.expert(number).double() - matrix)
        errors.append(float(error / torch.linalg.vector_norm(matrix)) if error else 0.0)
    return tuple(errors)
