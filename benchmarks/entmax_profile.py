"""Where entmax's time goes: each of its operations, timed where torch dispatches it, and what is left between them."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.activation import SPREAD
from benchmarks.measuring import Effort
from factorized_moe.activations import entmax15

__all__ = ["BETWEEN", "KINDS", "SIZE", "SMALL", "TITLE", "Share", "markdown", "profiles", "shares"]

TITLE = "Where entmax's time goes"
SIZE = (1024, 1024)
"""Rows and the experts of each."""

KINDS = {
    "add": "halved differences to the largest, into new memory",
    "addcmul": "a product subtracted, in place",
    "amax": "the largest of each column of 16 logits",
    "linalg_vector_norm": "the norm of each row",
    "mul": "a product, into new memory",
    "pow_": "a square, in place",
    "relu_": "zeros for negative numbers, in place",
    "sub_": "a number subtracted from each row, in place",
    "sum": "the sum of each row",
}
"""What an operation over all logits does."""

SMALL, BETWEEN = "on some of the logits, or a number per row", "between the operations"

LEAST = 0.025
"""The share from which on an operation over all logits has a line of its own."""


@dataclass(frozen=True)
class Share:
    """The part of one kind of operation in a call.

    Attributes:
        kind: What it does.
        calls: How many there are in one call; 0 for the time between them.
        seconds: All of them together, in one call.
    """

    kind: str
    calls: float
    seconds: float


class _Timed(TorchDispatchMode):
    """Notes the time of each operation by its name and the numbers in the largest tensor that it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[tuple[str, int], list[float]] = defaultdict(list)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        numbers = max((value.numel() for value in args if isinstance(value, Tensor)), default=0)
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        spent = time.perf_counter() - start
        self.found[func.overloadpacket.__name__, numbers].append(spent)
        return result


def profiles(effort: Effort, size: tuple[int, int] = SIZE) -> dict[str, list[Share]]:
    """Of a forward pass, and of one with gradients."""
    logits = SPREAD * torch.randn(size)
    watched, gradient = logits.clone().requires_grad_(), torch.randn(size)

    def training() -> object:
        return torch.autograd.grad(entmax15(watched), watched, gradient)

    with torch.no_grad():
        forward = shares(lambda: entmax15(logits), logits.numel(), effort.most)
    return {"forward": forward, "training": shares(training, logits.numel(), effort.most)}


def shares(call: Callable[[], object], numbers: int, repeats: int) -> list[Share]:
    """The kinds of operations over all logits, the longest first; then the small ones, then what is between them.

    Args:
        call: What is profiled.
        numbers: From how many on an operation is over all logits.
        repeats: How often it is called, each time once as it is and once with its operations timed.
    """
    wholes: list[float] = []
    of_calls: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        wholes.append(time.perf_counter() - start)
        with _Timed() as timed:
            call()
        spent: dict[str, list[float]] = defaultdict(list)
        for (name, most), times in timed.found.items():
            spent[KINDS.get(name, f"`{name}`") if most >= numbers else SMALL] += times
        for kind, times in spent.items():
            of_calls[kind].append((len(times), sum(times)))
    whole = statistics.median(wholes)
    told = [
        Share(kind, statistics.median(n for n, _ in each), statistics.median(seconds for _, seconds in each))
        for kind, each in of_calls.items()
    ]
    little = [share for share in told if share.kind == SMALL or share.seconds < LEAST * whole]  # views among them
    small = Share(SMALL, sum(share.calls for share in little), sum(share.seconds for share in little))
    told = [*sorted((s for s in told if s not in little), key=lambda share: -share.seconds), small]
    return [*told, Share(BETWEEN, 0, max(0.0, whole - sum(share.seconds for share in told)))]


def markdown(found: Mapping[str, Sequence[Share]], size: tuple[int, int] = SIZE) -> str:
    """A row for each kind of operation."""
    rows, experts = size
    lines = [
        f"Entmax over {rows:,} rows of {experts:,} experts, operation by operation. One over all logits passes over "
        f"{rows * experts * 4 / 2**20:.0f} MiB, in place where it can: a step of Newton's method reads them twice, for "
        "norm and sum, and changes them twice. The result goes into new memory; in training so do the slopes that the "
        "derivative needs, and the derivative. Medians of calls.\n",
        "| operation | " + " | ".join(f"{name}: times | share" for name in found) + " |",
        "|---|" + "---:|---:|" * len(found),
    ]
    wholes = [sum(share.seconds for share in each) for each in found.values()]
    tables = [{share.kind: share for share in each} for each in found.values()]
    kinds = [share.kind for each in reversed(found.values()) for share in each]
    for kind in sorted(dict.fromkeys(kinds), key=(SMALL, BETWEEN).count):
        cells = [_cells(table.get(kind), whole) for table, whole in zip(tables, wholes, strict=True)]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(share: Share | None, whole: float) -> str:
    if share is None:
        return " | "
    return f"{share.calls:.0f} | {share.seconds / whole:.0%}" if share.calls else f" | {share.seconds / whole:.0%}"
