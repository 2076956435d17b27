"""What is compared: data, not code. A contender is an initialisation and a gate; a stage is a table of runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from studies.common.problems import PROBLEMS, Form, Size
from studies.training_defaults.gates import CANDIDATES

__all__ = ["CONFIRM", "DEFAULT", "DENSE", "FORMS", "QUICK", "SCREEN", "SIMPLEST", "Contender", "Stage", "form_of"]

LIBRARY_GATES: dict[str, tuple[str | None, float]] = {
    "batch": ("batch", 1.0),
    "layer": ("layer", 1.0),
    "none": (None, 1.0),
    "batch, half": ("batch", 2.0),
    "layer, half": ("layer", 2.0),
}
"""Normalisation and temperature of the library's gates."""
BALANCING = "layer, balancing loss"
"""The library's layer norm, and a term in the loss: the square of each expert's mean coefficient times their number."""


@dataclass(frozen=True)
class Contender:
    """An initialisation with a gate.

    Attributes:
        init: A name of the library's.
        gate: A name of `LIBRARY_GATES`, `BALANCING`, or of `CANDIDATES`.
    """

    init: str
    gate: str

    def __str__(self) -> str:
        return f"{self.init}, {self.gate}" if self.init else "dense"


DENSE = Contender("", "")
DEFAULT = Contender("balanced", "batch, half")
"""What the library does unless told otherwise."""
OLD_LANGUAGE = Contender("paper", "layer")
"""The default of `MuMoEConfig` before, and the paper's choice for language."""
OLD_VISION = Contender("paper", "batch")
"""The default of the layers before, and the paper's choice for images."""

SIMPLEST = ("none", "layer", "unit rows", "unit rows, half", "batch", "batch, half", "input moments")
"""Gates, the simplest first: what reads one sample, then what reads a batch, then what keeps averages of its own."""

EVERY_GATE = tuple(Contender("balanced", gate) for gate in (*LIBRARY_GATES, BALANCING, *CANDIDATES))
EVERY_INIT = tuple(
    Contender(init, gate) for init, gate in product(("paper", "variance_preserving"), ("batch", "layer"))
)


@dataclass(frozen=True)
class Stage:
    """A table of runs.

    Attributes:
        name: The stage.
        contenders: Beside the dense model, which always takes part.
        expert_dims: The expert modes that each contender is given.
        seeds: The seeds of each problem; all contenders of one seed see the same batches.
        rates: For each problem the learning rates of which each contender has its best, chosen with the first expert
            modes and with `RATE_SEED`, which is no other's.
        sizes: How large each problem's model is.
        decompositions: The decompositions.
    """

    name: str
    contenders: tuple[Contender, ...]
    expert_dims: tuple[tuple[int, ...], ...]
    seeds: dict[str, tuple[int, ...]]
    rates: dict[str, tuple[float, ...]]
    sizes: dict[str, Size]
    decompositions: tuple[str, ...] = ("cp",)

    def cells(self, problem: str) -> Iterator[tuple[Contender, tuple[int, ...], str]]:
        """Every contender with its expert modes and decomposition, the dense model first."""
        yield DENSE, (), ""
        for dims, decomposition, contender in product(self.expert_dims, self.decompositions, self.contenders):
            yield contender, dims, decomposition

    def settings(
        self, problem: str, cell: tuple[Contender, tuple[int, ...], str], seed: int, rate: float
    ) -> dict[str, Any]:
        """One run as what JSON can hold."""
        contender, dims, decomposition = cell
        return {
            "stage": self.name,
            "problem": problem,
            "init": contender.init,
            "gate": contender.gate,
            "decomposition": decomposition,
            "expert_dims": list(dims),
            "seed": seed,
            "learning_rate": rate,
        }


RATE_SEED = 100

SENT = tuple(Contender("balanced", gate) for gate in ("batch", "unit rows, half", "unit rows"))
"""What the screening sends to the larger models, see `CONFIRM`, and the default of the time before it."""

ONE_RATE = dict.fromkeys(PROBLEMS, (3e-3,))
SMALL = {"gpt": Size(64, 2, 400, 16), "mixer": Size(64, 2, 400, 64), "head": Size(0, 0, 600, 256)}

SCREEN = Stage("screen", (*EVERY_GATE, *EVERY_INIT), ((64,), (8, 8)), dict.fromkeys(PROBLEMS, (0, 1)), ONE_RATE, SMALL)
"""Small models, one learning rate: which gates are worth a closer look."""

CONFIRM = Stage(
    "confirm",
    (OLD_LANGUAGE, OLD_VISION, DEFAULT, *SENT),
    ((64,), (8, 8), (4, 4, 4)),
    {"gpt": tuple(range(4)), "mixer": tuple(range(4)), "head": tuple(range(12))},
    {"gpt": (4e-4, 1e-3, 3e-3), "mixer": (4e-4, 1e-3, 3e-3), "head": (1e-3, 3e-3, 1e-2)},
    {"gpt": Size(128, 4, 400, 8), "mixer": Size(128, 4, 400, 32), "head": Size(0, 0, 600, 256)},
)
"""Larger models, a learning rate chosen for each: the old defaults, the new one, and those that the screening sends.

The screening sends, by its two seeds and the rule in `rule`: the best two of the gates that read no batch in a forward
pass, and of those that do, beside the default, the best one.
"""

FORMS = Stage(
    "forms",
    (OLD_VISION, DEFAULT),
    ((8, 8),),
    dict.fromkeys(PROBLEMS, (0, 1, 2)),
    ONE_RATE,
    SMALL,
    decompositions=("tr", "tucker"),
)
"""Other decompositions than CP, at the size of the screening."""

QUICK = Stage(
    "quick",
    (OLD_LANGUAGE, DEFAULT),
    ((2, 2),),
    dict.fromkeys(PROBLEMS, (0,)),
    ONE_RATE,
    {name: Size(16, 1, 3, 4, 8) for name in PROBLEMS if name != "head"},
)
"""Seconds, for tests: its figures say nothing."""


def form_of(contender: Contender, dims: tuple[int, ...], decomposition: str) -> Form:
    """The form that stands in a model."""

    def gate(features: int, modes: tuple[int, ...]) -> dict[str, Any]:
        if contender.gate in CANDIDATES:
            return {"gate": CANDIDATES[contender.gate](features, modes)}
        norm, temperature = LIBRARY_GATES["layer" if contender.gate == BALANCING else contender.gate or "batch"]
        return {"gate_norm": norm, "gate_temperature": temperature}

    return Form(dims, decomposition, contender.init, gate)
