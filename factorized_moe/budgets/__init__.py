"""Ranks from a budget of parameters, FLOPs or bytes, and what every decomposition gives for the same budget."""

from factorized_moe.budgets.budget import Budget, BudgetError, SizeLike
from factorized_moe.budgets.pricing import LayerCosts
from factorized_moe.budgets.ranks import rank_for_budget
from factorized_moe.budgets.table import BudgetRow, BudgetTable, compare_at_budget

__all__ = [
    "Budget",
    "BudgetError",
    "BudgetRow",
    "BudgetTable",
    "LayerCosts",
    "SizeLike",
    "compare_at_budget",
    "rank_for_budget",
]
