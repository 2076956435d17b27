"""What the documentation says is true: its code runs, and its API reference leaves no public name out."""

import importlib
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import factorized_moe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
API_PAGES = sorted((ROOT / "docs" / "api").rglob("*.md"))

FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE
)
DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced Python block of a page, with the line its code starts on."""

    code: str
    line: int


def python_blocks(text: str) -> list[Block]:
    """The blocks of a page marked `python` or `py`, in order, those inside lists and notes included."""
    return [
        Block(textwrap.dedent(match["code"]), text.count("\n", 0, match.start("code")) + 1)
        for match in FENCE.finditer(text)
        if match["language"] in {"python", "py"}
    ]


def run_blocks(text: str, name: str) -> None:
    """Run a page's blocks in one namespace; a traceback shows the page and the line in it."""
    namespace = {"__name__": "__main__"}
    for block in python_blocks(text):
        padded = "\n" * (block.line - 1) + block.code
        exec(compile(padded, name, "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_on_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(page.read_text(encoding="utf-8"), str(page))


def test_readme_has_code() -> None:
    assert python_blocks((ROOT / "README.md").read_text(encoding="utf-8"))


def test_failing_code_is_found_and_located() -> None:
    other = "```bash\nnot python\n```\n\n"
    page = f"Text\n\n```python\nx = 1\n```\n\n{other}1. A list\n\n    ```py\n    assert x == 2\n    ```\n"
    assert [block.line for block in python_blocks(page)] == [4, 14]
    with pytest.raises(AssertionError) as failure:
        run_blocks(page, "page.md")
    last = failure.traceback[-1]
    assert (Path(last.path).name, last.lineno + 1) == ("page.md", 14)


def public_modules() -> Iterator[ModuleType]:
    """The package and every module of it with an `__all__` whose path has no private part."""
    yield factorized_moe
    for found in pkgutil.walk_packages(factorized_moe.__path__, "factorized_moe."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            module = importlib.import_module(found.name)
            if hasattr(module, "__all__"):
                yield module


def documented_targets(pages: list[str]) -> set[str]:
    """The modules and objects that the pages' `:::` directives render."""
    return {target for page in pages for target in DIRECTIVE.findall(page)}


def missing_from_reference(modules: list[ModuleType], targets: set[str]) -> list[str]:
    """Public names that no directive renders, neither where they are defined nor where re-exported."""
    missing = []
    for module in modules:
        for name in module.__all__:
            value = getattr(module, name)
            homes = [m.__name__ for m in modules if name in m.__all__ and getattr(m, name) is value]
            if not any({home, f"{home}.{name}"} & targets for home in homes):
                missing.append(f"{module.__name__}.{name}")
    return missing


def test_api_reference_covers_every_public_name() -> None:
    targets = documented_targets([page.read_text(encoding="utf-8") for page in API_PAGES])
    assert missing_from_reference(list(public_modules()), targets) == []


def test_api_directives_render_everything_they_name() -> None:
    for page in API_PAGES:
        text = page.read_text(encoding="utf-8")
        assert DIRECTIVE.search(text), f"{page.name} has no directive"
        # An option that picks members would make the check above say more than is true.
        assert "members:" not in text, f"{page.name}: name the objects by directives of their own instead"


def test_missing_name_is_found() -> None:
    package, inner = ModuleType("made_up"), ModuleType("made_up.inner")
    package.kept = inner.kept = package.forgotten = object()
    package.__all__, inner.__all__ = ["kept", "forgotten"], ["kept"]
    for targets in ({"made_up.inner"}, {"made_up.inner.kept"}, {"made_up.kept"}):
        assert missing_from_reference([package, inner], targets) == ["made_up.forgotten"]
    assert missing_from_reference([package, inner], {"made_up"}) == []
