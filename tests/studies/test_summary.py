"""The page of all claims: it takes its sentences from the studies' pages, and misses none."""

from pathlib import Path

import pytest

from studies.summary.rows import ROWS
from studies.summary.run import DOCS, answers, main, page, shortened, verdict


def test_the_page_in_the_docs_is_the_one_that_the_studies_pages_give() -> None:
    texts = {row.page: (DOCS / row.page).read_text(encoding="utf-8") for row in ROWS}
    assert (DOCS / "index.md").read_text(encoding="utf-8") == page(texts)


def test_a_sentence_that_is_gone_is_an_error(tmp_path: Path) -> None:
    for row in ROWS:
        (tmp_path / row.page).write_text((DOCS / row.page).read_text(encoding="utf-8"), encoding="utf-8")
    main(["--out", str(tmp_path)])
    assert (tmp_path / "index.md").exists()
    gone = ROWS[0].page
    (tmp_path / gone).write_text("# A page without sentences\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"{gone} has no line that begins with"):
        main(["--out", str(tmp_path)])


def test_figures_are_there() -> None:
    assert all((DOCS / row.figure).exists() for row in ROWS if row.figure)


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        (["**A: reproduced.**"], "reproduced"),
        (["**A: not reproduced.**", "B: **not reproduced**"], "not reproduced"),
        (["**A: reproduced.**", "**B: not reproduced**"], "in part"),
        (["**A: reproduced in part.**"], "in part"),
        (["**A: one seed cannot tell.**"], "cannot tell"),
        (["**A: not told apart.**"], "cannot tell"),
        (["**A: reproduced.**", "**B: not told apart.**"], "in part"),
        (["**A: not reproduced for CP, not told apart for tensor ring.**"], "not reproduced or cannot tell"),
    ],
)
def test_one_word_for_several_lines(lines: list[str], word: str) -> None:
    assert verdict(lines) == word


def test_lines_without_a_verdict_are_refused() -> None:
    with pytest.raises(ValueError, match="no verdict"):
        verdict(["**A**: 2 of 3."])


def test_lines_of_each_row() -> None:
    row = next(row for row in ROWS if row.page == "low-rank.md")
    assert answers(row, "x\n**Reproduced on a small Mixer**: by 2.\n") == ["**Reproduced on a small Mixer**: by 2."]


def test_long_answers_end_where_a_sentence_or_a_clause_does() -> None:
    assert shortened("**A: reproduced.** By 2; n 3.", 40) == "**A: reproduced.** By 2; n 3."
    long = "**A: reproduced.** By 2 (n 3; one. Two); and so on. " + "x" * 60
    assert shortened(long, 60) == "**A: reproduced.** By 2 (n 3; one. Two); and so on …"
    assert shortened("y" * 60 + ". More.", 60) == "y" * 60 + " …"  # a first sentence is whole, however long


def test_a_reviewer_reads_the_page_in_minutes() -> None:
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    assert len(ROWS) == 8
    assert len(text.split()) < 1300
