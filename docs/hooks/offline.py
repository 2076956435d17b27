"""MkDocs hook: the build fails if a page would load anything from another server. Links to follow are no matter."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

LOADING = {"src", "srcset", "data", "poster", "xlink:href"}
FOLLOWED = {"canonical", "next", "prev", "alternate"}
ELSEWHERE = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
IN_STYLES = re.compile(r"""(?:url\(\s*|@import\s+)["']?(?P<address>(?:https?:)?//[^)"'\s]+)""", re.IGNORECASE)


class _Loaded(HTMLParser):
    """Collects the addresses of other servers that a browser loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        names = LOADING & values.keys()
        if tag in ("image", "use") or (tag == "link" and not FOLLOWED & set(values.get("rel", "").split())):
            names |= {"href"} & values.keys()
        self.addresses += [values[name] for name in names if ELSEWHERE.match(values[name])]
        if "mermaid" in values.get("class", "").split():
            self.addresses.append("mermaid (the theme loads it from a server)")


def loaded_from_elsewhere(page: str) -> list[str]:
    """What a page or a style sheet loads by itself from other servers."""
    parser = _Loaded()
    parser.feed(page)
    return parser.addresses + [found["address"] for found in IN_STYLES.finditer(page)]


def on_post_build(config: Any, **_: Any) -> None:
    """Look through every page and style sheet of the site."""
    site = Path(config["site_dir"])
    for path in sorted(p for p in site.rglob("*") if p.suffix in (".html", ".css", ".svg")):
        found = loaded_from_elsewhere(path.read_text(encoding="utf-8"))
        if found:
            raise ValueError(f"{path.relative_to(site)} loads from another server: {', '.join(found)}")
