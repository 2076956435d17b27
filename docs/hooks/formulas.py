"""MkDocs hook: formulas become MathML when the site is built, so that no script has to typeset them.

`pymdownx.arithmatex` marks the formulas of a page (`$..$` and `$$..$$`); here `latex2mathml` translates each. Current
browsers draw MathML themselves, offline too. In the reference a decomposition's plain text `W[n, ..] = ...`, made to be
read in a terminal, gives way to the formula of its own page, and so do the other formulas of docstrings in `SHOWN`.
"""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

from factorized_moe import decompositions

PAGES = Path(__file__).parents[1] / "decompositions"
ENTRY = re.compile(r'(?=<h\d id="factorized_moe\.decompositions\.\w+")')
NAME = re.compile(r'<h\d id="factorized_moe\.decompositions\.(\w+)"')
PLAIN = re.compile(r"<p>(<code>W\[n, \.\.[^<]*</code>)(?P<rest>.*?)</p>", re.DOTALL)
DISPLAYED = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.DOTALL | re.MULTILINE)

SHOWN = {
    "a_k = activation(norm(G_k x))": r"a_k = \varphi(\mathrm{norm}(G_k x))",
    "y_o = sum W[n_0, .., i, o] a_0[n_0] .. x_i": (
        r"y_o = \sum_{n_0, \ldots, i} W_{n_0 \ldots i o} \, a^{(0)}_{n_0} \cdots x_i"
    ),
    "a_n * (x^T W_n)": r"a_n \, x^{\mathrm{T}} W_n",
    "y_o + sum_n a_n * amount[n, o]": r"y_o + \sum_n a_n \, \mathrm{amount}_{no}",
    "y_o + strength * abar^T a": r"y_o + \mathrm{strength} \cdot \bar{a}^{\mathrm{T}} a",
    "abar^T a": r"\bar{a}^{\mathrm{T}} a",
    "||W - dense|| / ||dense||": r"\|W - \mathrm{dense}\| \, / \, \|\mathrm{dense}\|",
    "sqrt(trace(W^T C W))": r"\sqrt{\mathrm{tr}(W^{\mathrm{T}} C W)}",
    "trace(W^T C W D)": r"\mathrm{tr}(W^{\mathrm{T}} C W D)",
    "E[x x^T]": r"\mathbb{E}[x x^{\mathrm{T}}]",
    "E[g g^T]": r"\mathbb{E}[g g^{\mathrm{T}}]",
    "e^T D e": r"e^{\mathrm{T}} D e",
    "||mean - W|| / ||W||": r"\|\mathrm{mean} - W\| \, / \, \|W\|",
    "||W[n] - mean|| / ||mean||": r"\|W_n - \mathrm{mean}\| \, / \, \|\mathrm{mean}\|",
    "sqrt(sum ||y' - y||^2 / sum ||y||^2)": r"\sqrt{\sum \|y' - y\|^2 \, / \, \sum \|y\|^2}",
    "d_c = max(y_c - yhat_c, 0) / y_c": r"d_c = \max(y_c - \hat{y}_c, 0) \, / \, y_c",
    "p = || d - onehot(argmax d) ||_2": r"p = \|d - \mathrm{onehot}(\mathrm{argmax} \, d)\|_2",
    "sqrt(C - 1)": r"\sqrt{C - 1}",
}
"""Formulas of docstrings as they stand there, in code font, and as the reference shows them."""

CODE = re.compile(r"<code>(?P<plain>[^<]*)</code>")

MARKED = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">(?P<open>\\[(\[])(?P<formula>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
COMMAND = re.compile(r"<mi>(\\|&<)")
"""What is left of a command or an environment that latex2mathml does not know: its name, or its alignment marks."""


def with_page_formulas(reference: str) -> str:
    """The reference of the decompositions, each with the formula of its page; the text after it stays."""

    def entry(part: str) -> str:
        found = NAME.match(part)
        if found is None or PLAIN.search(part) is None:
            return part
        page = PAGES / f"{getattr(decompositions, found[1]).__module__.rpartition('.')[2]}.md"
        formula = DISPLAYED.search(page.read_text(encoding="utf-8"))
        if formula is None:
            raise ValueError(f"{page.name} has no formula between lines of two dollars")
        marked = f'<div class="arithmatex">\\[{html.escape(formula[1])}\\]</div>'
        rest = PLAIN.search(part)["rest"].strip(" .,;:\n")
        return PLAIN.sub(lambda _: marked + (f"<p>{rest}</p>" if rest else ""), part, count=1)

    return "".join(entry(part) for part in ENTRY.split(reference))


def with_shown_formulas(reference: str) -> str:
    """A page of the reference, with the formulas of docstrings marked as those of guides are."""

    def formula(found: re.Match[str]) -> str:
        shown = SHOWN.get(html.unescape(found["plain"]))
        return found[0] if shown is None else f'<span class="arithmatex">\\({html.escape(shown)}\\)</span>'

    return CODE.sub(formula, reference)


def on_page_content(page_html: str, page: Any = None, **_: Any) -> str:
    """Replace each marked formula of a page; a command that is not known is an error."""
    if page is not None and page.file.src_uri.startswith("api/"):
        page_html = with_shown_formulas(page_html)
    if page is not None and page.file.src_uri == "api/decompositions.md":
        page_html = with_page_formulas(page_html)

    def mathml(found: re.Match[str]) -> str:
        formula = html.unescape(found["formula"]).strip()
        display = "block" if found["open"] == r"\[" else "inline"
        translated = convert(formula, display=display)
        if COMMAND.search(translated):
            raise ValueError(f"a formula has a command or an environment that latex2mathml does not know: {formula}")
        return f'<div class="formula">{translated}</div>' if display == "block" else translated

    return MARKED.sub(mathml, page_html)
