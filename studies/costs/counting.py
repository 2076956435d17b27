"""What this library counts: parameters of modules on the meta device, FLOPs of plans, ranks of experts.

Legend: ``N`` experts, ``I`` in_features, ``O`` out_features, ``R`` ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch

from factorized_moe import Budget, FactorizedExpertTensor, MuMoE, MuMoEBlock
from factorized_moe.budgets import LayerCosts
from factorized_moe.contraction import dense_request, make_plan
from factorized_moe.decompositions import get_decomposition
from studies.costs.formulas import FORMULAS, value
from studies.costs.models import BUDGET, HEAD, MODELS, REFERENCE, RING, Mlp, Model

__all__ = ["at_one_rank", "contraction", "forms", "heads", "measured_rank", "models", "parameters_of"]

Rank = int | tuple[int, ...]
Linears = Sequence[tuple[int, int]]
FACTORISED = ("cp", "tucker", "tt", "tr")


def parameters_of(experts: Sequence[int], linears: Linears, decomposition: str, rank: Rank) -> int:
    """The parameters of a layer, or of a block of two, with its gate: of the module itself, on the meta device.

    Args:
        experts: The sizes of the expert modes.
        linears: ``(I, O)`` of each layer.
        decomposition: A registered name.
        rank: The rank.
    """
    (inputs, middle), *others = linears
    module: Any
    if others:
        module = MuMoEBlock(inputs, middle, others[0][1], experts, decomposition, rank, device="meta")
    else:
        module = MuMoE(inputs, middle, experts, decomposition, rank, device="meta")
    return sum(parameter.numel() for parameter in module.parameters())


def forms(n: int) -> list[dict[str, Any]]:
    """Each form of the head at one number of experts: its costs as the library counts them, and by the formulas.

    Args:
        n: ``N``.
    """
    rows = []
    for name in ("dense", "sparse", *FACTORISED):
        known = name if name != "sparse" else "dense"
        rank = None if known == "dense" else _head_rank((n,), name)
        costs = LayerCosts((n,), (HEAD,), get_decomposition(known), count_gate=False)
        formula = FORMULAS[name]
        sizes = formula.sizes(n, HEAD[0] + 1, HEAD[1], _entries(rank))
        rows.append(
            {
                "form": name,
                "rank": rank,
                "rounding": None if rank is None else _rounding(name),
                "parameters": costs.parameters(_known(rank)),
                # no plan chooses experts: the count of a sparse mixture is the formula's
                "flops": None if name == "sparse" else costs.flops(_known(rank)),
                "max_rank": min(costs.expert_rank_bound(_known(rank)), *HEAD),  # of the matrix without its bias row
                "formula": {
                    "parameters": value(formula.parameters, sizes),
                    "flops": value(formula.flops, sizes),
                    "max_rank": min(*(value(bound, sizes) for bound in formula.max_rank), *HEAD),
                },
            }
        )
    return rows


def heads(grids: Sequence[tuple[int, ...]], measured: bool) -> list[dict[str, Any]]:
    """The head at equal parameters, CP and rings: by the released rule, which rounds up, and at most the budget.

    Args:
        grids: The sizes of the expert modes.
        measured: Whether the rank of an expert with random values is found too.
    """
    rows = []
    for grid, name, rounding in product(grids, ("cp", "tr"), ("up", "down")):
        rank = _head_rank(grid, name, rounding)
        costs = LayerCosts(grid, (HEAD,), get_decomposition(name))
        rows.append(
            {
                "experts": grid,
                "form": name,
                "rounding": rounding,
                "rank": rank,
                "parameters": parameters_of(grid, (HEAD,), name, rank),
                "gate": HEAD[0] * sum(grid),
                "flops": costs.flops(rank),
                "max_rank": costs.expert_rank_bound(rank),
                "independent": costs.independent_experts(rank),
                "measured_rank": measured_rank(grid, name, rank) if rounding == "up" and measured else None,
            }
        )
    return rows


def models() -> list[dict[str, Any]]:
    """The parameters and the FLOPs of whole models with MLPs, with dense experts, and with each decomposition."""
    return [row for model in MODELS for row in _rows_of(model)]


def _rows_of(model: Model) -> list[dict[str, Any]]:
    dense = sum(mlp.parameters * mlp.count for mlp in model.mlps)
    single = {
        "form": "mlp",
        "mlps": dense,
        "model": model.rest + dense,
        "flops": [2 * i * h + 2 * h * o for i, h, o in (mlp.sizes for mlp in model.mlps)],
    }
    rows = [{"model_name": model.name, "ranks": [], **single}]
    for name, rule in [
        ("dense", "formula"),
        *((d, "script") for d in ("cp", "tr")),
        *((d, "ours") for d in FACTORISED),
    ]:
        ranks = [_block_rank(model, mlp, name, rule) for mlp in model.mlps]
        total, flops = 0, []
        for mlp, rank in zip(model.mlps, ranks, strict=True):
            total += mlp.count * parameters_of((model.experts,), mlp.linears, name, _known(rank))
            costs = LayerCosts((model.experts,), mlp.linears, get_decomposition(name))
            flops.append(costs.flops(_known(rank)))
        whole = model.rest + model.norms + total
        row = {"form": name, "rule": rule, "ranks": ranks, "mlps": total, "model": whole, "flops": flops}
        rows.append({"model_name": model.name, **row})
    return rows


def _block_rank(model: Model, mlp: Mlp, name: str, rule: str) -> Rank | None:
    """The rank of a block: the released script's, or the library's for at most the parameters of the MLP."""
    if name == "dense":
        return None
    if rule == "script":
        return mlp.ranks[name]
    # what the normalisation of the block's input takes is not there for the experts
    own = mlp.parameters - model.norms // mlp.count
    fixed = (RING, RING, None, RING) if name == "tr" else None
    return Budget(parameters=own, fixed=fixed).rank((model.experts,), mlp.linears, name)


def _rounding(name: str) -> str:
    """The released rule rounds up; ranks of several free entries, for which it has none, are at most the budget's."""
    return "down" if name in ("tucker", "tt") else "up"


def _head_rank(grid: tuple[int, ...], name: str, rounding: str | None = None) -> Rank:
    """The head's rank: rings have small bonds but one."""
    fixed = (*(RING,) * (len(grid) + 1), None, RING) if name == "tr" else None
    return Budget(parameters=BUDGET, fixed=fixed, rounding=rounding or _rounding(name)).rank(grid, (HEAD,), name)


def _known(rank: Rank | None) -> Rank:
    return 1 if rank is None else rank  # the dense form has no rank: any number is taken


def _entries(rank: Rank | None) -> tuple[int, ...]:
    return () if rank is None else (rank,) if isinstance(rank, int) else tuple(rank)


def contraction(n: int, size: int, rank: int) -> list[dict[str, Any]]:
    """FLOPs of one output: the dense tensor built first, by hand and by the library's best order, and fast.

    Args:
        n: ``N``.
        size: ``I`` and ``O``.
        rank: CP's, and the free bond of the ring.
    """
    rows = []
    unfactorised = FactorizedExpertTensor((n,), size, size, "dense", 1, bias=True, device="meta").plan(1).flops
    for name, entries in (("cp", (rank,)), ("tr", (RING, RING, rank, RING))):
        given: Rank = entries[0] if len(entries) == 1 else entries
        w = FactorizedExpertTensor((n,), size, size, name, given, bias=True, device="meta")
        formula = FORMULAS[name]
        sizes = formula.sizes(n, size + 1, size, entries)
        gate = 2 * n * size
        rows.append(
            {
                "form": name,
                "rank": given,
                "dense_first": value(formula.built, sizes),
                "best": make_plan(w.network, dense_request(w.network), batch_size=1).flops + unfactorised,
                "fast": w.plan(1).flops + gate,
                "gate": gate,
                "formula": value(formula.flops, sizes) + gate,
            }
        )
    return rows


@torch.no_grad()
def measured_rank(grid: tuple[int, ...], decomposition: str, rank: Rank) -> int:
    """The rank of one expert's matrix in a head with values drawn at random, found by its singular values.

    Args:
        grid: The sizes of the expert modes.
        decomposition: A registered name.
        rank: The rank.
    """
    torch.manual_seed(0)
    w = FactorizedExpertTensor(grid, *HEAD, decomposition, rank, bias=True, dtype=torch.float64)
    return int(torch.linalg.matrix_rank(w.expert(*(0,) * len(grid))[:-1]))


def at_one_rank(numbers: Sequence[int]) -> list[dict[str, int]]:
    """The head's parameters against ``N`` if CP and ring keep the ranks that they have with `REFERENCE` experts.

    Args:
        numbers: The numbers of experts.
    """
    ranks = {name: _head_rank((REFERENCE,), name) for name in ("cp", "tr")}
    return [
        {"experts": n, "dense": parameters_of((n,), (HEAD,), "dense", 1)}
        | {name: parameters_of((n,), (HEAD,), name, rank) for name, rank in ranks.items()}
        for n in numbers
    ]
