"""Every built-in decomposition has its page, its row in the overview, and numbers that the code gives."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from factorized_moe.decompositions import get_decomposition
from factorized_moe.decompositions.registry import registered_decompositions

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "decompositions"
INDEX = (PAGES / "index.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| \[`(\w+)`\]\((\w+\.md)\) \| (.*?) \|", re.MULTILINE)
BUILT_IN = [
    name
    for name in registered_decompositions()
    if type(get_decomposition(name)).__module__.startswith("factorized_moe.decompositions.")
]


def test_every_decomposition_has_a_row_a_page_and_a_place_in_the_menu() -> None:
    pages = {name: page for name, page, _ in ROW.findall(INDEX)}
    assert sorted(pages) == sorted(BUILT_IN)
    assert {path.name for path in PAGES.glob("*.md")} == {*pages.values(), "index.md"}
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (*pages.values(), "index.md"):
        assert f"decompositions/{page}" in menu


@pytest.mark.parametrize(("name", "aliases"), [(name, aliases) for name, _, aliases in ROW.findall(INDEX)])
def test_aliases_are_right(name: str, aliases: str) -> None:
    for alias in re.findall(r"`(\w+)`", aliases):
        assert get_decomposition(alias) is get_decomposition(name)


@pytest.mark.parametrize("page", [page for _, page, _ in ROW.findall(INDEX)])
def test_every_page_says_what_when_and_what_it_costs(page: str) -> None:
    text = (PAGES / page).read_text(encoding="utf-8")
    for part in ("\n$$\nW_{n", "## When to use it", "## What it costs", "The rank", "## Example\n\n```python\n"):
        assert part in text or (page == "dense.md" and part == "The rank")


@pytest.mark.thorough
def test_the_table_is_what_the_code_prints(page_code: Callable[[str], str], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", page_code(INDEX)]
    printed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    table = re.search(r"\n\| name \| rank \|.*\n\|---.*\n((?:\|.*\n)+)", INDEX)
    assert table is not None
    assert table[1] == printed
