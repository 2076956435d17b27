"""The example notebooks run from start to end, are stored without outputs, and their pages show their code."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.notebook_pages import fenced, page_of

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
EXECUTE = (
    "import sys, nbformat, nbclient\n"
    "content = nbformat.read(sys.argv[1], as_version=4)\n"
    "nbclient.NotebookClient(content, timeout=300, kernel_name='python3').execute()\n"
    "nbformat.write(content, sys.argv[2])\n"
)


def cells(notebook: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return found


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_there_are_two() -> None:
    assert [notebook.name for notebook in NOTEBOOKS] == ["image_model.ipynb", "language_model.ipynb"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    for package in ("nbclient", "ipykernel", "mlxtend", "matplotlib"):
        pytest.importorskip(package)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path)}
    environment["TQDM_DISABLE"] = "1"  # a slow machine shows bars, on stderr
    command = [sys.executable, "-c", EXECUTE, notebook, tmp_path / "executed.ipynb"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    outputs = [output for cell in cells(tmp_path / "executed.ipynb") for output in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("text/html") >= 3
    assert "image/svg+xml" in kinds
    assert [output for output in outputs if output.get("name") == "stderr"] == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(notebook: Path) -> None:
    for cell in cells(notebook):
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_page_is_of_this_notebook(notebook: Path) -> None:
    page = page_of(notebook).read_text(encoding="utf-8")
    for cell in cells(notebook):
        assert (fenced(source(cell)) if cell["cell_type"] == "code" else source(cell)) in page
    for name in page.split("](")[1:]:
        picture = page_of(notebook).parent / name.partition(")")[0]
        assert picture.suffix != ".png" or picture.is_file()
