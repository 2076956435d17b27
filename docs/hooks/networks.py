"""MkDocs hook: draws the network of a decomposition where a page says `<!-- network: cp -->`.

The diagram is made from the description when the site is built, as SVG within the page: its texts and outlines take the
colour of the page's text, on white and on dark.
"""

import io
import math
import re
from typing import Any

import matplotlib

from factorized_moe.decompositions import get_decomposition
from factorized_moe.drawing import draw

MARK = re.compile(r"<!-- network: (?P<name>\S+) -->")
EXPERT_DIMS, FEATURES, RANK = (64, 16), 768, 8
INK = "#123456"
"""Stands for the text's colour, which only the page knows."""

SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "networks"}  # texts stay texts, and every build is the same
SMALLEST = 0.75
"""On a narrow screen the picture shrinks so far, and is scrolled beyond."""


def diagram(name: str) -> str:
    """The figure of a registered decomposition."""
    decomposition = get_decomposition(name)
    shape = (*EXPERT_DIMS, FEATURES, FEATURES)
    rank = decomposition.resolve_rank(RANK, shape)
    file = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        figure = draw(decomposition.network(EXPERT_DIMS, FEATURES, FEATURES, rank), color=INK).figure
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    narrowest = math.floor(SMALLEST * figure.get_figwidth() * 72)
    style = f"display:block;margin:auto;max-width:100%;min-width:{narrowest}pt;height:auto"
    svg = svg.replace("<svg", f'<svg role="img" aria-label="The network of {name}" style="{style}"', 1)
    caption = f"The network for {' x '.join(map(str, EXPERT_DIMS))} experts of {FEATURES} features, rank {rank}."
    return f'<figure style="overflow-x:auto;max-width:100%">{svg}<figcaption>{caption}</figcaption></figure>'


def on_page_content(page_html: str, **_: Any) -> str:
    """Put each diagram where it is asked for; a name that is not registered fails the build."""
    return MARK.sub(lambda found: diagram(found["name"]), page_html)
