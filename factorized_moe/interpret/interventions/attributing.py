"""Which experts a prediction comes from: gradient times coefficient, of all experts of all layers in one pass.

Legend: ``*batch`` any leading shape, ``N`` experts of one mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe.interpret.finding import find_layers
from factorized_moe.interpret.interventions.intervening import refuse_compiled

__all__ = ["attribute_to_experts"]


def attribute_to_experts(
    model: nn.Module, inputs: Any, score: Callable[[Any], Tensor], *, layers: str | Sequence[str] | None = None
) -> dict[str, tuple[Tensor, ...]]:
    """How much of a score is due to each expert's coefficient: the coefficient times the score's gradient.

    To first order this is what the score loses when the coefficient is set to 0, for all experts at the price of one
    backward pass. Later layers see what earlier ones do, gates included. Where the score is linear in a layer's
    coefficients, as a logit is in those of the last layer, it is exact.

    Args:
        model: The model; its mode is kept, so give it in evaluation mode.
        inputs: What the model is called with: a tensor, a tuple of arguments, or a dictionary of keywords.
        score: A function of the model's output, such as ``lambda logits: logits[:, 3]``; its entries are added up, so
            let each depend on its own input.
        layers: The layers' names or patterns; all by default.

    Returns:
        For each layer a tensor ``(*batch, N)`` for each expert mode. Layers that share a gate have the same.

    Raises:
        TypeError: If ``model`` is no module or the score no tensor of floating-point numbers.
        ValueError: If the model is compiled, there is no such layer, a gate did not run exactly once, or the score
            does not depend on a layer.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> layer, x = CPMuMoE(8, 3, expert_dims=[4], rank=2, bias=False).eval(), torch.randn(5, 8)
        >>> (found,) = attribute_to_experts(layer, x, lambda y: y[:, 1])["model"]
        >>> torch.allclose(found.sum(dim=1), layer(x)[:, 1], atol=1e-6)  # linear in the coefficients
        True
    """
    chosen = find_layers(model, layers)
    refuse_compiled(model, "attribute_to_experts")
    gates: dict[nn.Module, list[tuple[Tensor, ...]]] = {layer.gate: [] for layer in chosen.values()}

    def keep(module: nn.Module, arguments: object, output: Sequence[Tensor]) -> tuple[Tensor, ...]:
        kept = tuple(a if a.requires_grad else a.detach().requires_grad_() for a in output)
        gates[module].append(kept)
        return kept

    handles = [gate.register_forward_hook(keep) for gate in gates]
    try:
        with torch.enable_grad():
            if isinstance(inputs, dict):
                value = score(model(**inputs))
            else:
                value = score(model(*(inputs if isinstance(inputs, tuple) else (inputs,))))
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise TypeError(f"score returns a tensor of floating-point numbers, got {value!r}")
            total = value.sum()
    finally:
        for handle in handles:
            handle.remove()
    for name, layer in chosen.items():
        if len(gates[layer.gate]) != 1:
            raise ValueError(f"the gate of layer {name!r} ran {len(gates[layer.gate])} times, expected once")
    coefficients = [a for (kept,) in gates.values() for a in kept]
    if not total.requires_grad:
        raise ValueError("the score does not depend on the experts; is it computed without gradients?")
    gradients = torch.autograd.grad(total, coefficients, allow_unused=True)
    found = {id(a): (a * g).detach() for a, g in zip(coefficients, gradients, strict=True) if g is not None}
    if len(found) < len(coefficients):
        raise ValueError("the score does not depend on one of the layers; name those that it depends on")
    return {name: tuple(found[id(a)] for a in gates[layer.gate][0]) for name, layer in chosen.items()}
