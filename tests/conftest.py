"""What tests share: torch's threads, hypothesis' profiles, and how code is read from a page of the docs."""

import os
import re
import textwrap
from collections.abc import Callable

import pytest
import torch
from hypothesis import settings

# Workers of pytest-xdist already use the cores: with torch's own threads on top they slow each other down.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# A deadline measures the machine, not the code (a first call may compile or plan). In CI the same
# examples are drawn at every run and nothing is stored.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

FENCE = re.compile(
    r"^(?P<indent> *)```(?:python|py)\b(?: title=\"(?P<file>[^\"\n]*\.py)\")?[^\n]*\n(?P<code>.*?)^(?P=indent)```",
    re.DOTALL | re.MULTILINE,
)


@pytest.fixture(scope="session")
def page_code() -> Callable[[str], str]:
    """A page's Python blocks as one script, each on the lines it has in the page: a traceback fits it.

    A block that has a file's name as its title is no part of the script: see `page_files`.
    """

    def read(page: str) -> str:
        script = ""
        for block in FENCE.finditer(page):
            if block["file"]:
                continue
            first_line = page.count("\n", 0, block.start("code"))
            script += "\n" * (first_line - script.count("\n")) + textwrap.dedent(block["code"])
        return script

    return read


@pytest.fixture(scope="session")
def page_files() -> Callable[[str], dict[str, str]]:
    """The files that a page's blocks have as their titles, which its script may import."""

    def read(page: str) -> dict[str, str]:
        return {block["file"]: textwrap.dedent(block["code"]) for block in FENCE.finditer(page) if block["file"]}

    return read
