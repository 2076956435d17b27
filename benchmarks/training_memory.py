"""What training a block takes in memory beside a dense MLP with as many parameters, with and without checkpoints.

Run as a module with a contender's number, it trains that one for a few steps and prints how much its process grew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.block import SIZES as BLOCK_SIZES
from benchmarks.block import Sizes as BlockSizes
from benchmarks.block import block, matched_blocks
from benchmarks.contenders import dense_mlp
from benchmarks.measuring import Effort
from benchmarks.memory import kept_bytes, num_bytes, process_bytes, process_peak
from benchmarks.ranks import rank_name
from benchmarks.rows import Contender, Row, compare, count

__all__ = ["SIZES", "TITLE", "Sizes", "held_bytes", "makers", "rows"]

TITLE = "Memory for training the block, beside the dense MLP"

STEPS = 3


@dataclass(frozen=True)
class Sizes:
    """The sizes of the case.

    Attributes:
        block: The sizes of the blocks.
        experts: The number of experts.
        tokens: The number of tokens.
    """

    block: BlockSizes = BLOCK_SIZES
    experts: int = 256
    tokens: int = 1024


SIZES = Sizes()
TINY = Sizes(BlockSizes(features=16, hidden=64), experts=4, tokens=8)


def makers(sizes: Sizes) -> dict[str, Callable[[], nn.Module]]:
    """How to make each contender, by name; the dense MLP first."""
    dims = (sizes.block.features, sizes.block.hidden, sizes.block.features)
    found: dict[str, Callable[[], nn.Module]] = {"dense MLP, GELU": partial(dense_mlp, *dims)}
    for name, size in matched_blocks(sizes.experts, sizes.block).items():
        for checkpoint in (False, True):
            title = rank_name(name, size) + (", checkpoint=True" if checkpoint else "")
            found[title] = partial(block, name, (sizes.experts,), size, sizes.block, checkpoint=checkpoint)
    return found


def held_bytes(contender: Contender, operands: Sequence[Tensor]) -> int:
    """Parameters, gradients, and what is alive between the forward and the backward pass: input and output too."""
    leaves = [tensor.detach().requires_grad_() for tensor in operands]
    return 2 * contender.bytes + num_bytes(leaves) + kept_bytes(lambda: contender.function(*leaves))


def rows(effort: Effort, sizes: Sizes = SIZES) -> Iterator[Row]:
    """One case; what the processes take is measured with the default sizes only."""
    baseline, *others = [Contender.of(name, make()) for name, make in makers(sizes).items()]
    operands = [torch.randn(sizes.tokens, sizes.block.features)]
    case = f"{sizes.experts:,} experts, {count(sizes.tokens, 'token')}"
    for number, row in enumerate(compare(case, baseline, others, operands, effort)):
        row = replace(row, held_bytes=held_bytes((baseline, *others)[number], operands))
        if sizes == SIZES:
            row = replace(row, process_bytes=process_bytes("benchmarks.training_memory", str(number)))
        yield row


def _train(number: int, sizes: Sizes) -> None:
    """Build one contender alone, and train it for a few steps."""
    module = list(makers(sizes).values())[number]()
    x = torch.randn(sizes.tokens, sizes.block.features)
    for _ in range(STEPS):
        module.zero_grad()
        module(x).square().mean().backward()


if __name__ == "__main__":
    _train(int(sys.argv[1]), TINY)  # loads the code, which takes memory too
    before = process_peak()
    _train(int(sys.argv[1]), SIZES)
    print(process_peak() - before)
