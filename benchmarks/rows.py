"""The rows of the table: contenders of one case, each measured beside the case's baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from benchmarks import contenders as others
from benchmarks.measuring import Call, Effort, Ratio, alone, measure_ratio
from benchmarks.memory import num_bytes, peak_bytes

__all__ = ["Contender", "Row", "compare", "count", "missing"]


@dataclass(frozen=True)
class Row:
    """What was measured of one contender in one case.

    Attributes:
        case: The sizes, such as ``"256 experts, 1 token"``.
        contender: Its name.
        baseline: Whether it is what the others of its case are compared with; its times are in ``forward`` and
            ``training`` all the same, with ratios of 1.
        forward: The time of a forward pass over the baseline's.
        training: The time of a forward and a backward pass over the baseline's.
        parameters: The number of parameters.
        forward_bytes: The parameters and the most memory for tensors during a forward pass.
        training_bytes: The same for a forward and a backward pass, gradients included.
        held_bytes: Parameters, gradients and what is kept from the forward pass for the backward pass.
        process_bytes: By how much a process grows that trains it, after it has trained a tiny one.
        absent: Why there are no measurements.
    """

    case: str
    contender: str
    baseline: bool = False
    forward: Ratio | None = None
    training: Ratio | None = None
    parameters: int | None = None
    forward_bytes: int | None = None
    training_bytes: int | None = None
    held_bytes: int | None = None
    process_bytes: int | None = None
    absent: str | None = None


@dataclass(frozen=True)
class Contender:
    """A function of some inputs and the parameters that it uses.

    Attributes:
        name: Its name in the table.
        function: From the inputs to one tensor.
        parameters: Its parameters.
    """

    name: str
    function: Callable[..., Tensor]
    parameters: tuple[Tensor, ...] = field(repr=False)

    @classmethod
    def of(cls, name: str, module: nn.Module) -> Contender:
        """A module of one input, its gate given weights: an untrained one mixes uniformly, which costs less."""
        for part in module.modules():
            projection = getattr(part, "projection", None)
            if isinstance(projection, nn.Linear):
                nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        return cls(name, module, tuple(module.parameters()))

    def compiled(self) -> Contender:
        """The same, compiled for the shapes it is called with."""
        return replace(self, function=torch.compile(self.function, dynamic=False))

    def forward(self, inputs: Sequence[Tensor]) -> Call:
        """A call of the forward pass alone."""

        def call() -> Tensor:
            with torch.no_grad():
                return self.function(*inputs)

        return call

    def training(self, inputs: Sequence[Tensor]) -> Call:
        """A call of the forward pass and of the gradients of the parameters and the inputs."""
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        with torch.no_grad():
            direction = torch.ones_like(self.function(*inputs))

        def call() -> tuple[Tensor, ...]:
            return torch.autograd.grad(self.function(*leaves), (*self.parameters, *leaves), direction)

        return call

    @property
    def size(self) -> int:
        """The number of its parameters."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def bytes(self) -> int:
        """The bytes of its parameters."""
        return num_bytes(self.parameters)


def compare(
    case: str,
    baseline: Contender,
    contenders: Sequence[Contender],
    inputs: Sequence[Tensor],
    effort: Effort,
    *,
    training: bool = True,
    compiled: bool = False,
) -> list[Row]:
    """Measure contenders beside a baseline.

    Args:
        case: The case's name.
        baseline: What the contenders are compared with, one at a time.
        contenders: The others.
        inputs: What all of them are called with.
        effort: How long to measure each comparison.
        training: Whether to measure the backward pass too.
        compiled: Whether to compile all of them first.

    Returns:
        One row for each, the baseline's first.
    """
    if compiled:
        torch.compiler.reset()
        case += ", compiled"
        baseline, contenders = baseline.compiled(), [contender.compiled() for contender in contenders]
    everyone = (baseline, *contenders)
    measured = [
        Row(case, c.name, c is baseline, ratio, parameters=c.size, forward_bytes=c.bytes + peak)
        for c, (ratio, peak) in zip(everyone, _measure([c.forward(inputs) for c in everyone], effort), strict=True)
    ]
    if training:
        both = _measure([c.training(inputs) for c in everyone], effort)
        measured = [
            replace(row, training=ratio, training_bytes=c.bytes + peak)
            for row, c, (ratio, peak) in zip(measured, everyone, both, strict=True)
        ]
    return measured


def _measure(calls: Sequence[Call], effort: Effort) -> list[tuple[Ratio, int]]:
    """Each call's time beside the first one's, and its most bytes of tensors."""
    for call in calls:
        call()  # a compiled function is compiled at its first call, which takes memory too
    peaks = [peak_bytes(call) for call in calls]
    ratios = [measure_ratio(call, calls[0], effort) for call in calls[1:]]
    return list(zip([alone(ratios), *ratios], peaks, strict=True))


def count(number: int, noun: str) -> str:
    """A number of things: ``1 token``, ``1,024 tokens``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def missing(case: str, contender: str, reason: others.Missing) -> Row:
    """The row of a contender that is not there."""
    return Row(case, contender, absent=str(reason))
