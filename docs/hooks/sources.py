"""MkDocs hook: a page with the source of each module that the reference links to, within the site.

The templates in docs/templates write `source:package/module.py#L12`; here it becomes an address, and the page is made.
"""

import html
import os
import re
from pathlib import Path
from typing import Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).parents[2]
LINK = re.compile(r'href="source:(?P<path>[\w./]+)#L(?P<line>\d+)"')
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<link rel="stylesheet" href="{up}assets/source.css">
</head>
<body>
<p><a href="{up}index.html">factorized-moe</a> / {name}</p>
{code}
</body>
</html>
"""

_linked: set[str] = set()


def address(path: str) -> str:
    """Where the page of a file is, from the site's root."""
    return f"source/{path.removesuffix('.py')}.html"


def on_pre_build(**_: Any) -> None:
    """Forget the links of an earlier build."""
    _linked.clear()


def on_page_content(page_html: str, page: Any, **_: Any) -> str:
    """Turn the links of a page into addresses; one to a file that is not there fails the build."""

    def link(found: re.Match[str]) -> str:
        if not (ROOT / found["path"]).is_file():
            raise ValueError(f"{page.file.src_uri} links to the source {found['path']}, which does not exist")
        _linked.add(found["path"])
        up = os.path.relpath(address(found["path"]), Path(page.file.dest_uri).parent)
        return f'href="{Path(up).as_posix()}#L-{found["line"]}"'

    return LINK.sub(link, page_html)


def source_page(path: str, text: str) -> str:
    """The page of a file's text, each line with an anchor."""
    formatter = HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=True, cssclass="source")
    up = "../" * address(path).count("/")
    return PAGE.format(name=html.escape(path), up=up, code=highlight(text, PythonLexer(stripnl=False), formatter))


def on_post_build(config: Any, **_: Any) -> None:
    """Write the pages of all files that were linked to."""
    for path in sorted(_linked):
        target = Path(config["site_dir"]) / address(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source_page(path, (ROOT / path).read_text(encoding="utf-8")), encoding="utf-8")
