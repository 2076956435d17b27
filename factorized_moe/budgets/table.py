"""What every decomposition gives for the same budget, as a table and as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from factorized_moe.budgets.costs import LayerCosts
from factorized_moe.budgets.ranks import rank_for_budget
from factorized_moe.decompositions import available_decompositions, get_decomposition
from factorized_moe.decompositions.base import Rank

__all__ = ["BudgetRow", "BudgetTable", "compare_at_budget"]


@dataclass(frozen=True)
class BudgetRow:
    """One decomposition at a budget.

    Attributes:
        decomposition: Its name.
        rank: The rank that the budget gives.
        parameters: Parameters, gate and biases counted as asked.
        flops: FLOPs for one sample.
        expert_rank_bound: The bound on the rank of each expert's matrix.
        independent_experts: The bound on the number of linearly independent experts.
        largest_intermediate: Elements of the largest intermediate value for one sample.
    """

    decomposition: str
    rank: Rank
    parameters: int
    flops: int
    expert_rank_bound: int
    independent_experts: int
    largest_intermediate: int


@dataclass(frozen=True)
class BudgetTable(Sequence[BudgetRow]):
    """Rows, one for each decomposition that the budget is enough for; its ``repr`` is a table.

    Attributes:
        rows: The rows, in the order of names.
        left_out: For each other decomposition, why it has no row.
    """

    rows: tuple[BudgetRow, ...]
    left_out: tuple[tuple[str, str], ...] = ()

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[BudgetRow]:
        return iter(self.rows)

    def as_dicts(self) -> list[dict[str, Any]]:
        """The rows as dictionaries, for instance for ``pandas.DataFrame``."""
        return [asdict(row) for row in self.rows]


def compare_at_budget(
    expert_dims: Sequence[int],
    in_features: int,
    out_features: int,
    *,
    decompositions: Sequence[str] | None = None,
    **budget: Any,
) -> BudgetTable:
    """Ranks and costs of decompositions for the same budget.

    Args:
        expert_dims: The number of experts of each expert mode.
        in_features: ``I``.
        out_features: ``O``.
        decompositions: Names; all registered ones by default.
        budget: The budget and how it is counted, as for `rank_for_budget`.

    Returns:
        The table.
    """
    rows, left_out = [], []
    for name in available_decompositions() if decompositions is None else decompositions:
        try:
            rank = rank_for_budget(expert_dims, in_features, out_features, name, **budget)
        except ValueError as error:
            if "too small" not in str(error):
                raise
            left_out.append((name, str(error)))
            continue
        hidden = budget.get("hidden_features")
        features = (in_features, out_features) if hidden is None else (in_features, hidden, out_features)
        counted = {key: budget[key] for key in ("bias", "count_gate", "count_bias") if key in budget}
        costs = LayerCosts(tuple(expert_dims), features, get_decomposition(name), **counted)
        rows.append(
            BudgetRow(
                name,
                rank,
                costs.parameters(rank),
                costs.flops(rank),
                costs.expert_rank_bound(rank),
                costs.independent_experts(rank),
                costs.largest_intermediate(rank),
            )
        )
    return BudgetTable(tuple(rows), tuple(left_out))
