"""One layer of many experts beside ``nn.Linear`` and beside other layers that could stand there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from benchmarks.contenders import Missing, SoftMoE, released_layer, sparse_moe, tltorch_linear
from benchmarks.measuring import Effort
from benchmarks.ranks import largest_rank, layer_parameters, rank_name, rank_of, rank_step
from benchmarks.rows import Contender, Row, compare, count, missing
from factorized_moe import MuMoE

__all__ = ["SIZES", "TITLE", "Sizes", "layer", "rows"]

TITLE = "A layer 768-768 with 128 experts, beside `nn.Linear`"


@dataclass(frozen=True)
class Sizes:
    """The sizes of the layers.

    Attributes:
        features: Of the input and the output.
        experts: The number of experts, in one expert mode.
        tokens: The numbers of tokens.
        published: The ranks of the paper's 128 experts for 768 inputs and 1,000 outputs.
        expert_hidden: The width inside an expert of the sparse mixture. With a third of the features an expert has
            as many parameters as one linear map.
        tensorised: How TensorLy-Torch's layers split the features.
    """

    features: int = 768
    experts: int = 128
    tokens: tuple[int, ...] = (1, 1024)
    published: tuple[tuple[str, int], ...] = (("cp", 354), ("tr", 95))
    expert_hidden: int = 256
    tensorised: tuple[tuple[int, ...], ...] = ((768,), (8, 8, 12))


SIZES = Sizes()


def layer(decomposition: str, size: int, sizes: Sizes) -> MuMoE:
    """A layer with the paper's gate; layer norm, so that one token is enough and the released code has it too."""
    return MuMoE(
        sizes.features,
        sizes.features,
        expert_dims=[sizes.experts],
        decomposition=decomposition,
        rank=rank_of(decomposition, size),
        gate_norm="layer",
    )


def rows(effort: Effort, sizes: Sizes = SIZES) -> Iterator[Row]:
    """Forward passes, eager and compiled."""
    baseline = Contender.of("nn.Linear", nn.Linear(sizes.features, sizes.features))
    limit = baseline.size
    dims = (sizes.experts, sizes.features, sizes.features)
    matched = [
        (name, largest_rank(partial(layer_parameters, name, *dims), limit, rank_step(name))) for name in ("cp", "tr")
    ]
    contenders: list[Contender] = []
    compilable: list[Contender] = []  # a few: compilation takes longer than all else here
    absent: dict[str, Missing] = {}

    def add(name: str, make: Callable[[], nn.Module], *, compiles: bool = True) -> None:
        try:
            contenders.append(Contender.of(name, make()))
        except Missing as reason:
            absent[name] = reason
        else:
            compilable.extend(contenders[-1:] if compiles else [])

    ours = {rank_name(*pair): layer(*pair, sizes) for pair in sizes.published}
    for name, module in ours.items():
        add(f"{name} (the paper's)", partial(_same, module))
    for pair in matched:
        add(rank_name(*pair), partial(layer, *pair, sizes), compiles=False)
    for name, module in ours.items():
        add(f"released code, {name}", partial(released_layer, module))
    add("dense MoE", partial(SoftMoE, sizes.features, sizes.features, sizes.experts))
    for how in ("eager", "grouped_mm"):
        make = partial(sparse_moe, sizes.features, sizes.expert_hidden, sizes.experts, how)
        # The eager loop over the experts that were chosen cannot be compiled into one graph.
        add(f"sparse MoE, top 2 (transformers, {how})", make, compiles=how != "eager")
    for modes in sizes.tensorised:
        make = partial(tltorch_linear, modes, limit)
        add(f"TensorLy-Torch, CP of {'x'.join(map(str, modes))}", make, compiles=len(modes) == 1)

    for tokens in sizes.tokens:
        inputs = [torch.randn(tokens, sizes.features)]
        case = count(tokens, "token")
        yield from compare(case, baseline, contenders, inputs, effort, training=False)
        for name, reason in absent.items():
            yield missing(case, name, reason)
        if effort.compiled:
            yield from compare(case, baseline, compilable, inputs, effort, training=False, compiled=True)


def _same(module: nn.Module) -> nn.Module:
    return module
