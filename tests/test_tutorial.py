"""The tutorial's decomposition is as short as it says and passes the whole suite, run as a reader runs it."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from factorized_moe.decompositions.registry import registered_decompositions

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorials" / "add-a-decomposition.md").read_text(encoding="utf-8")


@pytest.fixture
def files(page_files: Callable[[str], dict[str, str]]) -> dict[str, str]:
    return page_files(PAGE)


def test_the_page_shows_two_files_and_nothing_else_is_needed(files: dict[str, str]) -> None:
    assert list(files) == ["shared_skills.py", "test_shared_skills.py"]
    assert "shared_skills" not in registered_decompositions()


def test_the_class_is_short(files: dict[str, str]) -> None:
    (decomposition,) = (n for n in ast.parse(files["shared_skills.py"]).body if isinstance(n, ast.ClassDef))
    assert decomposition.end_lineno is not None
    assert decomposition.end_lineno - decomposition.lineno + 1 <= 20
    (test,) = (n for n in ast.parse(files["test_shared_skills.py"]).body if isinstance(n, ast.ClassDef))
    assert len(ast.unparse(test).splitlines()) == 2


def test_every_law_holds(files: dict[str, str], tmp_path: Path) -> None:
    for name, code in files.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", tmp_path]
    result = subprocess.run(
        [*command, tmp_path / "test_shared_skills.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout
    (summary,) = re.findall(r"^\d+ passed, \d+ skipped", result.stdout, re.MULTILINE)
    assert f"\n{summary}\n" in PAGE


def test_the_picture_is_that_of_the_network(files: dict[str, str]) -> None:
    """The texts of the committed picture are those that drawing the page's network gives today."""
    pytest.importorskip("matplotlib")
    from factorized_moe import FactorizedExpertTensor
    from factorized_moe.drawing import draw

    scope: dict[str, object] = {}
    exec(files["shared_skills.py"], scope)
    skills = scope["SharedSkills"]()  # type: ignore[operator]  # the page's class
    network = FactorizedExpertTensor((64,), 768, 768, skills, rank=(8, 16), device="meta").network
    picture = (ROOT / "docs" / "assets" / "shared-skills.svg").read_text(encoding="utf-8")
    shown = re.findall(r"<text\b[^>]*>([^<]*)</text>", picture)
    assert sorted(shown) == sorted(text.get_text() for text in draw(network).texts)
