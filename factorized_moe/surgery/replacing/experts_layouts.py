"""How the blocks of sparse mixtures store their experts, as data, and which layout a module really computes.

Legend: ``N`` experts, ``H`` hidden_features (of the model), ``F`` features between an expert's two projections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from factorized_moe.surgery.distillation.capturing import in_evaluation_mode
from factorized_moe.surgery.replacing.nonlinearities import ScaledSiLU

__all__ = ["EXPERTS", "ExpertsLayout", "ReadExperts", "gated", "read_experts", "stacks_of"]

PROBE_TOKENS = 8
PROBE_GATES = (1.0, 30.0)
"""Root mean squares of the gates' inputs at which a module is probed; the larger one meets clamps."""

PROBE_TOLERANCE = 0.05
"""Far above what rounding in bfloat16 makes, far below what another formula makes."""


@dataclass(frozen=True)
class ReadExperts:
    """What experts compute: ``down(activation(gate) * (up + shift))``, gate and up being two halves, both limited.

    Attributes:
        gate_up: The first projections, ``(N, H, 2F)``, with one more row for a bias.
        down: The second ones, ``(N, F, H)``, with one more row for a bias.
        bias: Whether there are biases.
        activation: What is applied to the gate.
        limit: The most that a gate may be, and its equal either way.
        shift: What is added to the gate's equal.
    """

    gate_up: Tensor
    down: Tensor
    bias: bool
    activation: Callable[[Tensor], Tensor]
    limit: float | None
    shift: float

    def apply(self, tokens: Tensor, experts: Tensor) -> Tensor:
        """One expert for each token: ``(T, H)`` and ``(T,)`` to ``(T, H)``."""
        hidden = gated(self._project(tokens, self.gate_up, experts), self.activation, self.limit, self.shift)
        return self._project(hidden, self.down, experts)

    def _project(self, x: Tensor, weight: Tensor, experts: Tensor) -> Tensor:
        if self.bias:
            x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        return torch.einsum("ti,tio->to", x, weight[experts])


@dataclass(frozen=True)
class ExpertsLayout:
    """How one family of blocks stores its experts: parameters ``gate_up_proj`` and ``down_proj`` of three modes.

    Args:
        name: The family's name.
        activation: The attribute that is applied to the gate; `None` for SiLU.
        transposed: Whether weights are stored as they are multiplied, ``(N, H, 2F)`` and ``(N, F, H)``.
        interleaved: Whether the gate has every second output instead of the first half.
        bias: Whether there are ``gate_up_proj_bias`` and ``down_proj_bias``.
        limit: The attribute that limits the gate and its equal.
        scale: The attribute by which SiLU scales its sigmoid's argument.
        shift: What is added to the gate's equal.
        sorted_tokens: Whether the module takes tokens sorted by expert, and no indices.
    """

    name: str
    activation: str | None = "act_fn"
    transposed: bool = False
    interleaved: bool = False
    bias: bool = False
    limit: str | None = None
    scale: str | None = None
    shift: float = 0.0
    sorted_tokens: bool = False

    def fits(self, module: nn.Module) -> bool:
        """Whether a module has the parameters and attributes."""
        own = dict(module.named_parameters(recurse=False))
        names = {"gate_up_proj", "down_proj"}
        if not names <= set(own) or any(own[name].ndim != 3 for name in names):
            return False
        biases = {f"{name}_bias" for name in names} & set(own)
        if biases != ({f"{name}_bias" for name in names} if self.bias else set()):
            return False
        attributes = (self.activation, self.limit, self.scale)
        return all(name is None or getattr(module, name, None) is not None for name in attributes)

    def read(self, module: nn.Module) -> ReadExperts | None:
        """The weights and how they are used; `None` if their shapes are not of this layout."""
        own = {name: parameter.detach() for name, parameter in module.named_parameters(recurse=False)}
        gate_up, down = own["gate_up_proj"], own["down_proj"]
        if not self.transposed:
            gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
        experts, features, hidden = down.shape
        if gate_up.shape != (experts, hidden, 2 * features):
            return None
        if self.bias:
            gate_up = torch.cat([gate_up, own["gate_up_proj_bias"][:, None]], dim=1)
            down = torch.cat([down, own["down_proj_bias"][:, None]], dim=1)
        if self.interleaved:
            gate_up = torch.cat([gate_up[..., ::2], gate_up[..., 1::2]], dim=-1)
        activation = nn.SiLU() if self.activation is None else getattr(module, self.activation)
        if self.scale is not None:
            activation = ScaledSiLU(float(getattr(module, self.scale)))
        limit = None if self.limit is None else float(getattr(module, self.limit))
        return ReadExperts(gate_up, down, self.bias, activation, limit, self.shift)

    def difference(self, module: nn.Module, read: ReadExperts) -> tuple[float, float]:
        """How far a module is from its layout's formula on random tokens, and how far it may be, where it is farthest.

        Raises:
            RuntimeError: If the module cannot be called as this layout says; also `TypeError`, `ValueError`.
        """
        count = len(read.down)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randn(
            PROBE_TOKENS * (count if self.sorted_tokens else 1), read.down.shape[2], generator=generator
        )
        chosen = torch.randint(count, (len(tokens),), generator=generator).to(read.down.device)
        if self.sorted_tokens:
            chosen = torch.arange(count, device=chosen.device).repeat_interleave(PROBE_TOKENS)
        tokens = tokens.to(read.down)
        inner = read.gate_up[:, : tokens.shape[1]]
        size = float(torch.einsum("th,thf->tf", tokens, inner[chosen]).float().square().mean().sqrt())
        found = []
        for gates in PROBE_GATES:
            scaled = tokens * (gates / size) if size else tokens
            expected = read.apply(scaled, chosen)
            if self.sorted_tokens:
                given = module(scaled)
            else:
                half = torch.full((len(tokens), 1), 0.5, device=tokens.device, dtype=tokens.dtype)
                expected, given = 0.5 * expected, module(scaled, chosen[:, None], half)
            if given.shape != expected.shape:
                raise ValueError(f"it returns a tensor of shape {tuple(given.shape)}")
            allowed = PROBE_TOLERANCE * float(expected.float().norm())
            found.append((float((given - expected).float().norm()), allowed))
        return max(found, key=lambda pair: pair[0] / pair[1] if pair[1] else float(pair[0] > 0))


EXPERTS = (
    ExpertsLayout("limited", limit="limit"),  # DeepSeek V4
    ExpertsLayout("limited_silu", activation=None, limit="swiglu_limit"),  # HY V4
    ExpertsLayout(
        "gpt_oss",
        activation=None,
        transposed=True,
        interleaved=True,
        bias=True,
        limit="limit",
        scale="alpha",
        shift=1.0,
    ),
    ExpertsLayout("minimax_m3", activation=None, limit="swiglu_limit", scale="swiglu_alpha", shift=1.0),
    ExpertsLayout("llama4", transposed=True, sorted_tokens=True),
    ExpertsLayout("aria", transposed=True),
    ExpertsLayout("mixtral"),
)
"""Known layouts: those of DeepSeek V4, HY V4, gpt-oss, MiniMax M3, Llama 4, Aria, Mixtral."""


def gated(gate_up: Tensor, activation: Callable[[Tensor], Tensor], limit: float | None, shift: float) -> Tensor:
    """``activation(gate) * (up + shift)`` of two halves, ``(.., 2F)`` to ``(.., F)``, each limited first."""
    gate, up = gate_up.chunk(2, dim=-1)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return activation(gate) * (up + shift if shift else up)


@torch.no_grad()
def read_experts(experts: nn.Module) -> ReadExperts:
    """The weights of a block's experts, and how they are used, by the layout that explains the module.

    Raises:
        TypeError: If the module has no such parameters.
        ValueError: If it computes something else from them, or they are not finite.
    """
    name = type(experts).__name__
    fitting = [layout for layout in EXPERTS if layout.fits(experts)]
    if not fitting:
        raise TypeError(
            f"{name} has no fused experts: expected parameters gate_up_proj (N, 2F, H) and down_proj (N, H, F) and an "
            "activation act_fn, as in transformers' MixtralExperts"
        )
    for parameter in experts.parameters(recurse=False):
        if not torch.isfinite(parameter).all():
            raise ValueError(f"{name}: the weights have a NaN or an infinite entry")
    reasons: list[tuple[float, str]] = []
    for layout in fitting:
        read = layout.read(experts)
        if read is None:
            continue
        try:
            with in_evaluation_mode(experts):
                difference, allowed = layout.difference(experts, read)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            reasons.append((float("inf"), f"cannot be called as the layout {layout.name!r} says: {error}"))
            continue
        if difference <= allowed:  # a NaN is refused too
            return read
        formula = "down(act_fn(gate) * up)" if layout.limit is None else "down(act(min(gate, limit)) * clamp(up))"
        reasons.append(
            (
                difference,
                f"does not compute {formula}: random tokens differ by {difference:.2g}, where {allowed:.2g} is allowed",
            )
        )
    if not reasons:
        shapes = [tuple(getattr(experts, each).shape) for each in ("gate_up_proj", "down_proj")]
        raise ValueError(
            f"{name}: gate_up_proj {shapes[0]} and down_proj {shapes[1]} are not of shapes (N, 2F, H) and (N, H, F), "
            "nor of (N, H, 2F) and (N, F, H)"
        )
    raise ValueError(f"{name} {min(reasons)[1]}; FactorizedExperts cannot take its place")


def stacks_of(model: nn.Module) -> str:
    """What a model has in the way of stacked matrices that no layout describes, as half a sentence; empty for none."""
    for path, module in model.named_modules():
        kinds = {type(part).__name__ for part in module.children() if any(True for _ in part.parameters())}
        if isinstance(module, nn.ModuleDict | nn.ModuleList) and path.endswith("experts") and len(kinds) == 1:
            return (
                f"its {path} ({type(module).__name__}) holds its experts as modules of their own ({kinds.pop()}), "
                "which replace takes one by one"
            )
        parameters = module.named_parameters(recurse=False)
        own = {name: one for name, one in parameters if one.ndim == 3 and min(one.shape) > 1}
        if len(own) >= 2 or (own and set(own) == {"weight"} and "expert" in type(module).__name__.lower()):
            listed = ", ".join(f"{name} {tuple(one.shape)}" for name, one in own.items())
            plain = "up_proj" in own and "gate_up_proj" not in own
            reason = "not gated, and only gated experts are known" if plain else "of no layout that is known"
            return f"its {path} ({type(module).__name__}) holds {listed}: {reason}"
    return ""
