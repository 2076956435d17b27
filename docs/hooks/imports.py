"""MkDocs hook: draws the order of imports where a page says `<!-- the order of imports -->`.

The order is read from `tests/test_architecture.py`, which holds the package to it.
"""

import ast
from pathlib import Path
from typing import Any

MARK = "<!-- the order of imports -->"
TEST = Path(__file__).parents[2] / "tests" / "test_architecture.py"


def import_order() -> tuple[tuple[str, ...], ...]:
    """The top-level modules, lowest row first."""
    for statement in ast.parse(TEST.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "ORDER":
            order: tuple[tuple[str, ...], ...] = ast.literal_eval(statement.value)
            return order
    raise ValueError(f"{TEST.name} does not set ORDER")


def diagram() -> str:
    """Rows of modules, what users call on top; an arrow between rows."""
    rows = ["".join(f"<code>{name}</code>" for name in names) for names in reversed(import_order())]
    cells = "<span>↓</span>".join(f"<div>{row}</div>" for row in rows)
    return f'<div class="imports" role="img" aria-label="The order of imports, highest row first">{cells}</div>'


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the diagram where it is asked for."""
    return markdown.replace(MARK, diagram())
