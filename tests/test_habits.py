"""The files around the code agree with it: what is cited, what the workflow runs, what is promised, what is tried."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

import factorized_moe.interpret
import factorized_moe.surgery

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
SETTINGS = tomllib.loads(PROJECT)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_workflow_runs_what_one_runs_at_home() -> None:
    assert "- run: .ci/run" in read(".github/workflows/checks.yml")
    (checks,) = re.findall(r"^for check in (.*); do$", read(".ci/run"), re.MULTILINE)
    assert checks.split() == ["lint", "types", "docs", "test", "build"]
    targets = re.findall(r"^([a-z-]+):.*## ", read("Makefile"), re.MULTILINE)
    assert set(checks.split()) <= set(targets)


def test_the_citation_is_of_this_version() -> None:
    citation = read("CITATION.cff")
    assert f"\nversion: {SETTINGS['project']['version']}\n" in citation
    assert f"\nlicense: {SETTINGS['project']['license']}\n" in citation
    assert "arXiv:2402.12550" in citation


def test_what_the_promise_names_is_there() -> None:
    named = re.findall(r"`factorized_moe\.(surgery|interpret)\.(\w+)`", read("SECURITY.md"))
    assert len(named) >= 3
    for module, name in named:
        assert name in getattr(factorized_moe, module).__all__


def test_the_quick_tests_are_chosen_by_marks_that_exist() -> None:
    (selection,) = re.findall(r'pytest -q -n 2 -m "(.*)" tests$', read("Makefile"), re.MULTILINE)
    marks = {marker.partition(":")[0] for marker in SETTINGS["tool"]["pytest"]["ini_options"]["markers"]}
    assert set(selection.replace("not ", "").split(" and ")) == marks


def test_authors_of_decompositions_install_two_packages() -> None:
    extra = SETTINGS["project"]["optional-dependencies"]["conformance"]
    assert {re.split(r"[>=<]", requirement)[0] for requirement in extra} == {"hypothesis", "pytest"}


def test_the_lowest_torch_that_is_tried_is_the_one_promised() -> None:
    spec = importlib.util.spec_from_file_location("versions", ROOT / "scripts" / "versions.py")
    assert spec is not None
    assert spec.loader is not None
    versions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(versions)
    lowest = versions.lowest_torch(PROJECT)
    assert f'"torch>={lowest}"' in PROJECT
    for page in ("README.md", "docs/getting-started.md"):
        assert f"Python 3.11 or newer, PyTorch {lowest} or newer" in read(page)
    assert f"also on {lowest}.0 (`python scripts/versions.py {lowest}.0`" in read("docs/getting-started.md")
    assert versions.requirement_for("2.8") == "torch==2.8.0"
    assert versions.requirement_for("2.13.0") == "torch==2.13.0"
    assert versions.requirement_for("newest") == "torch"
    with pytest.raises(ValueError, match="unpack"):
        versions.lowest_torch('[project]\ndependencies = ["numpy"]')
