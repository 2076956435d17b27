"""What is done to the documentation's pages when the site is built: formulas, the diagram, no other servers."""

import html
import importlib.util
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]


def hook(name: str) -> ModuleType:
    """A hook's module, loaded from its file as MkDocs does."""
    spec = importlib.util.spec_from_file_location(f"hook_{name}", ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FORMULAS, IMPORTS, OFFLINE = hook("formulas"), hook("imports"), hook("offline")
NETWORKS, NAMES, SOURCES = hook("networks"), hook("names"), hook("sources")
DEFAULTS, ELSEWHERE, TABLES = hook("defaults"), hook("elsewhere"), hook("tables")


@pytest.mark.parametrize(
    ("page", "display"),
    [
        (r'<p>so <span class="arithmatex">\(a &lt; b_1\)</span>.</p>', "inline"),
        ('<div class="arithmatex">\\[\na &lt; b_1\n\\]</div>', "block"),
    ],
    ids=["inline", "block"],
)
def test_marked_formulas_become_mathml(page: str, display: str) -> None:
    built = FORMULAS.on_page_content(page)
    assert "arithmatex" not in built
    math = ET.fromstring(built[built.index("<math") : built.index("</math>") + len("</math>")])
    assert math.get("display") == display
    assert "".join(math.itertext()) == "a<b1"


def test_text_in_code_is_left_alone() -> None:
    page = r"<code>\(a\)</code> and $5"
    assert FORMULAS.on_page_content(page) == page


def test_formulas_of_docstrings_are_drawn_in_the_reference() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "factorized_moe").rglob("*.py"))
    assert [plain for plain in FORMULAS.SHOWN if f"``{plain}``" not in sources] == []
    page = "".join(f"<p><code>{html.escape(plain)}</code></p>" for plain in FORMULAS.SHOWN) + "<code>x @ y</code>"
    built = FORMULAS.on_page_content(page, SimpleNamespace(file=SimpleNamespace(src_uri="api/tensor.md")))
    assert built.count("<math") == len(FORMULAS.SHOWN)
    assert re.findall("<code>.*?</code>", built) == ["<code>x @ y</code>"]
    assert FORMULAS.on_page_content(page, SimpleNamespace(file=SimpleNamespace(src_uri="defaults.md"))) == page


def test_an_unknown_environment_fails_the_build() -> None:
    """latex2mathml would write its alignment marks into the formula, on one line."""
    page = r'<div class="arithmatex">\[\begin{%s} a &amp;= b \\ c &amp;= d \end{%s}\]</div>'
    with pytest.raises(ValueError, match=r"an environment that latex2mathml does not know: \\begin\{aligned\}"):
        FORMULAS.on_page_content(page % ("aligned", "aligned"))
    assert FORMULAS.on_page_content(page % ("split", "split")).count("<mtr>") == 2


def test_an_unknown_command_fails_the_build() -> None:
    with pytest.raises(ValueError, match=r"latex2mathml does not know: \\nonsense x"):
        FORMULAS.on_page_content(r'<span class="arithmatex">\(\nonsense x\)</span>')


def test_the_diagram_shows_the_order_that_the_architecture_test_holds() -> None:
    order = IMPORTS.import_order()
    assert {"parsing", "_writing"} <= set(order[0])
    assert order[-1] == ("cli", "__main__")
    rows = ET.fromstring(IMPORTS.diagram()).findall("div")
    assert tuple(tuple(box.text for box in row) for row in reversed(rows)) == order
    assert IMPORTS.on_page_markdown(f"a\n\n{IMPORTS.MARK}\n") == f"a\n\n{IMPORTS.diagram()}\n"


def test_the_architecture_page_has_the_diagram_and_a_line_for_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert IMPORTS.MARK in page
    for name in (name for row in IMPORTS.import_order() for name in row):
        assert f"| `{name}` |" in page, f"docs/architecture.md does not say what {name} is for"


def test_every_decomposition_s_page_has_its_network() -> None:
    folder = ROOT / "docs" / "decompositions"
    pages = re.findall(r"\[`(\w+)`\]\((\w+\.md)\)", (folder / "index.md").read_text(encoding="utf-8"))
    assert len(pages) > 10
    for name, page in pages:
        assert NETWORKS.MARK.findall((folder / page).read_text(encoding="utf-8")) == [name]


def test_a_network_is_drawn_within_the_page_in_the_page_s_colour() -> None:
    built = NETWORKS.on_page_content("<p>before</p>\n<!-- network: tucker -->\n<p>after</p>")
    assert built.startswith("<p>before</p>\n<figure ")
    assert built.endswith("</figure>\n<p>after</p>")
    figure = ET.fromstring(built[built.index("<figure") : built.index("</figure>") + len("</figure>")])
    svg = figure[0]
    assert svg.get("aria-label") == "The network of tucker"
    texts = "".join(svg.itertext()).split()
    assert {"core", "input", "rank_expert_1=8", "expert_0=64"} <= set(texts)
    assert "fill: currentColor" in built
    assert NETWORKS.INK not in built
    assert figure[1].text == "The network for 64 x 16 experts of 768 features, rank (8, 8, 8, 8)."
    assert OFFLINE.loaded_from_elsewhere(built) == []
    assert built == NETWORKS.on_page_content("<p>before</p>\n<!-- network: tucker -->\n<p>after</p>")


def test_a_name_that_is_not_registered_fails_the_build() -> None:
    with pytest.raises(ValueError, match="unknown decomposition 'tukcer'; did you mean 'tucker'"):
        NETWORKS.on_page_content("<!-- network: tukcer -->")


LOADS = {
    "script": '<script src="https://cdn.example/a.js"></script>',
    "script of the page's scheme": "<script src=//cdn.example/a.js></script>",
    "style sheet": '<link rel="stylesheet" href="http://cdn.example/a.css">',
    "image": '<img alt="" src="https://cdn.example/a.png">',
    "image of several sizes": '<img srcset="https://cdn.example/a.png 2x">',
    "picture in a picture": '<svg><image href="https://cdn.example/a.png"/></svg>',
    "font": "@font-face { src: url('https://cdn.example/a.woff2') }",
    "imported style": '@import "https://cdn.example/a.css";',
    "mermaid": '<pre class="mermaid"><code>graph</code></pre>',
}


@pytest.mark.parametrize("kind", LOADS)
def test_what_is_loaded_from_elsewhere_fails_the_build(kind: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ("page.css" if kind in ("font", "imported style") else "page.html")).write_text(LOADS[kind])
    with pytest.raises(ValueError, match=r"page\.\w+ loads from another server: .*(cdn\.example|mermaid)"):
        OFFLINE.on_post_build({"site_dir": str(tmp_path)})


def test_links_and_own_files_are_no_matter(tmp_path: Path) -> None:
    page = (
        '<a href="https://example.org">there</a><link rel="canonical" href="https://example.org/page">'
        '<link rel="stylesheet" href="assets/a.css"><script src="../a.js"></script><img src="data:image/png;base64,AA">'
        '<svg xmlns="http://www.w3.org/2000/svg"><use href="#part"/></svg>'
    )
    (tmp_path / "page.html").write_text(page)
    (tmp_path / "page.css").write_text("a { background: url(a.png) } /* https://example.org */")
    OFFLINE.on_post_build({"site_dir": str(tmp_path)})


def test_the_picture_is_well_formed_and_loads_nothing() -> None:
    picture = (ROOT / "docs" / "assets" / "idea.svg").read_text(encoding="utf-8")
    assert ET.fromstring(picture).find("{http://www.w3.org/2000/svg}title") is not None
    assert OFFLINE.loaded_from_elsewhere(picture) == []


def test_names_become_links_where_they_are_text() -> None:
    mention = "<code>MuMoE</code>"
    link = f'<autoref identifier="factorized_moe.layers.MuMoE" optional>{mention}</autoref>'
    page = f"<h2>{mention}</h2><p>{mention} {mention} <code>MuMoEs</code></p><pre>{mention}</pre>"
    assert NAMES.linked(page, every=True) == page.replace(f"<p>{mention} {mention}", f"<p>{link} {link}")
    assert NAMES.linked(page, every=False) == page.replace(f"<p>{mention}", f"<p>{link}")


def test_long_headings_break_after_a_dot() -> None:
    heading = '<span class="doc doc-object-name doc-class-name">a.b</span> a.b'
    assert NAMES.breakable(heading) == '<span class="doc doc-object-name doc-class-name">a.<wbr>b</span> a.b'


def test_a_word_that_is_also_a_name_is_no_link() -> None:
    """`factorized_moe.fitting.fit` is public, but most who write `fit` mean something else."""
    assert NAMES.linked("<p><code>fit</code></p>", every=True) == "<p><code>fit</code></p>"


def page_at(address: str) -> SimpleNamespace:
    return SimpleNamespace(file=SimpleNamespace(src_uri=address, dest_uri=address.replace(".md", ".html")))


def test_a_link_to_the_source_leads_to_a_page_with_that_line() -> None:
    built = SOURCES.on_page_content('<a href="source:factorized_moe/gating.py#L3">', page_at("api/gating.md"))
    assert built == '<a href="../source/factorized_moe/gating.html#L-3">'
    page = SOURCES.source_page("factorized_moe/gating.py", "a\n\n'<b>'\n")
    assert 'id="L-3"' in page
    assert "&lt;b&gt;" in page
    assert 'href="../../assets/source.css"' in page


def test_a_link_to_no_source_fails_the_build() -> None:
    with pytest.raises(ValueError, match=r"links to the source factorized_moe/gone\.py, which does not exist"):
        SOURCES.on_page_content('<a href="source:factorized_moe/gone.py#L3">', page_at("api/gating.md"))


def test_a_difference_of_defaults_needs_a_reason() -> None:
    class One:
        def __init__(self, size: int, bias: bool = True) -> None: ...

    class Other:
        def __init__(self, size: int, bias: bool = False) -> None: ...

    table = DEFAULTS.table_of({"One": One, "Other": Other})
    assert table == {"size": {"One": "required", "Other": "required"}, "bias": {"One": "True", "Other": "False"}}
    DEFAULTS.check_reasons(table, {"bias": "for this reason"})
    with pytest.raises(ValueError, match=r"differ without a reason: \['bias'\]"):
        DEFAULTS.check_reasons(table, {})
    with pytest.raises(ValueError, match=r"reasons without a difference: \['size'\]"):
        DEFAULTS.check_reasons(table, {"bias": "for this reason", "size": "for none"})


def test_the_table_of_defaults_is_that_of_the_code() -> None:
    table = DEFAULTS.defaults()
    assert "| `bias` | `False` | `True` | `True` | `False` |" in table
    assert "- `MuMoE(in_features, out_features, expert_dims, decomposition, rank)`" in table


def test_addresses_elsewhere_are_whole() -> None:
    addresses = ELSEWHERE.addresses()
    assert addresses["torch.Tensor"].endswith("/tensors.html#torch.Tensor")
    assert all(re.fullmatch(r"https://[\w./#-]+", address) for address in addresses.values())


def test_a_row_that_heads_others_is_one_cell() -> None:
    empty = '<td style="text-align: right;"></td>'
    head = f"<tr>\n<td><strong>A block</strong></td>\n<td></td>\n{empty}\n</tr>"
    named = f"<tr>\n<td><strong>CP</strong></td>\n<td>1.0</td>\n{empty}\n</tr>"
    built = TABLES.on_page_content(f"<table>\n{head}\n{named}\n</table>")
    assert built == f'<table>\n<tr>\n<td colspan="3"><strong>A block</strong></td>\n</tr>\n{named}\n</table>'


def test_an_interval_in_a_cell_stays_on_one_line() -> None:
    page = "<p>1 [2, 3]</p><td>1.03 [1.01, 1.04]</td><td>a, b</td>"
    assert TABLES.on_page_content(page) == "<p>1 [2, 3]</p><td>1.03 [1.01,&nbsp;1.04]</td><td>a, b</td>"
