"""The comparison of decompositions at a budget: rows, what is left out, the text and the plot."""

import pytest

from factorized_moe import MuMoE
from factorized_moe.budgets import compare_at_budget
from factorized_moe.decompositions import available_decompositions


def test_rows_are_what_layers_cost() -> None:
    table = compare_at_budget((6,), 12, 10, parameters=700)
    left_out = dict(table.left_out)
    assert sorted([*left_out, *(row.decomposition for row in table)]) == list(available_decompositions())
    assert left_out["dense"] == 6 * 13 * 10 + 6 * 12
    for row, fields in zip(table, table.as_dicts(), strict=True):
        layer = MuMoE(12, 10, (6,), row.decomposition, row.rank)
        assert sum(parameter.numel() for parameter in layer.parameters()) == row.parameters <= 700
        assert row.expert_rank_bound == layer.experts.expert_rank_bound
        assert fields["rank"] == row.rank
    assert len(repr(table).splitlines()) == 1 + len(available_decompositions())
    assert table[0].decomposition in repr(table)


def test_plot_names_every_row() -> None:
    pytest.importorskip("matplotlib")
    table = compare_at_budget((6,), 12, 10, parameters=900, decompositions=["cp", "tucker", "tt"])
    axes = table.plot()
    assert table.plot(axes) is axes
    assert [bar.get_width() for bar in axes.patches[:3]] == [row.expert_rank_bound for row in table]
    written = [text.get_text() for text in axes.texts[:3]]
    assert written == [f"{row.independent_experts} independent" for row in table]


def test_other_errors_are_raised() -> None:
    with pytest.raises(ValueError, match="choice is one of"):
        compare_at_budget((6,), 12, 10, parameters=900, choice="best")


def test_one_name_is_no_sequence_of_names() -> None:
    with pytest.raises(TypeError, match=r"decompositions is a sequence of names, got 'cp'; write \['cp'\]"):
        compare_at_budget((6,), 12, 10, parameters=900, decompositions="cp")
