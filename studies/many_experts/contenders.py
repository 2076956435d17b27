"""What is compared: data, not code. A contender is a kind of gate; all have as many parameters as the dense MLP."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from factorized_moe import Budget, MuMoEBlock
from studies.common.problems import Form, Size
from studies.many_experts.product_keys import ProductKeys, largest_side

__all__ = ["CONTENDERS", "DENSE", "FULL", "PROBLEM_SIZES", "PRODUCT_KEYS", "QUICK_SIZES", "GateForm", "cells"]

DENSE, PRODUCT_KEYS, FULL = "dense", "product keys (PEER)", "full gate, entmax"

CONTENDERS: dict[str, tuple[str, int | None]] = {
    FULL: ("entmax15", None),
    "rank 16, entmax": ("entmax15", 16),
    "rank 8, entmax": ("entmax15", 8),
    "full gate, softmax": ("softmax", None),
    "rank 16, softmax": ("softmax", 16),
}
"""The activation of the gate, and its rank."""

EXPERT_DIMS = ((32, 32), (64, 64))
PROBLEM_SIZES = {"gpt": Size(64, 2, 400, 16), "mixer": Size(64, 2, 400, 64)}
QUICK_SIZES = {"gpt": Size(32, 1, 3, 4, 8), "mixer": Size(32, 1, 3, 4)}
"""Seconds, for tests: their figures say nothing."""


def cells() -> list[tuple[str, tuple[int, ...]]]:
    """Every contender with the expert modes it is given; the first ones choose its learning rate."""
    return [(DENSE, ()), (PRODUCT_KEYS, ()), *((name, dims) for dims in EXPERT_DIMS for name in CONTENDERS)]


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
        gate, rank = CONTENDERS[self.contender]
        return MuMoEBlock(
            features, hidden, features, self.expert_dims, "cp", Budget(like=dense), gate=gate, gate_rank=rank
        )
