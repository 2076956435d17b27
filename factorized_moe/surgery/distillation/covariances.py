"""Second moments of what the experts of a sparse mixture are given, and of a loss's gradients at what they give.

They weigh the errors of a fit: `factorized_moe.fitting.fit`. Batches pass one by one, and no sample is kept.

Legend: ``T`` tokens, ``K`` experts of a token, ``N`` experts, ``H`` hidden size, ``F`` intermediate size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._validation import check_batches
from factorized_moe.surgery.distillation.capturing import call_model, in_evaluation_mode
from factorized_moe.surgery.factorizing import find_experts
from factorized_moe.surgery.replacing.experts_layouts import ReadExperts, gated, read_experts

__all__ = ["ExpertCovariances", "collect_covariances"]


@dataclass(frozen=True, eq=False)
class ExpertCovariances:
    """Second moments of experts' inputs, and of a loss's gradients at their outputs, for `factorize_experts`.

    Attributes:
        inputs: For each module of experts, by name, ``{"gate_up": (H, H), "down": (F, F)}``, float64; of experts with
            biases with the constant 1 as the last input.
        outputs: The same of the outputs, ``{"gate_up": (2F, 2F), "down": (H, H)}``; None if no loss was given.
    """

    inputs: Mapping[str, Mapping[str, Tensor]]
    outputs: Mapping[str, Mapping[str, Tensor]] | None


def collect_covariances(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[Any], Tensor] | None = None,
    *,
    names: Sequence[str] | None = None,
) -> ExpertCovariances:
    """Run a model on a calibration set and collect second moments at the two projections of its sparse experts.

    Every pair of a token and one of its experts is a sample. An input counts by the square of the router's weight, as
    an error there does in the block's output. The model is in evaluation mode meanwhile, and its gradients stay as they
    are. Only sums of products are kept, never samples.

    Args:
        model: A model with blocks whose experts `FactorizedExperts.from_experts` takes.
        batches: What the model is called with: a mapping as keyword arguments, a tuple or list as positional ones,
            anything else as the one argument.
        loss: From what the model gives to a scalar, such as ``lambda output: output.loss``: then the moments of its
            gradients at the experts' outputs are collected too, which takes a backward pass.
        names: The modules of experts; all by default.

    Returns:
        The moments of inputs, and of outputs if there is a loss.

    Raises:
        TypeError: If ``batches`` is one tensor, or no iterable, or the loss gives no scalar tensor.
        ValueError: If the model has no such experts, none of a name that is given, or some get no token; or if the loss
            does not depend on some.

    Examples:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> from factorized_moe.surgery import factorize_experts
        >>> sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 50}
        >>> heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
        >>> model = MixtralForCausalLM(MixtralConfig(**sizes, **heads, num_local_experts=4))
        >>> batches = ({"input_ids": ids, "labels": ids} for ids in torch.randint(50, (3, 2, 8)))
        >>> found = collect_covariances(model, batches, lambda output: output.loss)
        >>> {name: tuple(c.shape) for name, c in found.inputs["model.layers.0.mlp.experts"].items()}
        {'gate_up': (16, 16), 'down': (24, 24)}
        >>> reports = factorize_experts(model, rank=0.5, input_covariance=found.inputs, output_covariance=found.outputs)
    """
    check_batches("batches", batches)
    chosen = find_experts(model, names)
    moments = {experts: _Moments(read_experts(experts)) for experts in dict.fromkeys(chosen.values())}
    calls: list[_Call] = []

    def hook(experts: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Tensor) -> None:
        given = dict(zip(_ARGUMENTS, arguments, strict=False)) | keywords
        if not given.keys() >= set(_ARGUMENTS):
            raise ValueError(
                f"{type(experts).__name__} is called with {sorted(given)}, not with the experts of each token; "
                "its covariances cannot be collected"
            )
        call = _Call(experts, *(given[name].detach() for name in _ARGUMENTS))
        moments[experts].add_inputs(call)
        if loss is not None:
            if not output.requires_grad:
                output.requires_grad_()
            call.output = output
            calls.append(call)

    with ExitStack() as stack:
        stack.enter_context(in_evaluation_mode(model))
        for experts in moments:
            stack.callback(experts.register_forward_hook(hook, with_kwargs=True).remove)
        for batch in batches:
            with torch.set_grad_enabled(loss is not None):
                answer = call_model(model, batch)
                if loss is not None:
                    for call, gradient in zip(calls, _gradients(loss(answer), calls), strict=True):
                        moments[call.experts].add_outputs(call, gradient)
            calls.clear()
    for name, experts in chosen.items():
        if not moments[experts].samples:
            raise ValueError(f"the experts {name!r} got no token; give batches that reach them, or leave out the name")
    inputs = {name: moments[experts].means("input") for name, experts in chosen.items()}
    outputs = None if loss is None else {name: moments[experts].means("output") for name, experts in chosen.items()}
    return ExpertCovariances(inputs, outputs)


_ARGUMENTS = ("hidden_states", "top_k_index", "top_k_weights")


@dataclass(eq=False)
class _Call:
    """One call of experts."""

    experts: nn.Module
    tokens: Tensor  # (T, H)
    index: Tensor  # (T, K)
    weights: Tensor  # (T, K)
    output: Tensor | None = None  # (T, H)


@dataclass(eq=False)
class _Moments:
    """Sums of products over the pairs of a token and one of its experts."""

    experts: ReadExperts
    samples: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def add_inputs(self, call: _Call) -> None:
        for expert, rows, weights in self._pairs(call):
            scaled = weights.unsqueeze(-1)
            self.samples += len(rows)
            self._add("input gate_up", scaled * self._with_constant(rows))
            self._add("input down", scaled * self._with_constant(self._between(self._first(rows, expert))))

    def add_outputs(self, call: _Call, gradient: Tensor) -> None:
        """The gradient is that of the block's output, ``(T, H)``."""
        gradients = self._pairs(_Call(call.experts, gradient, call.index, call.weights))
        for (expert, rows, _), (_, errors, _) in zip(self._pairs(call), gradients, strict=True):
            first = self._first(rows, expert).requires_grad_()
            with torch.enable_grad():
                hidden = self._between(first)
            (inner,) = torch.autograd.grad(hidden, first, errors @ self.experts.down[expert, : hidden.shape[1]].mT)
            self._add("output gate_up", inner)
            self._add("output down", errors)

    def _first(self, rows: Tensor, expert: int) -> Tensor:
        """The first projection of an expert, ``(T, H)`` to ``(T, 2F)``."""
        weight = self.experts.gate_up[expert]
        return torch.addmm(weight[-1], rows, weight[:-1]) if self.experts.bias else rows @ weight

    def _with_constant(self, rows: Tensor) -> Tensor:
        """What a projection is given: with a bias, a 1 behind every input."""
        return nn.functional.pad(rows, (0, 1), value=1.0) if self.experts.bias else rows

    def _between(self, first: Tensor) -> Tensor:
        return gated(first, self.experts.activation, self.experts.limit, self.experts.shift)

    def means(self, side: str) -> dict[str, Tensor]:
        return {name: self.sums[f"{side} {name}"] / self.samples for name in ("gate_up", "down")}

    def _pairs(self, call: _Call) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each expert's tokens, and the router's weights of it."""
        for expert in range(len(self.experts.down)):
            token, place = (call.index == expert).nonzero(as_tuple=True)
            if len(token):
                yield expert, call.tokens[token], call.weights[token, place].to(call.tokens.dtype)

    def _add(self, name: str, samples: Tensor) -> None:
        wide = samples.to(torch.float64)
        product = wide.mT @ wide
        self.sums[name] = self.sums[name] + product if name in self.sums else product


def _gradients(value: Tensor, calls: Sequence[_Call]) -> tuple[Tensor, ...]:
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        kind = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"loss gives {kind}; expected a scalar tensor that depends on the experts, such as output.loss")
    outputs = [call.output for call in calls if call.output is not None]
    found = torch.autograd.grad(value, outputs, allow_unused=True)
    if any(gradient is None for gradient in found):
        raise ValueError("the loss does not depend on some of the experts; leave them out of names")
    return found
