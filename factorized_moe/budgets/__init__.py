"""Ranks from a budget of parameters, FLOPs or bytes, and what every decomposition gives for the same budget."""

from factorized_moe.budgets.pricing import LayerCosts
from factorized_moe.budgets.ranks import BudgetError, rank_for_budget
from factorized_moe.budgets.table import BudgetRow, BudgetTable, compare_at_budget

__all__ = ["BudgetError", "BudgetRow", "BudgetTable", "LayerCosts", "compare_at_budget", "rank_for_budget"]
