"""The laws of an expert tensor that is cut over several ranks.

Each law is a function of a decomposition and a structure that raises `AssertionError` if it does not hold.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from factorized_moe.decompositions import Decomposition
from factorized_moe.parallel import Machine, shard
from factorized_moe.tensor import FactorizedExpertTensor
from factorized_moe.testing.processes import on_ranks
from factorized_moe.testing.strategies import Structure

__all__ = ["CollectiveCount", "sharded_cases", "sharded_equals_whole"]

RANKS = 2
SAMPLES = 4

MACHINES = (Machine(flops_per_second=1e3, latency=0.0), Machine(bytes_per_second=1e3))
"""One on which computing is dear, so that all work is split, and one on which sending is."""


class CollectiveCount(TorchDispatchMode):
    """Counts the collectives that are called within it, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a functional collective and call it."""
        namespace, _, name = str(func).partition(".")
        if namespace == "_c10d_functional" and not name.startswith("wait"):
            self.names.append(name.partition(".")[0])
        return func(*args, **(kwargs or {}))


def sharded_equals_whole(decomposition: Decomposition, structure: Structure) -> None:
    """Cut along any label, the value and all gradients are those of one process, by the collectives predicted.

    On two ranks of gloo, in float64, to 1e-10 of the largest entry. Each rank holds as many parameters as predicted.
    Networks with fixed nodes, which `shard` refuses, are left out.
    """
    for case in sharded_cases(decomposition, structure, RANKS):
        assert not case, case


def sharded_cases(decomposition: Decomposition, structure: Structure, ranks: int) -> list[str]:
    """What is wrong with each way to cut a tensor, an empty text where nothing is.

    Args:
        decomposition: The decomposition.
        structure: Its sizes.
        ranks: How many ranks.
    """
    torch.manual_seed(structure.seed)
    whole = FactorizedExpertTensor(
        structure.expert_dims,
        structure.in_features,
        structure.out_features,
        decomposition,
        structure.rank,
        bias=structure.bias,
        dtype=torch.float64,
    )
    if len(whole.network.learned_nodes) < len(whole.network.nodes):
        pytest.skip("a network with fixed nodes cannot be sharded")
    x = torch.randn(SAMPLES, structure.in_features, dtype=torch.float64, requires_grad=True)
    coefficients = [torch.rand(SAMPLES, n, dtype=torch.float64, requires_grad=True) for n in structure.expert_dims]
    weights = torch.randn(SAMPLES, structure.out_features, dtype=torch.float64)
    operands = [x, *coefficients]

    def work(rank: int) -> list[str]:
        return list(_compare(whole, operands, weights, ranks, rank))

    return [case for cases in on_ranks(ranks, work) for case in cases]


def _compare(
    whole: FactorizedExpertTensor, operands: list[Tensor], weights: Tensor, ranks: int, rank: int
) -> Iterator[str]:
    mesh = init_device_mesh("cpu", (ranks,))
    value, gradients = _differentiated(whole, operands, weights)
    for label in (*whole.network.sizes, "each", "auto"):
        for machine in MACHINES:
            mine = copy.deepcopy(whole)
            (choice,) = shard(mine, mesh, label, tokens=SAMPLES, machine=machine).choices
            with CollectiveCount() as forward:
                y = mine(operands[0], operands[1:])
            with CollectiveCount() as backward:
                found = torch.autograd.grad((y * weights).sum(), [*operands, *mine.parameters()], allow_unused=True)
            full = [g.full_tensor() if isinstance(g, DTensor) else g for g in found]
            error = max(map(_error, [y.detach(), *full], [value, *gradients]))
            wrong = [f"error {error:.1e}"] if not error < 1e-10 else []
            for counted, back in ((forward, False), (backward, True)):
                predicted = sorted(name for name, _ in choice.split.traffic(backward=back))
                called = sorted(name.removesuffix(s) for name in counted.names for s in [_suffix(name)])
                wrong += [f"called {called}, predicted {predicted}"] if called != predicted else []
            held = sum(p.to_local().numel() for p in mine.parameters() if isinstance(p, DTensor))
            if held != choice.split.parameters_of(rank):
                wrong.append(f"holds {held} parameters, predicted {choice.split.parameters_of(rank)}")
            yield f"rank {rank} of {ranks}, label {label!r}, {whole.network}: {'; '.join(wrong)}" if wrong else ""


def _suffix(name: str) -> str:
    """What torch's names of collectives have behind ours."""
    return next((s for s in ("_into_tensor", "_tensor", "_single") if name.endswith(s)), "")


def _differentiated(w: FactorizedExpertTensor, operands: list[Tensor], weights: Tensor) -> tuple[Tensor, Any]:
    y = w(operands[0], operands[1:])
    return y.detach(), torch.autograd.grad((y * weights).sum(), [*operands, *w.parameters()], allow_unused=True)


def _error(found: Tensor | None, expected: Tensor | None) -> float:
    if found is None or expected is None:
        other = found if expected is None else expected
        return 0.0 if other is None else float(other.abs().max())
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))
