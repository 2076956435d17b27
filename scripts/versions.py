"""Run the quick tests on the lowest and the newest torch that pyproject.toml allows, each in an environment of its own.

    python scripts/versions.py              the lowest and the newest
    python scripts/versions.py 2.13.0       one version, or several

On Linux a release from the package index brings its libraries for GPUs, several GB for each environment; a wheel
without them that pip is told of (`PIP_FIND_LINKS`, `PIP_EXTRA_INDEX_URL`) is taken where its version is asked for.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEWEST = "newest"


def lowest_torch(pyproject: str) -> str:
    """The version after ``torch>=`` in the text of a pyproject.toml."""
    (requirement,) = (r for r in tomllib.loads(pyproject)["project"]["dependencies"] if r.startswith("torch>="))
    return requirement.removeprefix("torch>=")


def requirement_for(version: str) -> str:
    """What pip is asked for; 2.8 means 2.8.0, the first release of that name."""
    if version == NEWEST:
        return "torch"
    return f"torch=={version}" if version.count(".") == 2 else f"torch=={version}.0"


def run(version: str, folder: Path, tests: list[str]) -> tuple[str, bool]:
    """Make an environment with this torch and run the tests in it: the version found, and whether all passed."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, requirement_for(version), f"{ROOT}[conformance]"], check=True)
    found = subprocess.run(
        [python, "-c", "import torch; print(torch.__version__)"], check=True, capture_output=True, text=True
    ).stdout.strip()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not models and not slow", *tests]
    return found, subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def main() -> int:
    """Print one line for each version; the exit status is 1 if the tests of one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", help="versions of torch, or 'newest'")
    parser.add_argument("--tests", nargs="+", default=["tests/test_conformance.py"], help="what pytest is given")
    options = parser.parse_args()
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    results = []
    for version in options.versions or [lowest_torch(pyproject), NEWEST]:
        if version != NEWEST and not re.fullmatch(r"\d+(\.\d+)+", version):
            parser.error(f"{version!r} is no version of torch, such as 2.13.0, and not {NEWEST!r}")
        with tempfile.TemporaryDirectory() as folder:
            found, passed = run(version, Path(folder) / "env", options.tests)
        results.append(passed)
        print(f"torch {found}: {'passed' if passed else 'FAILED'}", flush=True)
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
