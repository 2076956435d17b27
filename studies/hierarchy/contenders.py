"""What is compared, as data: grids of experts of one to four modes, and what stands beside them.

Legend: ``D`` features, ``C`` classes, ``E`` expert modes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor, nn

from factorized_moe import Budget, MuMoE, MuMoEBlock
from factorized_moe.decompositions.base import Rank
from factorized_moe.gating import ExpertGate
from studies.common.problems import Form, Size

__all__ = [
    "CONTENDERS",
    "DENSE",
    "LARGEST",
    "MILLION",
    "PROBLEM_SIZES",
    "QUICK_SIZES",
    "TWO_MAPS",
    "Contender",
    "GridForm",
    "freeze_mode",
    "matrix_rank",
    "rated_by",
]

PROBLEM_SIZES = {"head": Size(0, 0, 400, 256), "mixer": Size(64, 2, 300, 64)}
QUICK_SIZES = {"head": Size(0, 0, 2, 64), "mixer": Size(32, 1, 2, 4)}
"""Seconds, for tests: their figures say nothing."""

EXPERT_BOND = 4
"""The bonds of a tensor ring around its expert modes, as in the paper; the one between input and output is found."""

WIDE = 128
"""The rank of an expert's matrix where grids are compared at one rank."""

MILLION = 10**6

SHAPES = {"head": ((384, 239),), "mixer": ((64, 256), (256, 64))}
"""By problem, the inputs and outputs of the dense layers that experts replace."""

FIXED: dict[str, Callable[[int], Any]] = {
    "cp": lambda modes: None,
    "tr": lambda modes: (*(EXPERT_BOND,) * (modes + 1), None, EXPERT_BOND),
}
"""By decomposition: what `Budget` is given as ``fixed``."""

AT_ONE_RANK: dict[str, Callable[[int], Rank]] = {
    "cp": lambda modes: WIDE,
    "tr": lambda modes: (*(EXPERT_BOND,) * (modes + 1), WIDE // EXPERT_BOND, EXPERT_BOND),
}


@dataclass(frozen=True)
class Contender:
    """A form of the head or of the MLPs.

    Attributes:
        form: A registered decomposition; ``"dense"`` for what experts replace, ``"two maps"`` for a linear head of two
            matrices with as many parameters as the largest head of experts.
        expert_dims: The sizes of the expert modes.
        budget: Whether it has as many parameters as the dense form, the gate counted; if not, it has the rank `WIDE`.
        frozen: Whether the last mode's gate stays uniform: the control.
    """

    form: str
    expert_dims: tuple[int, ...] = ()
    budget: bool = True
    frozen: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """As a line of the file holds them."""
        return {
            "form": self.form,
            "expert_dims": list(self.expert_dims),
            "budget": self.budget,
            "frozen": self.frozen,
        }

    @classmethod
    def of(cls, settings: Any) -> Contender:
        """From a line of the file."""
        return cls(settings["form"], tuple(settings["expert_dims"]), settings["budget"], settings["frozen"])


DENSE, TWO_MAPS = Contender("dense"), Contender("two maps", budget=False)
SMALL = ((64,), (8, 8), (4, 4, 4), (4, 4, 2, 2))
LARGE = ((64, 64), (16, 16, 16), (8, 8, 8, 8))
LARGEST = ((1000, 1000), (100, 100, 100), (32, 32, 32, 32))
FORMS = ("cp", "tr")
FROZEN = (
    Contender("cp", (8, 8), frozen=True),
    Contender("tr", (8, 8), frozen=True),
    Contender("cp", (8, 8, 8, 8), frozen=True),
)

CONTENDERS: dict[str, tuple[Contender, ...]] = {
    "head": (
        DENSE,
        TWO_MAPS,
        *(Contender(form, dims) for form in FORMS for dims in (*SMALL, *LARGE, LARGEST[2])),
        *(Contender(form, dims, budget=False) for form in FORMS for dims in LARGEST),
        *FROZEN,
    ),
    "mixer": (
        DENSE,
        *(Contender(form, dims) for form in FORMS for dims in (*SMALL, *LARGE, *LARGEST[1:])),
        *FROZEN,
    ),
}
"""By problem. What is not there has a gate that is larger than the whole dense form."""


def rated_by(contender: Contender) -> Contender:
    """The contender whose learning rate another one takes: that of 64 experts with as many modes.

    Examples:
        >>> rated_by(Contender("cp", (100, 100, 100), budget=False))
        Contender(form='cp', expert_dims=(4, 4, 4), budget=True, frozen=False)
    """
    if not contender.expert_dims:
        return contender
    return Contender(contender.form, SMALL[len(contender.expert_dims) - 1])


@dataclass(frozen=True)
class GridForm(Form):
    """A contender as what the shared problems build from.

    Attributes:
        contender: The contender.
    """

    contender: Contender = field(default=DENSE)

    @classmethod
    def of(cls, contender: Contender) -> GridForm:
        """With the default initialisation and the default gate."""
        return cls(contender.expert_dims, contender.form, "balanced", lambda features, modes: {}, contender)

    def mlp(self, features: int, hidden: int) -> nn.Module:
        """An MLP ``(.., D)`` to ``(.., D)``."""
        dense = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features))
        if not self.expert_dims:
            return dense
        sizes = ((features, hidden), (hidden, features))
        rank = _rank(self.contender, sizes, sum(p.numel() for p in dense.parameters()))
        return MuMoEBlock(features, hidden, features, self.expert_dims, self.decomposition, rank)

    def head(self, features: int, classes: int) -> nn.Module:
        """A head ``(.., D)`` to ``(.., C)``."""
        dense = nn.Linear(features, classes)
        if self.contender == DENSE:
            return dense
        if self.contender == TWO_MAPS:
            wide = largest_head(features, classes) // (features + classes)
            return nn.Sequential(nn.Linear(features, wide, bias=False), nn.Linear(wide, classes))
        rank = _rank(self.contender, ((features, classes),), sum(p.numel() for p in dense.parameters()))
        return MuMoE(features, classes, self.expert_dims, self.decomposition, rank)


def largest_head(features: int, classes: int) -> int:
    """The parameters of the largest head of experts, gate and bias counted."""
    largest = Contender("cp", LARGEST[0], budget=False)
    layer = MuMoE(features, classes, largest.expert_dims, "cp", WIDE, device="meta")
    return sum(parameter.numel() for parameter in layer.parameters())


@cache
def _rank(contender: Contender, sizes: tuple[tuple[int, int], ...], parameters: int) -> Rank:
    """The rank of a contender."""
    modes = len(contender.expert_dims)
    if not contender.budget:
        return AT_ONE_RANK[contender.form](modes)
    budget = Budget(parameters=parameters, fixed=FIXED[contender.form](modes))
    return budget.rank(contender.expert_dims, list(sizes), contender.form)


def matrix_rank(problem: str, contender: Contender) -> int:
    """The rank that each expert's matrix has at most.

    Args:
        problem: Its name.
        contender: A grid.

    Examples:
        >>> matrix_rank("head", Contender("tr", (100, 100, 100), budget=False))
        128
    """
    sizes = SHAPES[problem]
    rank = _rank(contender, sizes, sum((inputs + 1) * outputs for inputs, outputs in sizes))
    found = rank if isinstance(rank, int) else rank[-2] * EXPERT_BOND  # of a ring: between input and output, around
    return min(found, *sizes[0])


def freeze_mode(model: nn.Module, mode: int = -1) -> None:
    """Keep one mode's coefficients uniform in every gate: its weights start at zero, and get no gradient.

    Args:
        model: A model of experts whose gates have not been trained.
        mode: The expert mode.
    """
    for gate in [module for module in model.modules() if isinstance(module, ExpertGate)]:
        ends = [sum(gate.expert_dims[: k + 1]) for k in range(len(gate.expert_dims))]
        rows = slice(ends[mode] - gate.expert_dims[mode], ends[mode])
        weight = gate.projection.weight  # (sum of N_k, D)

        def masked(gradient: Tensor, rows: slice = rows) -> Tensor:
            gradient = gradient.clone()
            gradient[rows] = 0.0
            return gradient

        weight.register_hook(masked)
