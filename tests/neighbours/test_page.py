"""The page of neighbours: every line has a test, and every test it names is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "neighbours.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
ROW = re.compile(r"^\| (?!tool \|)(?!-)(?P<cells>.*) \|$", re.MULTILINE)


def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_named_test_exists() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) > 15
    missing = [f"{path}::{name}" for path, name in named if not (ROOT / path).is_file() or name not in names_in(path)]
    assert missing == []


def test_every_line_names_a_test() -> None:
    rows = [row["cells"] for row in ROW.finditer(PAGE) if not row["cells"].startswith("--")]
    assert len(rows) > 15
    assert [row for row in rows if len(NAMED.findall(row)) != 1] == []


def test_every_test_of_a_tool_is_on_the_page() -> None:
    """A tool that is tried here and not said to a user would be work for nobody."""
    named = {name for _, name in NAMED.findall(PAGE)}
    for path in sorted((ROOT / "tests" / "neighbours").glob("test_*.py")):
        if path.name != Path(__file__).name:
            tests = {name for name in names_in(str(path.relative_to(ROOT))) if name.startswith("test_")}
            assert tests <= named, path.name
