"""The wheel, installed into an empty environment, declares what it needs and does what the README shows."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Imports the package and prints what its import asked for beyond what torch and tltorch import themselves. A
# finder sees guarded imports too (`try: import tqdm`); those leave no trace when the module is not there.
IMPORT_PROBE = """
import sys
import torch, tltorch

asked = set()

class Recorder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        asked.add(name.partition(".")[0])

sys.meta_path.insert(0, Recorder)
from factorized_moe import *
print(*sorted(asked))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command away from the source tree and return its output; a failure shows all it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


def test_wheel_holds_the_package_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"factorized_moe/__init__.py", "factorized_moe/py.typed"} <= set(names)
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "factorized_moe").rglob("static/*.*")} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"factorized_moe"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_installed_wheel_runs_the_readme(wheel: Path, page_code: Callable[[str], str], tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
    run(*pip, "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)

    assert run(python, "-W", "error", "-c", "import factorized_moe", cwd=tmp_path) == ""
    asked = set(run(python, "-c", IMPORT_PROBE, cwd=tmp_path).split())
    assert "factorized_moe" in asked
    assert not asked & {"entmax", "matplotlib", "mlxtend", "pandas", "PIL", "sklearn", "tqdm"}

    script = page_code((ROOT / "README.md").read_text(encoding="utf-8"))
    (tmp_path / "readme.py").write_text(script, encoding="utf-8")
    run(python, "-W", "error", "readme.py", cwd=tmp_path)
    assert "demo" in run(tmp_path / "env" / "bin" / "factorized-moe", "--help", cwd=tmp_path)


def declared(requirements: list[str]) -> set[str]:
    """Distribution names in a list of requirements, in their normal form."""
    return {re.split(r"[\s<>=!~;\[]", requirement)[0].lower().replace("_", "-") for requirement in requirements}


def test_every_import_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    optional = [requirement for name, group in extras.items() if name not in ("dev", "docs") for requirement in group]
    allowed = declared(PROJECT["dependencies"] + optional)
    distributions = packages_distributions()
    for path in (ROOT / "factorized_moe").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [str(node.module)]
            else:
                continue
            for module in {module.partition(".")[0] for module in modules} - {"factorized_moe"}:
                if module not in sys.stdlib_module_names:
                    names = {name.lower().replace("_", "-") for name in distributions.get(module, [module])}
                    assert names & allowed, f"{path.name} imports {module}, which pyproject.toml does not declare"


def test_constraints_pin_every_declared_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins), "exact public versions, nothing else"
    wanted = declared([*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())])
    assert wanted - declared(pins) == {"factorized-moe"}
