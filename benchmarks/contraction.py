"""Generated contractions beside the same equations written by hand with einsum, for one to four expert modes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.hand_written import HAND_WRITTEN, Forward, experts_first
from benchmarks.measuring import Effort
from benchmarks.rows import Contender, Row, compare, count
from factorized_moe import FactorizedExpertTensor

__all__ = ["SIZES", "TITLE", "Sizes", "contenders", "expert_tensor", "inputs", "rows"]

NAMES = {"cp": "CP", "tucker": "Tucker", "tt": "TT", "tr": "TR"}

TITLE = "Generated contraction, beside hand-written einsum code"


@dataclass(frozen=True)
class Sizes:
    """The sizes of the expert tensors.

    Attributes:
        features: Of the input and the output.
        expert_dims: The expert modes of each case.
        cp: CP's rank.
        bond: The small bonds of trains and rings.
        core: The bond between input and output of trains and rings, and Tucker's ranks of these two modes.
        tucker: Tucker's ranks of the expert modes.
        samples: The numbers of samples.
        many: The number of samples at which Tucker is compared with expert modes first.
    """

    features: int = 256
    expert_dims: tuple[tuple[int, ...], ...] = ((64,), (16, 16), (8, 8, 8), (8, 8, 4, 4))
    cp: int = 128
    bond: int = 4
    core: int = 32
    tucker: tuple[int, ...] = (8, 4, 4, 4)
    samples: tuple[int, ...] = (1, 64, 1024)
    many: int = 512


SIZES = Sizes()


def expert_tensor(decomposition: str, expert_dims: tuple[int, ...], sizes: Sizes) -> FactorizedExpertTensor:
    """An expert tensor with a bias, of the section's rank."""
    modes = len(expert_dims)
    ranks: dict[str, int | tuple[int, ...]] = {
        "cp": sizes.cp,
        "tucker": (*sizes.tucker[:modes], sizes.core, sizes.core),
        "tt": (1, *(sizes.bond,) * modes, sizes.core, 1),
        "tr": (*(sizes.bond,) * (modes + 1), sizes.core, sizes.bond),
    }
    return FactorizedExpertTensor(
        expert_dims, sizes.features, sizes.features, decomposition, ranks[decomposition], bias=True
    )


def inputs(expert_dims: tuple[int, ...], samples: int, sizes: Sizes) -> list[Tensor]:
    """An input and one coefficient tensor for each expert mode."""
    return [
        torch.randn(samples, sizes.features),
        *(torch.softmax(torch.randn(samples, experts), dim=-1) for experts in expert_dims),
    ]


def contenders(decomposition: str, weight: FactorizedExpertTensor) -> list[Contender]:
    """The generated contraction, as it is called, and the hand-written ones."""
    tensors = tuple(weight.parameters())
    found = [Contender("generated", lambda x, *coefficients: weight(x, coefficients), tensors)]
    for name, write in HAND_WRITTEN[decomposition].items():
        found.append(_by_hand(name, write(weight), tensors))
    return found


def rows(effort: Effort, sizes: Sizes = SIZES) -> Iterator[Row]:
    """Every decomposition, number of expert modes and number of samples; then Tucker with expert modes first."""
    for decomposition in HAND_WRITTEN:
        for expert_dims in sizes.expert_dims:
            weight = expert_tensor(decomposition, expert_dims, sizes)
            generated, *written = contenders(decomposition, weight)
            for samples in sizes.samples:
                operands = inputs(expert_dims, samples, sizes)
                for baseline in written:
                    yield from _beside(generated, baseline, operands, _case(weight, decomposition, samples), effort)
    for expert_dims in sizes.expert_dims[1:3]:
        weight = expert_tensor("tucker", expert_dims, sizes)
        (generated, *_) = contenders("tucker", weight)
        baseline = _by_hand("hand-written, experts first", experts_first(weight), generated.parameters)
        operands = inputs(expert_dims, sizes.many, sizes)
        yield from _beside(generated, baseline, operands, _case(weight, "tucker", sizes.many), effort)


def _by_hand(name: str, forward: Forward, tensors: tuple[Tensor, ...]) -> Contender:
    return Contender(name, lambda x, *coefficients: forward(x, coefficients), tensors)


def _case(weight: FactorizedExpertTensor, decomposition: str, samples: int) -> str:
    modes = " x ".join(map(str, weight.expert_dims))
    return f"{NAMES[decomposition]}, {modes} experts, {count(samples, 'sample')}"


def _beside(generated: Contender, baseline: Contender, operands: list[Tensor], case: str, effort: Effort) -> list[Row]:
    """One comparison, after a check that both compute the same.

    Raises:
        ValueError: If they do not.
    """
    with torch.no_grad():
        ours, theirs = generated.function(*operands), baseline.function(*operands)
    if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max())):
        raise ValueError(f"{case}: {baseline.name} code computes something else than the generated contraction")
    return compare(case, baseline, [generated], operands, effort)
