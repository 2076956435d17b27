"""A two-layer block of many experts beside a dense MLP with as many parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.contenders import dense_mlp, parameters
from benchmarks.measuring import Effort
from benchmarks.ranks import block_parameters, largest_rank, rank_name, rank_of, rank_step
from benchmarks.rows import Contender, Row, compare, count
from factorized_moe import MuMoEBlock

__all__ = ["SIZES", "TITLE", "Sizes", "block", "matched_blocks", "rows"]

TITLE = "A block 768-3072-768, beside a dense MLP"


@dataclass(frozen=True)
class Sizes:
    """The sizes of the blocks.

    Attributes:
        features: Of the input and the output.
        hidden: Between the two layers.
        experts: The numbers of experts, in one expert mode.
        tokens: The numbers of tokens.
        compiled_experts: The number of experts of the compiled blocks.
        published: Ranks of the paper's GPT-2, for its number of experts: the published ratios of rank to width.
    """

    features: int = 768
    hidden: int = 3072
    experts: tuple[int, ...] = (64, 256, 1024)
    tokens: tuple[int, ...] = (1024, 1)
    compiled_experts: int = 256
    published: tuple[tuple[int, str, int], ...] = ((256, "cp", 556), (256, "tr", 149))


SIZES = Sizes()


def block(
    decomposition: str,
    expert_dims: tuple[int, ...],
    size: int,
    sizes: Sizes,
    *,
    gate: str = "entmax15",
    **options: Any,
) -> MuMoEBlock:
    """A block with the paper's gate for language models and a LayerNorm on its input, and further options of blocks."""
    return MuMoEBlock(
        sizes.features,
        sizes.hidden,
        sizes.features,
        expert_dims=expert_dims,
        decomposition=decomposition,
        rank=rank_of(decomposition, size, len(expert_dims)),
        gate=gate,
        gate_norm="layer",
        input_norm=True,
        **options,
    )


def matched_blocks(experts: int, sizes: Sizes) -> dict[str, int]:
    """For each decomposition the largest rank in steps that suit the processor, with at most the MLP's parameters."""
    limit = parameters(dense_mlp(sizes.features, sizes.hidden, sizes.features))
    dims = (experts, sizes.features, sizes.hidden, sizes.features)
    return {name: largest_rank(partial(block_parameters, name, *dims), limit, rank_step(name)) for name in ("cp", "tr")}


def rows(effort: Effort, sizes: Sizes = SIZES) -> Iterator[Row]:
    """Forward, and forward and backward, at each number of experts and tokens; compiled at one number of experts."""
    mlp = Contender.of("dense MLP, GELU", dense_mlp(sizes.features, sizes.hidden, sizes.features))
    for experts in sizes.experts:
        matched = [
            Contender.of(rank_name(name, size), block(name, (experts,), size, sizes))
            for name, size in matched_blocks(experts, sizes).items()
        ]
        published = [
            Contender.of(f"{rank_name(name, size)} (the paper's)", block(name, (experts,), size, sizes))
            for number, name, size in sizes.published
            if number == experts
        ]
        for tokens in sizes.tokens:
            inputs = [torch.randn(tokens, sizes.features)]
            case = f"{experts:,} experts, {count(tokens, 'token')}"
            yield from compare(case, mlp, [*matched, *published], inputs, effort)
            if experts == sizes.compiled_experts and effort.compiled:
                yield from compare(case, mlp, matched, inputs, effort, compiled=True)
