"""What a layer may cost, and the rank that makes the most of it, for any registered decomposition.

Legend: ``N_k`` experts of mode k, ``I`` in_features, ``O`` out_features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from factorized_moe._scalars import is_whole
from factorized_moe._validation import check_dtype, check_expert_dims, check_flag, check_size
from factorized_moe.budgets.pricing import LayerCosts
from factorized_moe.budgets.rank_search import RankForm, best_expert_rank
from factorized_moe.decompositions import Decomposition, get_decomposition, name_of
from factorized_moe.decompositions.base import Rank, RankLike, largest_within

__all__ = ["Budget", "BudgetError", "SizeLike"]

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


@dataclass(frozen=True)
class Budget:
    """A limit on parameters, FLOPs or bytes, given in place of a rank: the layer has the rank that makes most of it.

    The gate and the biases count unless told otherwise; of a `FactorizedExpertTensor` alone, which has no gate, its own
    parameters. Give one of the four budgets. No rank is ever over it, but with ``rounding="up"``.

    A rank of one int is the largest within the budget. Where a decomposition has a rank for each mode or bond,
    ``choice`` says how to share the budget among them:

    - ``"expert_rank"``: the largest bound on the rank of an expert's matrix (`expert_rank_bound`), among ranks that let
      ``independent_experts`` experts be linearly independent; then as many independent experts as possible; then
      the fewest parameters. The uniform choice is kept where its bound is as large.
    - ``"uniform"``: one int for all entries.

    Args:
        parameters: The most parameters.
        flops: The most FLOPs for one sample, as `LayerCosts.flops` counts them.
        bytes: The most bytes of parameters, of type ``dtype``.
        like: A module; at most as many parameters as it has (without its biases, if ``count_bias`` is false).
        count_gate: Whether the gate counts.
        count_bias: Whether the biases count.
        dtype: The parameters' type, for ``bytes``; torch's default type by default.
        choice: How to share the budget among the entries of a rank.
        independent_experts: With ``"expert_rank"``, how many experts must be able to be linearly independent: the
            square root of their number by default, or as many as the budget allows. With 1, all may be multiples of
            one matrix.
        fixed: A rank with ``None`` for the entries to be found: ``(4, 4, None, 4)`` for the paper's tensor rings.
        rounding: ``"down"``, or ``"up"`` for the smallest rank that costs at least the budget: what the uMoE paper's
            code does, and over budget by less than one rank's cost. For a rank with one entry to be found.

    Raises:
        TypeError: If no budget or several are given, or an argument is of the wrong type.
        ValueError: If an argument is out of range, or ``like`` has no parameters that count.

    Examples:
        >>> from factorized_moe import Budget, MuMoE
        >>> layer = MuMoE(768, 1000, [256], "cp", Budget(like=nn.Linear(768, 1000)), device="meta")
        >>> layer.experts.rank, sum(p.numel() for p in layer.parameters())
        (282, 767658)
    """

    parameters: int | None = None
    flops: int | None = None
    bytes: int | None = None
    like: nn.Module | None = None
    count_gate: bool = True
    count_bias: bool = True
    dtype: torch.dtype | None = None
    choice: str = "expert_rank"
    independent_experts: int | None = None
    fixed: Sequence[int | None] | None = None
    rounding: str = "down"

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise ValueError(f"choice is one of {CHOICES}, got {self.choice!r}")
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"rounding is one of {ROUNDINGS}, got {self.rounding!r}")
        if self.independent_experts is not None:
            check_size("independent_experts", self.independent_experts)
        check_flag("count_gate", self.count_gate)
        check_flag("count_bias", self.count_bias)
        check_dtype(self.dtype)
        name, value = self._given
        if name == "like":
            if not isinstance(value, nn.Module):
                kind = type(value).__name__
                raise TypeError(f"like is a module, for instance the nn.Linear to be replaced, got {kind}")
            if not any(_counts(name, self.count_bias) for name, _ in value.named_parameters()):
                which = "parameters" if self.count_bias else "parameters but biases, which count_bias=False leaves out"
                raise ValueError(f"like is a module without {which}: {type(value).__name__}; give what is replaced")
        elif not is_whole(value) or value < 1:
            raise ValueError(f"a budget of {name} is a positive int, got {value!r}")

    def rank(
        self,
        expert_dims: Sequence[int],
        linears: Sequence[tuple[int, int]],
        decomposition: str | Decomposition = "cp",
        *,
        bias: bool = True,
        input_norm: bool = False,
        gate_parameters: int | None = None,
        gate_rank: int | None = None,
    ) -> Rank:
        """The rank that the budget gives a layer, or all layers of a block, which share one gate.

        Args:
            expert_dims: The number of experts ``N_k`` of each expert mode.
            linears: ``(I, O)`` of each layer; the first one's ``I`` is the gate's.
            decomposition: A registered name or an instance.
            bias: Whether every expert has a bias.
            input_norm: Whether there is a LayerNorm of the input, whose ``2 I`` parameters count.
            gate_parameters: The number of parameters of a gate of your own; ``I sum(N_k)`` by default.
            gate_rank: The rank ``r`` of the gate's weight, which then has ``r (I + sum(N_k))`` parameters.

        Returns:
            The rank.

        Raises:
            TypeError: If an argument is of the wrong type.
            BudgetError: If the budget is too small for any rank; the message gives the smallest possible. A ValueError.
            ValueError: If an argument is out of range.

        Examples:
            >>> Budget(parameters=769_000).rank((256,), [(768, 1000)])
            282
            >>> mlp = nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768))
            >>> Budget(like=mlp, fixed=(4, 4, None, 4)).rank((256,), [(768, 3072), (3072, 768)], "tr")
            (4, 4, 147, 4)
        """
        costs = LayerCosts(
            check_expert_dims(expert_dims),
            tuple((check_size("in_features", i), check_size("out_features", o)) for i, o in linears),
            get_decomposition(decomposition),
            check_flag("bias", bias),
            self.count_gate,
            self.count_bias,
            check_flag("input_norm", input_norm),
            gate_parameters,
            None if gate_rank is None else check_size("gate_rank", gate_rank),
        )
        measure, limit = self._measure(costs)
        form = RankForm.of(costs, self.fixed)

        def cost(size: int) -> int:
            return measure(form.uniform(size))

        if cost(1) > limit:
            unit = {"bytes": "bytes", "flops": "FLOPs a sample"}.get(self._given[0], "parameters")
            what = f"{name_of(costs.decomposition)!r} of shapes {costs.shapes()}"
            raise BudgetError(f"{limit:,} {unit}", what, cost(1))
        size = largest_within(cost, limit)
        if self.rounding == "up":
            if form.free > 1 and self.choice != "uniform":
                raise ValueError(
                    "rounding='up' is for a rank with one entry to be found; give fixed or choice='uniform'"
                )
            return form.uniform(size if cost(size) == limit else size + 1)
        if self.choice == "uniform" or form.free == 1:
            return form.uniform(size)
        return best_expert_rank(costs, form, measure, limit, form.uniform(size), self.independent_experts)

    @property
    def _given(self) -> tuple[str, object]:
        """The one budget that is given, by name."""
        units = {"parameters": self.parameters, "flops": self.flops, "bytes": self.bytes, "like": self.like}
        named = [(name, value) for name, value in units.items() if value is not None]
        if len(named) != 1:
            names = [name for name, _ in named]
            raise TypeError(f"give one budget: parameters, flops, bytes or like; got {names or 'none'}")
        return named[0]

    def _measure(self, costs: LayerCosts) -> tuple[Callable[[Rank], int], int]:
        """What a rank costs, in the budget's unit, and the budget."""
        if self.like is not None:
            return costs.parameters, _parameters_of(self.like, self.count_bias)
        if self.flops is not None:
            return costs.flops, int(self.flops)
        if self.bytes is not None:
            size = (self.dtype or torch.get_default_dtype()).itemsize
            return (lambda rank: size * costs.parameters(rank)), int(self.bytes)
        assert self.parameters is not None  # one is given
        return costs.parameters, int(self.parameters)


SizeLike = RankLike | Budget
"""What may be given for a rank: a rank, or a budget that it follows from."""


def _parameters_of(module: nn.Module, count_bias: bool) -> int:
    named = dict(module.named_parameters())
    if any(is_lazy(p) for p in named.values()):
        raise ValueError("like has parameters without a size yet; call the module once, so that it makes them")
    return sum(p.numel() for name, p in named.items() if _counts(name, count_bias))


def _counts(name: str, count_bias: bool) -> bool:
    """Whether a parameter counts; biases are also those of torch's attention and recurrent layers."""
    own = name.rpartition(".")[2]  # in_proj_bias, bias_ih_l0
    return count_bias or not (own.endswith("bias") or own.startswith("bias_"))
