"""From a budget to a rank, for any registered decomposition.

Legend: ``N_k`` experts of mode k, ``I`` in_features, ``H`` hidden_features, ``O`` out_features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from factorized_moe.budgets.pricing import LayerCosts
from factorized_moe.budgets.rank_search import RankForm, best_expert_rank
from factorized_moe.decompositions import Decomposition, get_decomposition, name_of
from factorized_moe.decompositions.base import Rank, largest_within
from factorized_moe.validation import check_dtype, check_expert_dims, check_flag, check_size

__all__ = ["BudgetError", "rank_for_budget"]

CHOICES = ("expert_rank", "uniform")
ROUNDINGS = ("down", "up")


class BudgetError(ValueError):
    """A budget is too small for any rank.

    Args:
        budget: The budget, with its unit.
        what: The decomposition and the shapes.
        smallest: The smallest budget that is enough for a rank.
    """

    def __init__(self, budget: str, what: str, smallest: int) -> None:
        super().__init__(f"a budget of {budget} is too small for {what}: the smallest possible is {smallest:,}")
        self.smallest = smallest


def rank_for_budget(
    expert_dims: Sequence[int],
    in_features: int,
    out_features: int,
    decomposition: str | Decomposition = "cp",
    *,
    parameters: int | None = None,
    flops: int | None = None,
    bytes: int | None = None,  # noqa: A002  # beside `parameters` and `flops`
    like: nn.Module | None = None,
    hidden_features: int | None = None,
    bias: bool = True,
    count_gate: bool = True,
    count_bias: bool = True,
    input_norm: bool = False,
    dtype: torch.dtype | None = None,
    choice: str = "expert_rank",
    independent_experts: int | None = None,
    fixed: Sequence[int | None] | None = None,
    rounding: str = "down",
) -> Rank:
    """The rank that makes the most of a budget, and never exceeds it. Give one of the four budgets.

    A rank of one int is the largest within the budget. Where a decomposition has a rank for each mode or bond,
    ``choice`` says how to share the budget among them:

    - ``"expert_rank"``: the largest bound on the rank of an expert's matrix (`expert_rank_bound`), among ranks that let
      ``independent_experts`` experts be linearly independent; then as many independent experts as possible; then
      the fewest parameters. The uniform choice is kept where its bound is as large.
    - ``"uniform"``: one int for all entries, as a ``ParameterBudget``.

    Args:
        expert_dims: The number of experts ``N_k`` of each expert mode.
        in_features: ``I``.
        out_features: ``O``.
        decomposition: A registered name or an instance.
        parameters: The most parameters.
        flops: The most FLOPs for one sample, as `LayerCosts.flops` counts them.
        bytes: The most bytes of parameters, of type ``dtype``.
        like: A module; at most as many parameters as it has (without its biases, if ``count_bias`` is false).
        hidden_features: ``H``, for the rank of both layers of a `MuMoEBlock`; both layers and the one gate count.
        bias: Whether every expert has a bias.
        count_gate: Whether the gate counts.
        count_bias: Whether the biases count.
        input_norm: Whether there is a LayerNorm of the input, whose ``2 I`` parameters count.
        dtype: The parameters' type, for ``bytes``; torch's default type by default.
        choice: How to share the budget among the entries of a rank.
        independent_experts: With ``"expert_rank"``, how many experts must be able to be linearly independent: the
            square root of their number by default, or as many as the budget allows. With 1, all may be multiples of
            one matrix.
        fixed: A rank with ``None`` for the entries to be found: ``(4, 4, None, 4)`` for the paper's tensor rings.
        rounding: ``"down"``, or ``"up"`` for the smallest rank that costs at least the budget: what the uMoE paper's
            code does, and over budget by less than one rank's cost. For a rank with one entry to be found.

    Returns:
        The rank, to be given to a layer.

    Raises:
        TypeError: If no budget or several are given, or an argument is of the wrong type.
        BudgetError: If the budget is too small for any rank; the message gives the smallest possible. A ValueError.
        ValueError: If an argument is out of range.

    Examples:
        >>> rank_for_budget((256,), 768, 1000, "cp", like=nn.Linear(768, 1000))
        282
        >>> rank_for_budget((256,), 768, 1000, "cp", parameters=769_000, rounding="up")  # the paper's
        283
        >>> mlp = nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768))
        >>> rank_for_budget((256,), 768, 768, "tr", like=mlp, hidden_features=3072, fixed=(4, 4, None, 4))
        (4, 4, 147, 4)
        >>> rank_for_budget((64,), 768, 768, "tt", parameters=3_000_000)
        (1, 8, 426, 1)
    """
    if choice not in CHOICES:
        raise ValueError(f"choice is one of {CHOICES}, got {choice!r}")
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding is one of {ROUNDINGS}, got {rounding!r}")
    wanted = None if independent_experts is None else check_size("independent_experts", independent_experts)
    costs = LayerCosts(
        check_expert_dims(expert_dims),
        _features(in_features, hidden_features, out_features),
        get_decomposition(decomposition),
        check_flag("bias", bias),
        check_flag("count_gate", count_gate),
        check_flag("count_bias", count_bias),
        check_flag("input_norm", input_norm),
    )
    measure, limit = _budget(costs, parameters, flops, bytes, like, dtype)
    form = RankForm.of(costs, fixed)

    def cost(size: int) -> int:
        return measure(form.uniform(size))

    if cost(1) > limit:
        unit = "bytes" if bytes is not None else "parameters" if flops is None else "FLOPs a sample"
        what = f"{name_of(costs.decomposition)!r} of shapes {costs.shapes()}"
        raise BudgetError(f"{limit:,} {unit}", what, cost(1))
    size = largest_within(cost, limit)
    if rounding == "up":
        if form.free > 1 and choice != "uniform":
            raise ValueError("rounding='up' is for a rank with one entry to be found; give fixed or choice='uniform'")
        return form.uniform(size if cost(size) == limit else size + 1)
    if choice == "uniform" or form.free == 1:
        return form.uniform(size)
    return best_expert_rank(costs, form, measure, limit, form.uniform(size), wanted)


def _features(in_features: int, hidden_features: int | None, out_features: int) -> tuple[int, ...]:
    first, last = check_size("in_features", in_features), check_size("out_features", out_features)
    return (first, last) if hidden_features is None else (first, check_size("hidden_features", hidden_features), last)


def _budget(
    costs: LayerCosts,
    parameters: int | None,
    flops: int | None,
    num_bytes: int | None,
    like: nn.Module | None,
    dtype: torch.dtype | None,
) -> tuple[Callable[[Rank], int], int]:
    """What a rank costs, in the budget's unit, and the budget."""
    given = {"parameters": parameters, "flops": flops, "bytes": num_bytes, "like": like}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise TypeError(f"give one budget: parameters, flops, bytes or like; got {named or 'none'}")
    check_dtype(dtype)
    if isinstance(like, nn.Module):
        return costs.parameters, _parameters_of(like, costs.count_bias)
    if like is not None:
        raise TypeError(f"like is a module, for instance the nn.Linear to be replaced, got {type(like).__name__}")
    number = given[named[0]]
    if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
        raise ValueError(f"a budget of {named[0]} is a positive int, got {number!r}")
    if num_bytes is not None:
        size = (dtype or torch.get_default_dtype()).itemsize
        return (lambda rank: size * costs.parameters(rank)), int(number)
    return (costs.parameters if flops is None else costs.flops), int(number)


def _parameters_of(module: nn.Module, count_bias: bool) -> int:
    named = dict(module.named_parameters())
    if any(is_lazy(p) for p in named.values()):
        raise ValueError("like has parameters without a size yet; call the module once, so that it makes them")
    return sum(p.numel() for name, p in named.items() if count_bias or not _is_bias(name.rpartition(".")[2]))


def _is_bias(name: str) -> bool:
    """Also of torch's attention (``in_proj_bias``) and recurrent layers (``bias_ih_l0``)."""
    return name.endswith("bias") or name.startswith("bias_")
