"""The example package installs, is found by its name, and passes its own tests."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "tucker2_package"


def run(*command: str | Path, folder: Path, paths: list[Path]) -> str:
    """Run a command in a folder, with these paths to import from; a failure shows all it printed."""
    paths_text = os.pathsep.join(map(str, paths))
    environment = {**os.environ, "PYTHONPATH": paths_text, "OMP_NUM_THREADS": "1", "PIP_NO_INPUT": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed example and nothing else."""
    source = tmp_path_factory.mktemp("source") / EXAMPLE.name
    shutil.copytree(EXAMPLE, source)  # building may leave files beside the source
    target = tmp_path_factory.mktemp("target")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run(*pip, "--no-deps", "--no-build-isolation", "--target", target, source, folder=source.parent, paths=[])
    return target


def test_the_wheel_holds_the_module_alone(installed: Path) -> None:
    assert {path.name for path in installed.iterdir() if path.suffix == ".py"} == {"tucker2_experts.py"}


def test_the_name_is_found_without_an_import(installed: Path, tmp_path: Path) -> None:
    script = (
        "from factorized_moe import FactorizedExpertTensor, available_decompositions\n"
        "assert 'tucker2' in available_decompositions()\n"
        "w = FactorizedExpertTensor((8, 4), 16, 32, decomposition='tucker2', rank=3)\n"
        "assert w.num_parameters == 3 * (16 + 32) + 8 * 4 * 3 * 3\n"
        "assert w.expert_rank_bound == 3\n"
    )
    run(sys.executable, "-W", "error", "-c", script, folder=tmp_path, paths=[installed, ROOT])


def test_the_readme_runs(installed: Path, tmp_path: Path, page_code: Callable[[str], str]) -> None:
    script = page_code((EXAMPLE / "README.md").read_text(encoding="utf-8"))
    assert script
    run(sys.executable, "-W", "error", "-c", script, folder=tmp_path, paths=[installed, ROOT])


def test_the_package_passes_its_own_tests(installed: Path, tmp_path: Path) -> None:
    shutil.copy(EXAMPLE / "test_tucker2.py", tmp_path)
    pytest_command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "error",
        "--rootdir",
        tmp_path,
    ]
    printed = run(*pytest_command, tmp_path, folder=tmp_path, paths=[installed, ROOT])
    assert " passed" in printed
    assert "failed" not in printed


def test_the_decomposition_is_short() -> None:
    lines = (EXAMPLE / "tucker2_experts.py").read_text(encoding="utf-8").splitlines()
    body = lines[next(k for k, line in enumerate(lines) if line.startswith("class")) :]
    assert len([line for line in body if line.strip()]) <= 20
