"""The site as readers get it, built once: no warning, pages of a bearable size, a reference that says what is asked."""

import os
import re
import subprocess
import sys
from collections import Counter
from html import unescape
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
LARGEST = 150_000
"""Bytes of a page. Every page of a reference read on a phone is loaded whole."""

TAG = re.compile(r"<[^>]+>")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the documentation is built with the docs extra")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr
    return folder


def read(site: Path, page: str) -> str:
    return (site / page).read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """What a reader sees of a page, with its white space as single spaces."""
    return " ".join(unescape(TAG.sub("", page)).split())


def test_no_page_is_large(site: Path) -> None:
    sizes = {path.relative_to(site).as_posix(): path.stat().st_size for path in site.rglob("*.html")}
    assert len(sizes) > 60
    assert {page: size for page, size in sizes.items() if size > LARGEST} == {}


def test_a_class_shows_its_constructor_with_the_keyword_only_arguments(site: Path) -> None:
    text = text_of(read(site, "api/layers.html"))
    (signature,) = re.findall(r"MuMoE\( in_features: int \| None = None, out_features.*?\)", text)
    positional, keywords = signature.split(" *, ")
    assert "rank: SizeLike | None = None" in positional
    assert "bias: bool = True" in keywords


@pytest.mark.parametrize(
    "name",
    [
        "factorized_moe.decompositions.base.RankLike",
        "factorized_moe.budgets.budget.SizeLike",
        "factorized_moe.decompositions.base.Initialisation",
        "factorized_moe.activations.Activation",
        "torch.Tensor",
        "torch.nn.Module",
        "torch.device",
        "collections.abc.Sequence",
        "int",
    ],
)
def test_names_in_signatures_are_links(site: Path, name: str) -> None:
    pages = [path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html")]
    short = name.rpartition(".")[2]
    assert any(re.search(rf'<a class="autorefs[^>]*#([\w.]*\.)?{short}">{short}</a>', page) for page in pages)
    assert not any(f'<span title="{name}">' in page for page in pages), "left without a link"


def test_a_mention_in_a_docstring_is_a_link(site: Path) -> None:
    page = read(site, "api/blocks.html")
    assert re.search(r'<a class="autorefs[^>]*href="tensor\.html#[^>]*><code>FactorizedExpertTensor</code></a>', page)


def test_source_links_lead_to_their_line(site: Path) -> None:
    links = re.findall(r'href="\.\./(source/[^"#]+)#(L-\d+)"', read(site, "api/layers.html"))
    assert len(links) > 8
    for path, anchor in links:
        page = read(site, path)
        line = page[page.index(f'id="{anchor}"') :].partition("\n")[0]
        assert re.search(r"^\d*\s*(@|class |def )", text_of(line[line.index(">") :].lstrip(">"))), line


def test_every_example_is_rendered_as_code(site: Path) -> None:
    shown = 0
    for path in (site / "api").glob("*.html"):
        page = path.read_text(encoding="utf-8")
        assert "<blockquote" not in page, f"{path.name}: the prompts of an example are taken for quotes"
        shown += page.count("&gt;&gt;&gt;")
    assert shown > 200


def test_a_decomposition_has_one_formula_in_its_docstring_and_on_its_page(site: Path) -> None:
    """As MathML on both: what its page says stands in the reference in place of the docstring's plain text."""
    reference = read(site, "api/decompositions.html")
    assert "<code>W[n, .." not in reference
    for name in ("cp", "tucker", "kronecker"):
        (formula,) = re.findall(
            r'<div class="formula">(<math.*?</math>)</div>', read(site, f"decompositions/{name}.html")
        )
        assert formula in reference


def test_each_page_is_in_the_navigation_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    times = Counter(re.findall(r": (\S+\.md)$", navigation, re.MULTILINE))
    assert len(times) > 60
    assert [page for page, count in times.items() if count > 1] == []


def test_no_table_has_an_empty_header() -> None:
    for path in (ROOT / "docs").rglob("*.md"):
        assert not re.search(r"^\|[\s|]*\|\n\|[-:| ]+\|$", path.read_text(encoding="utf-8"), re.MULTILINE), path
