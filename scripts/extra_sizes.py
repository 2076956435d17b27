"""What an extra adds to the library: packages and megabytes, as installed in the environment that runs this.

    python scripts/extra_sizes.py conformance test

Packages that the library itself needs are not counted; one that is not installed is left out.
"""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def closure(requirements: list[str]) -> set[str]:
    """The installed packages that requirements ask for, themselves or by others."""
    found: dict[str, set[str]] = {}
    waiting = [(Requirement(text), {""}) for text in requirements]
    while waiting:
        requirement, extras = waiting.pop()
        marker, name = requirement.marker, re.sub(r"[-_.]+", "-", requirement.name).lower()
        if marker and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        if name in found and requirement.extras <= found[name]:
            continue
        try:
            package = distribution(requirement.name)
        except PackageNotFoundError:
            continue
        found[name] = found.get(name, set()) | requirement.extras
        waiting += [(Requirement(text), {"", *requirement.extras}) for text in package.requires or []]
    return set(found)


def megabytes(names: set[str]) -> float:
    """The sizes of the packages' files together."""
    return sum(file.size or 0 for name in names for file in distribution(name).files or []) / 1e6


if __name__ == "__main__":
    core = closure(PROJECT["dependencies"])
    for extra in sys.argv[1:]:
        added = closure(PROJECT["optional-dependencies"][extra]) - core
        print(f"{extra}: {len(added)} packages, {megabytes(added):.0f} MB")
