"""MkDocs hook: formulas become MathML when the site is built, so that no script has to typeset them.

`pymdownx.arithmatex` marks the formulas of a page (`$..$` and `$$..$$`); here `latex2mathml` translates each. Current
browsers draw MathML themselves, offline too. In the reference a decomposition's plain text `W[n, ..] = ...`, made to be
read in a terminal, gives way to the formula of its own page.
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


def on_page_content(page_html: str, page: Any = None, **_: Any) -> str:
    """Replace each marked formula of a page; a command that is not known is an error."""
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
