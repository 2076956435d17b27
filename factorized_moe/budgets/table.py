"""What every decomposition gives for the same budget, as a table and as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from factorized_moe._text_tables import text_table
from factorized_moe.budgets.budget import BudgetError
from factorized_moe.budgets.pricing import LayerCosts
from factorized_moe.budgets.ranks import linears_of, rank_for_budget
from factorized_moe.decompositions import available_decompositions, get_decomposition
from factorized_moe.decompositions.base import Rank

__all__ = ["BudgetRow", "BudgetTable", "compare_at_budget"]


@dataclass(frozen=True)
class BudgetRow:
    """The rank and the costs of one decomposition at a budget.

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


@dataclass(frozen=True, repr=False)
class BudgetTable(Sequence[BudgetRow]):
    """Rows, one for each decomposition that the budget is enough for; its ``repr`` is a table.

    Attributes:
        rows: The rows, in the order of names.
        left_out: For each other decomposition, the smallest budget that is enough for it.
    """

    rows: tuple[BudgetRow, ...]
    left_out: tuple[tuple[str, int], ...] = ()

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[BudgetRow]:
        return iter(self.rows)

    def as_dicts(self) -> list[dict[str, Any]]:
        """The rows as dictionaries, for instance for ``pandas.DataFrame``."""
        return [asdict(row) for row in self.rows]

    def __repr__(self) -> str:
        table = [_HEADINGS] + [tuple(_word(value) for value in asdict(row).values()) for row in self.rows]
        lines = [text_table(table)]
        lines += [f"{name}: needs a budget of {smallest:,}" for name, smallest in self.left_out]
        return "\n".join(lines)

    def plot(self, axes: Any = None) -> Any:
        """Draw each decomposition's bound on an expert's rank as a bar, labelled with that on independent experts.

        Args:
            axes: matplotlib axes to draw on; those of a new figure by default.

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        if axes is None:
            try:
                from matplotlib.figure import Figure
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError("plot needs matplotlib: pip install 'factorized-moe[plots]'") from error
            axes = Figure(figsize=(7.0, 4.0), layout="constrained").subplots()
        names = [row.decomposition for row in self.rows]
        bars = axes.barh(names, [row.expert_rank_bound for row in self.rows])
        axes.bar_label(bars, [f"{row.independent_experts:,} independent" for row in self.rows], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.27)
        axes.set_xlabel("bound on the rank of an expert's matrix")
        return axes


_HEADINGS = ("decomposition", "rank", "parameters", "FLOPs", "expert rank", "independent experts", "intermediate")


def _word(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


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
        in_features: The number of input features, ``I``.
        out_features: The number of output features, ``O``.
        decompositions: Names; all registered ones by default.
        budget: The budget and how it is counted, as for `rank_for_budget`.

    Returns:
        The table.

    Raises:
        TypeError: As `rank_for_budget` does.
        ValueError: The same, but for budgets that are too small: those decompositions are left out.

    Examples:
        >>> compare_at_budget((16,), 32, 24, parameters=4000, decompositions=["cp", "tt", "dense"])
        decomposition  rank           parameters  FLOPs  expert rank  independent experts  intermediate
        cp             47                  3,943  7,933           24                   16            47
        tt             (1, 4, 21, 1)       3,852  7,872           21                    4            84
        dense: needs a budget of 13,184
    """
    if isinstance(decompositions, str):
        raise TypeError(f"decompositions is a sequence of names, got {decompositions!r}; write [{decompositions!r}]")
    rows, left_out = [], []
    for name in available_decompositions() if decompositions is None else decompositions:
        try:
            rank = rank_for_budget(expert_dims, in_features, out_features, name, **budget)
        except BudgetError as error:
            left_out.append((name, error.smallest))
            continue
        linears = linears_of(in_features, budget.get("hidden_features"), out_features)
        names = "bias", "count_gate", "count_bias", "gate_rank"
        counted: dict[str, Any] = {key: budget[key] for key in names if key in budget}
        counted["count_input_norm"] = budget.get("input_norm", False)
        costs = LayerCosts(tuple(expert_dims), linears, get_decomposition(name), **counted)
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
