"""What the documentation says is true: its code runs, and its API reference leaves no public name out."""

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import factorized_moe

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
PageCode = Callable[[str], str]  # the fixtures of conftest.py
PageFiles = Callable[[str], dict[str, str]]

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
API_PAGES = sorted((ROOT / "docs" / "api").rglob("*.md"))

OUTPUT = re.compile(r'^```text title="Output"\n(.*?)^```', re.DOTALL | re.MULTILINE)
DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)
SPHINX_ROLE = re.compile(r":(?:mod|class|meth|func|attr|data|exc|ref):`[^`]+`")


@dataclass(frozen=True)
class Finished:
    """What became of a page's code."""

    code: int
    stdout: str
    stderr: str


RunPage = Callable[[Path, str, Path], Finished]


@pytest.fixture(scope="module")
def run_page() -> Iterator[RunPage]:
    """Runs a page's code in a process and a folder of its own: what it registers or writes stays there."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "tests" / "page_runner.py"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as runner:
        assert runner.stdin is not None
        assert runner.stdout is not None
        stdin, stdout = runner.stdin, runner.stdout

        def run(path: Path, script: str, folder: Path) -> Finished:
            copy = folder / f"page_{path.stem}.py"
            copy.write_text(script, encoding="utf-8")
            print(copy, folder, sep="\t", file=stdin, flush=True)
            code = int(stdout.readline())
            return Finished(code, *((folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")))

        yield run
        stdin.close()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_on_page_runs(
    path: Path, page_code: PageCode, page_files: PageFiles, run_page: RunPage, tmp_path: Path
) -> None:
    """It runs, and prints what the page shows as its output, in that order."""
    text = path.read_text(encoding="utf-8")
    for name, code in page_files(text).items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    shown = OUTPUT.findall(text)
    script = page_code(text)
    if script:
        result = run_page(path, script, tmp_path)
        assert result.code == 0, result.stderr
        printed = result.stdout
        for output in shown:
            before, found, printed = printed.partition(output)
            assert found, f"the page shows\n{output}where its code printed\n{before}"
    else:
        assert not shown, "output of no code"


def test_every_python_block_is_read(page_code: PageCode) -> None:
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        assert bool(page_code(text)) == bool(re.search(r"^\s*(```|~~~)\s*\{?\s*\.?py", text, re.MULTILINE)), path
    assert page_code((ROOT / "README.md").read_text(encoding="utf-8"))


def test_failing_code_is_found_and_located(page_code: PageCode, run_page: RunPage, tmp_path: Path) -> None:
    other = "```bash\nnot python\n```\n\n"
    page = f"Text\n\n```python\nx = 1\n```\n\n{other}1. A list\n\n    ```py\n    assert x == 2\n    ```\n"
    result = run_page(Path("page.md"), page_code(page), tmp_path)
    assert result.code == 1
    assert re.search(r'page\.py", line 14,.*AssertionError', result.stderr, re.DOTALL)


def test_docstrings_are_markdown() -> None:
    for path in sorted((ROOT / "factorized_moe").rglob("*.py")):
        roles = SPHINX_ROLE.findall(path.read_text(encoding="utf-8"))
        assert not roles, f"{path.name}: the site shows {roles[0]} as it is; write `name` or [`name`][its.full.path]"


def test_examples_have_the_heading_that_the_parser_renders() -> None:
    for folder in ("factorized_moe", "benchmarks", "recipes", "studies", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            wrong = re.search(r"^\s*Example:\s*$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert not wrong, (
                f"{path}: write Examples:, the parser takes Example: for a note and runs its lines together"
            )


def public_modules() -> Iterator[ModuleType]:
    """The package and the modules directly in it; the public names of a folder are those that it re-exports."""
    yield factorized_moe
    for found in pkgutil.iter_modules(factorized_moe.__path__, "factorized_moe."):
        if not found.name.rpartition(".")[2].startswith("_"):
            module = importlib.import_module(found.name)
            assert hasattr(module, "__all__"), f"{found.name} does not say which of its names are public"
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
