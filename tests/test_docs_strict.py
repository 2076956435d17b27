"""The strict build of the documentation fails where it should: a small site with the project's own settings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
SETTINGS = """\
INHERIT: {root}/mkdocs.yml
docs_dir: docs
hooks: []
nav:
  - Home: index.md
plugins:
  - mkdocstrings:
      handlers:
        python:
          paths: [.]
          options: {{docstring_style: google, show_root_heading: true}}
"""
MODULE = '''"""A module."""


def double(x: int) -> int:
    """Twice a number.

    Args:
        x: The number.

    Examples:
        >>> double(2)
        4
    """
    return 2 * x
'''
PAGE = "# A page\n\n[Here](#a-page)\n\n::: small\n"
FAULTS = {
    "a link to nowhere": (PAGE + "\n[there](nowhere.md)\n", MODULE, "nowhere.md"),
    "an unknown cross-reference": (PAGE + "\n[`gone`][small.gone]\n", MODULE, "small.gone"),
    "a name that does not exist": ("# A page\n\n::: small.triple\n", MODULE, "small.triple"),
    "a parameter that is not there": (PAGE, MODULE.replace("        x: The", "        y: The"), "Parameter 'y'"),
}


def build(folder: Path, page: str, module: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mkdocs", reason="the documentation is built with the docs extra")
    (folder / "docs").mkdir()
    (folder / "docs" / "index.md").write_text(page, encoding="utf-8")
    (folder / "small.py").write_text(module, encoding="utf-8")
    (folder / "mkdocs.yml").write_text(SETTINGS.format(root=ROOT), encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # an advertisement, not about the site
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_sound_site_builds_without_a_warning(tmp_path: Path) -> None:
    result = build(tmp_path, PAGE, MODULE)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_the_build(fault: str, tmp_path: Path) -> None:
    page, module, named = FAULTS[fault]
    result = build(tmp_path, page, module)
    assert result.returncode != 0, f"{fault} built without a complaint:\n{result.stderr}"
    assert named in result.stderr


def test_the_documented_command_is_strict_and_loud() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (line,) = [line for line in makefile.splitlines() if "mkdocs build" in line]
    assert "--strict" in line
    assert "--quiet" not in line  # it raises the level of the log, and strict mode then counts no warning


EXAMPLES = {"sound": (MODULE, 0), "broken": (MODULE.replace("        4", "        5"), 1)}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_broken_example_fails_the_suite(kind: str, tmp_path: Path) -> None:
    """Under the project's own settings of pytest, which run every docstring's examples."""
    module, code = EXAMPLES[kind]
    (tmp_path / "small.py").write_text(module, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    result = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path / "small.py")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == code, result.stdout
    assert f"1 {'failed' if code else 'passed'}" in result.stdout
