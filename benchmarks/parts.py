"""Where the time goes: the parts of a block beside the dense MLP, and those of a layer beside ``nn.Linear``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.block import SIZES, Sizes, block, matched_blocks
from benchmarks.contenders import dense_mlp
from benchmarks.layer import SIZES as LAYER_SIZES
from benchmarks.layer import Sizes as LayerSizes
from benchmarks.layer import layer
from benchmarks.measuring import Effort
from benchmarks.ranks import rank_name
from benchmarks.rows import Contender, Row, compare, count
from factorized_moe.gating import ExpertGate

__all__ = ["TITLE", "rows"]

TITLE = "The parts of a block and of a layer, each beside the whole of what they replace (forward only)"


def rows(effort: Effort, sizes: Sizes = SIZES, layer_sizes: LayerSizes = LAYER_SIZES) -> Iterator[Row]:
    """One case for each number of tokens: the CP block and its parts, then the CP layer and its parts."""
    for tokens in sizes.tokens:
        yield from _block(tokens, effort, sizes)
    for tokens in layer_sizes.tokens:
        yield from _layer(tokens, effort, layer_sizes)


def _block(tokens: int, effort: Effort, sizes: Sizes) -> list[Row]:
    """Also the two linear layers of the MLP."""
    experts = sizes.compiled_experts
    size = matched_blocks(experts, sizes)["cp"]
    mlp = dense_mlp(sizes.features, sizes.hidden, sizes.features)
    made = block("cp", (experts,), size, sizes)
    whole = Contender.of(f"{rank_name('cp', size)}: the whole block", made)
    gate, norm = made.gate, made.input_norm
    assert isinstance(gate, ExpertGate)
    assert isinstance(norm, nn.Module)
    x = torch.randn(tokens, sizes.features)
    with torch.no_grad():
        coefficients = gate(x)
        inner = norm(x)
        hidden = made.first(inner, coefficients)
        active = made.activation(hidden)
    parts = [
        *_gate(gate, x),
        Contender("LayerNorm of the input", lambda _: norm(x), tuple(norm.parameters())),
        Contender("first contraction", lambda _: made.first(inner, coefficients), tuple(made.first.parameters())),
        Contender("activation", lambda _: made.activation(hidden), ()),
        Contender("second contraction", lambda _: made.second(active, coefficients), tuple(made.second.parameters())),
        Contender("the MLP's first linear layer", lambda _: mlp[0](x), tuple(mlp[0].parameters())),
        Contender("the MLP's second linear layer", lambda _: mlp[2](active), tuple(mlp[2].parameters())),
    ]
    case = f"block, {experts:,} experts, {count(tokens, 'token')}"
    return compare(case, Contender.of("dense MLP, GELU", mlp), [whole, *parts], [x], effort, training=False)


def _layer(tokens: int, effort: Effort, sizes: LayerSizes) -> list[Row]:
    """At the paper's rank."""
    size = dict(sizes.published)["cp"]
    made = layer("cp", size, sizes)
    whole = Contender.of(f"{rank_name('cp', size)}: the whole layer", made)
    gate = made.gate
    assert isinstance(gate, ExpertGate)
    x = torch.randn(tokens, sizes.features)
    with torch.no_grad():
        coefficients = gate(x)
    contraction = Contender("contraction", lambda _: made.experts(x, coefficients), tuple(made.experts.parameters()))
    baseline = Contender.of("nn.Linear", nn.Linear(sizes.features, sizes.features))
    case = f"layer, {sizes.experts:,} experts, {count(tokens, 'token')}"
    return compare(case, baseline, [whole, *_gate(gate, x), contraction], [x], effort, training=False)


def _gate(gate: ExpertGate, x: Tensor) -> list[Contender]:
    projection = gate.projection
    assert projection is not None
    with torch.no_grad():
        logits = projection(x)
        normalised = nn.functional.layer_norm(logits, logits.shape[-1:])
    return [
        Contender("gate: projection", lambda _: projection(x), tuple(gate.parameters())),
        Contender("gate: LayerNorm of the logits", lambda _: nn.functional.layer_norm(logits, logits.shape[-1:]), ()),
        Contender("gate: entmax15", lambda _: gate.activation(normalised), ()),
    ]
