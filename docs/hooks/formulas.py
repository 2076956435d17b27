"""MkDocs hook: formulas become MathML when the site is built, so that no script has to typeset them.

`pymdownx.arithmatex` marks the formulas of a page (`$..$` and `$$..$$`); here `latex2mathml` translates each. Current
browsers draw MathML themselves, offline too.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert

MARKED = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">(?P<open>\\[(\[])(?P<formula>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
COMMAND = re.compile(r"<mi>\\")


def on_page_content(page_html: str, **_: Any) -> str:
    """Replace each marked formula of a page; a command that is not known is an error."""

    def mathml(found: re.Match[str]) -> str:
        formula = html.unescape(found["formula"]).strip()
        display = "block" if found["open"] == r"\[" else "inline"
        translated = convert(formula, display=display)
        if COMMAND.search(translated):
            raise ValueError(f"a formula has a command that is not known to latex2mathml: {formula}")
        return f'<div class="formula">{translated}</div>' if display == "block" else translated

    return MARKED.sub(mathml, page_html)
