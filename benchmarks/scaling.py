"""How time and memory grow with the experts, the rank and the tokens; from 64 experts to a million."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from benchmarks.block import SIZES as BLOCK_SIZES
from benchmarks.block import Sizes as BlockSizes
from benchmarks.block import block, matched_blocks
from benchmarks.measuring import Effort, alternate
from benchmarks.memory import peak_bytes
from benchmarks.ranks import rank_name, rank_of
from benchmarks.rows import Contender, Row, compare, count
from factorized_moe import MuMoE
from factorized_moe.activations import entmax15

__all__ = ["SIZES", "TITLE", "Point", "Sizes", "points", "rows"]

TITLE = "1,048,576 experts in two modes, and in more (timed, not trained), beside 64 experts in one"


@dataclass(frozen=True)
class Sizes:
    """The sizes of the figure.

    Attributes:
        features: Of the input and the output.
        cp: CP's rank where it does not vary.
        tr: The tensor ring's bond between input and output where it does not vary.
        tokens: The number of tokens where it does not vary.
        experts: The number of experts where it does not vary.
        modes: For each number of modes, the experts of each mode.
        ranks: The ranks.
        token_counts: The numbers of tokens.
        many: The expert modes that are compared with ``experts``.
        arranged: As many experts in more modes.
        gate_rank: The rank of the cheaper gates in that comparison.
        compared_tokens: The numbers of tokens of that comparison.
        block: The sizes of the block in that comparison.
    """

    features: int = 768
    cp: int = 256
    tr: int = 64
    tokens: int = 256
    experts: int = 64
    modes: tuple[tuple[int, ...], ...] = (
        (16, 64, 256, 1024, 4096, 16384, 65536),
        (4, 16, 64, 256, 1024, 4096),
        (4, 16, 64, 256, 1000),
        (2, 4, 16, 64, 256, 1000),
    )
    ranks: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)
    token_counts: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096)
    many: tuple[int, ...] = (1024, 1024)
    arranged: tuple[tuple[int, ...], ...] = ((64, 128, 128), (32, 32, 32, 32))
    gate_rank: int = 32
    compared_tokens: tuple[int, ...] = (1024, 1)
    block: BlockSizes = BLOCK_SIZES


SIZES = Sizes()


@dataclass(frozen=True)
class Point:
    """One point of the figure.

    Attributes:
        panel: What varies: ``"experts"``, ``"rank"`` or ``"tokens"``.
        series: The line that it is on.
        x: The value of what varies.
        seconds: The median time of a forward pass for one token.
        parameters: The number of parameters.
        forward_bytes: The parameters and the most bytes of tensors alive during a forward pass.
    """

    panel: str
    series: str
    x: int
    seconds: float
    parameters: int
    forward_bytes: int


def _layer(decomposition: str, expert_dims: tuple[int, ...], size: int, features: int, **options: Any) -> MuMoE:
    rank = rank_of(decomposition, size, len(expert_dims))
    return MuMoE(features, features, expert_dims, decomposition, rank, gate_norm="layer", **options)


def points(effort: Effort, sizes: Sizes = SIZES) -> Iterator[Point]:
    """All points of the figure. The contenders of a panel take turns, so that they meet the same machine."""
    cases = {
        "experts": _by_experts(sizes),
        "rank": _by_rank(sizes),
        "tokens": _by_tokens(sizes),
    }
    for panel, made in cases.items():
        found = [(series, x, tokens, Contender.of(series, make())) for series, x, tokens, make in made]
        calls = [c.forward([torch.randn(tokens, sizes.features)]) for _, _, tokens, c in found]
        # One effort for the whole panel, a turn of a few calls for each of its points.
        times = alternate(calls, replace(effort, seconds=effort.seconds * len(calls) / 4))
        for (series, x, tokens, contender), call, mine in zip(found, calls, times, strict=True):
            most = contender.bytes + peak_bytes(call)
            yield Point(panel, series, x, statistics.median(mine) / tokens, contender.size, most)


Case = tuple[str, int, int, Callable[[], nn.Module]]
"""A series, a value of what varies, the number of tokens, and how to make the layer."""


def _by_experts(sizes: Sizes) -> list[Case]:
    found: list[Case] = []
    for name, size in (("cp", sizes.cp), ("tr", sizes.tr)):
        for modes, experts in enumerate(sizes.modes, start=1):
            series = f"{name.upper()}, {count(modes, 'mode')}"
            for each in experts:
                dims = (each,) * modes
                found.append((series, math.prod(dims), sizes.tokens, _maker(name, dims, size, sizes)))
    return found


def _by_rank(sizes: Sizes) -> list[Case]:
    found = [
        (name.upper(), size, sizes.tokens, _maker(name, (sizes.experts,), size, sizes))
        for name in ("cp", "tr")
        for size in sizes.ranks
    ]
    return found + [("nn.Linear", size, sizes.tokens, _linear(sizes)) for size in (sizes.ranks[0], sizes.ranks[-1])]


def _by_tokens(sizes: Sizes) -> list[Case]:
    found: list[Case] = []
    for tokens in sizes.token_counts:
        for name, size in (("cp", sizes.cp), ("tr", sizes.tr)):
            found.append((name.upper(), tokens, tokens, _maker(name, (sizes.experts,), size, sizes)))
        found.append(("nn.Linear", tokens, tokens, _linear(sizes)))
    return found


def _maker(name: str, dims: tuple[int, ...], size: int, sizes: Sizes) -> Callable[[], nn.Module]:
    return lambda: _layer(name, dims, size, sizes.features)


def _linear(sizes: Sizes) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(sizes.features, sizes.features)


def rows(effort: Effort, sizes: Sizes = SIZES) -> Iterator[Row]:
    """The cost of many experts beside few: of the contraction alone, of the gated layer, and of a block.

    The sparse form is measured for CP, whose plan looks for zeros; a ring's expert cores are too small for that to pay.
    """
    few = (sizes.experts,)
    for tokens in sizes.compared_tokens:
        x = torch.randn(tokens, sizes.features)
        for kind, make in (("contraction alone", _contraction), ("layer with gate", _gated), ("block", _block)):
            for name in ("cp", "tr"):
                fewer = make(name, few, tokens, sizes, {})
                more = [make(name, sizes.many, tokens, sizes, form) for form in _forms(name, kind, sizes)]
                more += [make(name, dims, tokens, sizes, {}) for dims in sizes.arranged]
                yield from compare(f"{kind}, {count(tokens, 'token')}", fewer, more, [x], effort)


def _forms(name: str, kind: str, sizes: Sizes) -> list[dict[str, Any]]:
    """What a layer of many experts in two modes is made with: a full gate or one of low rank; CP also sparse."""
    sparse = [{"sparse_coefficients": True}] if name == "cp" else []
    if kind == "contraction alone":
        return [{}, *sparse]
    low: dict[str, Any] = {"gate_rank": sizes.gate_rank}
    return [{}, *sparse, low, *({**form, **low} for form in sparse), {**low, "gate": "softmax"}]


def _contraction(name: str, dims: tuple[int, ...], tokens: int, sizes: Sizes, form: Mapping[str, Any]) -> Contender:
    """The experts of a layer, with given coefficients, of which most are zero."""
    size = sizes.cp if name == "cp" else sizes.tr
    experts = _layer(name, dims, size, sizes.features, **form).experts
    coefficients = [entmax15(torch.randn(tokens, number)) for number in dims]
    return Contender(_title(name, size, dims, form), lambda x: experts(x, coefficients), tuple(experts.parameters()))


def _gated(name: str, dims: tuple[int, ...], tokens: int, sizes: Sizes, form: Mapping[str, Any]) -> Contender:
    size = sizes.cp if name == "cp" else sizes.tr
    return Contender.of(_title(name, size, dims, form), _layer(name, dims, size, sizes.features, **form))


def _block(name: str, dims: tuple[int, ...], tokens: int, sizes: Sizes, form: Mapping[str, Any]) -> Contender:
    """A block of the rank that matches an MLP at the few experts."""
    size = matched_blocks(sizes.experts, sizes.block)[name]
    return Contender.of(_title(name, size, dims, form), block(name, dims, size, sizes.block, **form))


def _title(name: str, size: int, dims: tuple[int, ...], form: Mapping[str, Any]) -> str:
    options = "".join(f", {option}={value}" for option, value in form.items())
    modes = f" in {count(len(dims), 'mode')}" if len(dims) > 2 else ""
    return f"{rank_name(name, size, len(dims))}, {math.prod(dims):,} experts{modes}{options}"
