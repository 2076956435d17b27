"""Where a block's time goes: each of its parts beside the dense MLP that it replaces."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.block import SIZES, Sizes, block, matched_blocks
from benchmarks.contenders import dense_mlp
from benchmarks.measuring import Effort
from benchmarks.ranks import rank_name
from benchmarks.rows import Contender, Row, compare, count

__all__ = ["TITLE", "rows"]

TITLE = "The parts of a block, each beside the whole dense MLP (forward only)"


def rows(effort: Effort, sizes: Sizes = SIZES) -> Iterator[Row]:
    """One case for each number of tokens: the MLP, its two linear layers, the CP block, and the block's parts."""
    experts = sizes.compiled_experts
    size = matched_blocks(experts, sizes)["cp"]
    mlp = dense_mlp(sizes.features, sizes.hidden, sizes.features)
    made = block("cp", (experts,), size, sizes)
    whole = Contender.of(f"{rank_name('cp', size)}: the whole block", made)
    gate, norm = made.gate, made.input_norm
    assert isinstance(norm, nn.Module)
    for tokens in sizes.tokens:
        x = torch.randn(tokens, sizes.features)
        with torch.no_grad():
            logits = gate.projection(x)
            normalised = nn.functional.layer_norm(logits, logits.shape[-1:])
            coefficients = gate(x)
            inner = norm(x)
            hidden = made.first(inner, coefficients)
            active = made.activation(hidden)
        parts = [
            Contender("gate: projection", lambda _, x=x: gate.projection(x), tuple(gate.parameters())),
            Contender(
                "gate: LayerNorm of the logits", lambda _, a=logits: nn.functional.layer_norm(a, a.shape[-1:]), ()
            ),
            Contender("gate: entmax15", lambda _, a=normalised: gate.activation(a), ()),
            Contender("LayerNorm of the input", lambda _, x=x: norm(x), tuple(norm.parameters())),
            Contender(
                "first contraction",
                lambda _, x=inner, a=coefficients: made.first(x, a),
                tuple(made.first.parameters()),
            ),
            Contender("activation", lambda _, h=hidden: made.activation(h), ()),
            Contender(
                "second contraction",
                lambda _, h=active, a=coefficients: made.second(h, a),
                tuple(made.second.parameters()),
            ),
            Contender("the MLP's first linear layer", lambda _, x=x: mlp[0](x), tuple(mlp[0].parameters())),
            Contender("the MLP's second linear layer", lambda _, h=active: mlp[2](h), tuple(mlp[2].parameters())),
        ]
        case = f"{experts:,} experts, {count(tokens, 'token')}"
        baseline = Contender.of("dense MLP, GELU", mlp)
        yield from compare(case, baseline, [whole, *parts], [x], effort, training=False)
