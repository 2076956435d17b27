"""What is compared: data, not code. A contender is a kind of gate; all have as many parameters as the dense MLP."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from factorized_moe import Budget, MuMoEBlock
from studies.common.problems import Form, Size
from studies.many_experts.product_keys import ProductKeys, largest_side

__all__ = ["CONTENDERS", "DENSE", "FULL", "PROBLEM_SIZES", "PRODUCT_KEYS", "QUICK_SIZES", "GateForm", "cells"]

DENSE, PRODUCT_KEYS, FULL = "dense", "product keys (PEER)", "full gate, entmax"


@dataclass(frozen=True)
class Gate:
    """How a contender chooses among its experts.

    Attributes:
        activation: From logits to coefficients.
        rank: Of the gate's weight; None for a full one.
        modes: The number of expert modes.
    """

    activation: str = "entmax15"
    rank: int | None = None
    modes: int = 2


CONTENDERS = {
    FULL: Gate(),
    "rank 16, entmax": Gate(rank=16),
    "rank 8, entmax": Gate(rank=8),
    "full gate, softmax": Gate("softmax"),
    "rank 16, softmax": Gate("softmax", rank=16),
    "three modes, entmax": Gate(modes=3),
    "four modes, entmax": Gate(modes=4),
}

EXPERT_DIMS = {
    1024: {2: (32, 32), 3: (8, 8, 16), 4: (4, 4, 8, 8)},
    4096: {2: (64, 64), 3: (16,) * 3, 4: (8,) * 4},
    1_048_576: {3: (64, 128, 128), 4: (32,) * 4},  # the full gate of two modes has more parameters than the dense MLP
}
"""How so many experts are arranged in so many modes."""

PROBLEM_SIZES = {"gpt": Size(64, 2, 400, 16), "mixer": Size(64, 2, 400, 64)}
QUICK_SIZES = {"gpt": Size(64, 1, 3, 4, 8), "mixer": Size(64, 1, 3, 4)}
"""Seconds, for tests: their figures say nothing."""


def cells() -> list[tuple[str, tuple[int, ...]]]:
    """Every contender with the expert modes it is given; the first ones choose its learning rate."""
    return [(DENSE, ()), (PRODUCT_KEYS, ()), *_gated_cells()]


def _gated_cells() -> list[tuple[str, tuple[int, ...]]]:
    return [
        (name, arranged[gate.modes])
        for arranged in EXPERT_DIMS.values()
        for name, gate in CONTENDERS.items()
        if gate.modes in arranged
    ]


@dataclass(frozen=True)
class GateForm(Form):
    """An MLP with a gate of `CONTENDERS`, or another layer in its place.

    Attributes:
        contender: A name.
    """

    contender: str = DENSE

    @classmethod
    def of(cls, contender: str, expert_dims: tuple[int, ...]) -> GateForm:
        """A contender, in CP form with the default initialisation."""
        return cls(expert_dims, "cp", "balanced", lambda features, modes: {}, contender)

    def mlp(self, features: int, hidden: int) -> nn.Module:
        """An MLP ``(.., D)`` to ``(.., D)``."""
        dense = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features))
        if self.contender == DENSE:
            return dense
        if self.contender == PRODUCT_KEYS:
            return ProductKeys(features, largest_side(features, sum(p.numel() for p in dense.parameters())))
        gate, budget = CONTENDERS[self.contender], Budget(like=dense)
        return MuMoEBlock(
            features, hidden, features, self.expert_dims, "cp", budget, gate=gate.activation, gate_rank=gate.rank
        )
